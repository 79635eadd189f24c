"""`allsight data`: making data sets, and packing them for fast and distant reading."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from allsight.cli.words import Counter

app = typer.Typer(help="Make, pack and check data sets.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _before() -> None:
    """Make, pack and check data sets."""


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


Processes = Annotated[
    int | None, typer.Option("--processes", min=1, help="Default: all cores.", show_default=False)
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing but the result.")]


@app.command("pack")
def pack(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="format:path", show_default=False)],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the shards.", show_default=False)],
    root: Annotated[
        Path | None,
        typer.Option(
            "--root", help="Where a relative path starts; default $ALLSIGHT_DATA.", show_default=False
        ),
    ] = None,
    split: Annotated[list[str] | None, typer.Option("--split", help="Repeatable; default train.")] = None,
    shard_mb: Annotated[
        float, typer.Option("--shard-mb", min=0.001, help="About how large a tar gets.")
    ] = 256,
    processes: Processes = None,
    shuffle: Annotated[
        int | None, typer.Option("--shuffle", min=0, metavar="SEED", help="Write in a random order.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="For the format's reader; repeatable."),
    ] = None,
    leave_out_broken: Annotated[
        bool,
        typer.Option("--leave-out-broken", help="Pass over samples that cannot be read, and count them."),
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read everything back.")] = False,
    quiet: Quiet = False,
) -> None:
    """Write a data set as tars with an index each, which are read fast from disks and from servers.

    The command can be stopped at any moment and run again: whole shards are kept.

    \b
    allsight data pack imagefolder:pets shards/pets --split train --split val
    allsight data pack label_maps:camvid shards/camvid --option classes=[sky,building] --option ignore=11
    """
    import yaml

    from allsight.config import ConfigError
    from allsight.data.shards.checking import verify_place
    from allsight.data.shards.pack import pack as pack_split
    from allsight.launch.run import usable_cores

    options = {}
    for text in option or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--option {text}: expected NAME=VALUE")
        options[name] = yaml.safe_load(value)
    workers = processes or usable_cores()
    for name in split or ["train"]:
        begun = time.perf_counter()
        packed = pack_split(
            source,
            out,
            root=root,
            split=name,
            shard_bytes=int(shard_mb * 2**20),
            processes=workers,
            shuffle=shuffle,
            leave_out_broken=leave_out_broken,
            options=options,
            progress=None if quiet else Counter(f"shards of {name}"),
        )
        catalogue = packed.catalogue
        print(
            f"{out}: {int(catalogue.samples.sum())} samples of {name} in {len(catalogue.names)} shards, "
            f"{int(catalogue.tar_bytes.sum()) / 2**20:.1f} MB, {time.perf_counter() - begun:.1f} s"
            + (f"; {packed.kept} shards were there already" if packed.kept else "")
        )
        for note in packed.notes:
            print(f"  note: {note}")
        if packed.left_out:
            print(f"  note: {packed.left_out} samples left out; reasons of this run's first ones:")
        for reason in packed.reasons[:5]:
            print(f"    {reason}")
    if verify:
        samples = verify_place(out, processes=workers, progress=None if quiet else Counter("shards verified"))
        print(f"{out}: {samples} samples read back, all as they were written")
    print(f"use it with data=webdataset:{out.absolute()}")


@app.command("index")
def index(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder of tars, or one tar.", show_default=False)
    ],
    processes: Processes = None,
    quiet: Quiet = False,
) -> None:
    """Write the index of each tar beside it and the list of each split, so that servers can offer them.

    \b
    allsight data index laion
    """
    from allsight.data.shards.checking import index_place
    from allsight.launch.run import usable_cores

    found = index_place(
        path, processes=processes or usable_cores(), progress=None if quiet else Counter("tars indexed")
    )
    for name, catalogue in found.items():
        print(f"{name}: {int(catalogue.samples.sum())} samples in {len(catalogue.names)} tars")


@app.command("verify")
def verify(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="Folder of tars, or one tar.", show_default=False)
    ],
    processes: Processes = None,
    quiet: Quiet = False,
) -> None:
    """Read tars through and compare every byte with the checksums in their indexes.

    \b
    allsight data verify shards/pets
    """
    from allsight.data.shards.checking import verify_place
    from allsight.launch.run import usable_cores

    samples = verify_place(
        path, processes=processes or usable_cores(), progress=None if quiet else Counter("tars verified")
    )
    print(f"{path}: {samples} samples, all as they were written")
