"""`allsight data`: data sets to be had without a download, and a look at those there are."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from allsight.cli import inspecting
from allsight.cli.words import Counter

app = typer.Typer(help="Make data sets and look at them.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _before() -> None:
    """Make data sets and look at them."""


@app.command("world")
def world(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.", show_default=False)],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Everything follows from it.")] = 0,
    pictures: Annotated[
        int,
        typer.Option("--pictures", min=12, help="Training pictures of each kind (one object, whole scene)."),
    ] = 2000,
    val: Annotated[
        int | None,
        typer.Option(
            "--val", min=12, help="Validation pictures of each kind; default a fifth.", show_default=False
        ),
    ] = None,
    size: Annotated[int, typer.Option("--size", min=32, metavar="PX", help="Side of the pictures.")] = 96,
    difficulty: Annotated[
        str, typer.Option("--difficulty", metavar="easy|normal|hard", help="How hard.")
    ] = "normal",
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Default: all cores.", show_default=False)
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but the result.")] = False,
) -> None:
    """Generate the embedded world: pictures with class folders, COCO boxes and masks, and label maps.

    \b
    allsight data world world
    allsight data world tiny --pictures 200 --size 64 --seed 7
    """
    from allsight.data.world import World, generate_world
    from allsight.launch.run import usable_cores

    options = {
        "seed": seed,
        "train": pictures,
        "val": max(12, pictures // 5) if val is None else val,
        "size_px": size,
    }
    config = World.Config.variant(difficulty, **options)
    begun = time.perf_counter()
    generate_world(
        out, config, workers=processes or usable_cores(), on_progress=None if quiet else Counter("pictures")
    )
    total, seconds = 2 * (config.train + config.val), time.perf_counter() - begun
    print(f"{out}: {total} pictures of {size} px in {seconds:.1f} s; use it with data.root={out}")


app.command("inspect")(inspecting.inspect)
app.command("scan")(inspecting.scan)
