"""`allsight data`: making data sets, looking at them, packing them, and tokenizers."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from allsight.cli import inspecting, packing
from allsight.cli.words import Counter, Processes, Quiet, Seed

app = typer.Typer(
    help="Make, look at, pack and check data sets.", no_args_is_help=True, rich_markup_mode=None
)


@app.callback()
def _before() -> None:
    """Make, look at, pack and check data sets."""


@app.command("world")
def world(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.", show_default=False)],
    seed: Seed = 0,
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
    language: Annotated[
        int | None,
        typer.Option(
            "--language",
            min=224,
            metavar="N",
            help="Also write N training pictures (64 px) with captions, questions and masked sentences to "
            "OUT/language.",
            show_default=False,
        ),
    ] = None,
    processes: Processes = None,
    quiet: Quiet = False,
) -> None:
    """Generate the embedded world: pictures with class folders, COCO boxes and masks, and label maps.

    \b
    allsight data world world
    allsight data world tiny --pictures 200 --size 64 --seed 7
    allsight data world words --pictures 12 --language 20000
    """
    from allsight.data.world import Language, World, generate_world
    from allsight.launch.run import usable_cores

    options = {
        "seed": seed,
        "train": pictures,
        "val": max(12, pictures // 5) if val is None else val,
        "size_px": size,
    }
    config = World.Config.variant(difficulty, **options)
    spoken = None if language is None else Language.Config(seed=seed, train=language)
    begun = time.perf_counter()
    generate_world(
        out,
        config,
        language=spoken,
        workers=processes or usable_cores(),
        on_progress=None if quiet else Counter("pictures"),
    )
    total, seconds = 2 * (config.train + config.val), time.perf_counter() - begun
    more = "" if spoken is None else f", {spoken.train + spoken.val + spoken.pairs} with texts"
    print(
        f"{out}: {total} pictures of {size} px{more} in {seconds:.1f} s; use it with "
        f"{shlex.quote(f'data.root={out}')}"
    )


@app.command("drives")
def drives(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.", show_default=False)],
    seed: Seed = 0,
    scenes: Annotated[int, typer.Option("--scenes", min=1, help="Training scenes.")] = 200,
    val: Annotated[
        int | None,
        typer.Option("--val", min=1, help="Validation scenes; default a sixth.", show_default=False),
    ] = None,
    frames: Annotated[int, typer.Option("--frames", min=1, help="Key frames of a scene, two a second.")] = 8,
    height: Annotated[int, typer.Option("--height", min=32, metavar="PX", help="Of the pictures.")] = 96,
    width: Annotated[int, typer.Option("--width", min=32, metavar="PX", help="Of the pictures.")] = 160,
    difficulty: Annotated[
        str, typer.Option("--difficulty", metavar="easy|normal", help="How crowded, how shaky.")
    ] = "normal",
    processes: Processes = None,
    quiet: Quiet = False,
) -> None:
    """Generate drives: six cameras, boxes of ten classes, maps and poses, as nuScenes tables.

    \b
    allsight data drives drives
    allsight data drives tiny --scenes 8 --val 2 --seed 7
    """
    from allsight.data.world.drives import Drives, generate_drives
    from allsight.launch.run import usable_cores

    options = {
        "seed": seed,
        "train": scenes,
        "val": max(1, scenes // 6) if val is None else val,
        "frames": frames,
        "hw_px": (height, width),
    }
    config = Drives.Config.variant(difficulty, **options)
    begun = time.perf_counter()
    generate_drives(
        out, config, workers=processes or usable_cores(), on_progress=None if quiet else Counter("scenes")
    )
    total, seconds = (config.train + config.val) * config.frames, time.perf_counter() - begun
    print(
        f"{out}: {total} frames of 6 cameras in {seconds:.1f} s; use it with "
        f"{shlex.quote(f'data=nuscenes:{out}')}"
    )


@app.command("compose")
def compose(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.", show_default=False)],
    cutouts: Annotated[
        Path,
        typer.Option(
            "--cutouts",
            metavar="FOLDER",
            help="With train.json and val.json (names), train.zip and val.zip (PNG with transparency).",
        ),
    ],
    backgrounds: Annotated[
        str, typer.Option("--backgrounds", metavar="FORMAT:PATH", help="Pictures with splits train and val.")
    ],
    seed: Seed = 0,
    pictures: Annotated[int, typer.Option("--pictures", min=1, help="Training pictures.")] = 8000,
    val: Annotated[int, typer.Option("--val", min=1, help="Validation pictures.")] = 1000,
    unseen: Annotated[int, typer.Option("--unseen", min=1, help="Pictures of the other cut-outs.")] = 300,
    size: Annotated[int, typer.Option("--size", min=32, metavar="PX", help="Side of the pictures.")] = 64,
    languages: Annotated[
        str, typer.Option("--languages", help="Of questions; captions are in the first.")
    ] = "en,de",
    processes: Processes = None,
    quiet: Quiet = False,
) -> None:
    """Compose pictures of cut-outs on other pictures, with captions and questions that follow from them.

    \b
    allsight data compose composed --cutouts cutouts --backgrounds imagefolder:tiny_imagenet20
    """
    from allsight.data.composing import Composing
    from allsight.data.composing import compose as compose_pictures
    from allsight.launch.run import usable_cores

    config = Composing.Config(
        seed=seed,
        train=pictures,
        val=val,
        unseen=unseen,
        size_px=size,
        languages=tuple(languages.split(",")),
    )
    begun = time.perf_counter()
    notes = compose_pictures(
        out,
        cutouts,
        backgrounds,
        config,
        workers=processes or usable_cores(),
        on_progress=None if quiet else Counter("pictures"),
    )
    for note in notes:
        print(note, file=sys.stderr)
    total, seconds = pictures + val + unseen, time.perf_counter() - begun
    print(
        f"{out}: {total} pictures of {size} px in {seconds:.1f} s; use it with "
        f"{shlex.quote(f'data=coco_captions:{out}')} and {shlex.quote(f'data=coco_vqa:{out}')}"
    )


@app.command("tokenizer")
def tokenizer(
    corpus: Annotated[
        list[Path], typer.Argument(metavar="CORPUS...", help="Files of texts.", show_default=False)
    ],
    vocab: Annotated[int, typer.Option("--vocab", help="Ids, special tokens included.")] = 32_000,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write it.")] = Path(
        "tokenizer.json"
    ),
    field: Annotated[
        str | None,
        typer.Option(
            "--field",
            help="Key of the text in .jsonl and .json; default caption, else text.",
            show_default=False,
        ),
    ] = None,
    special: Annotated[
        list[str] | None,
        typer.Option("--special", metavar="TOKEN", help="A further special token (may be repeated)."),
    ] = None,
) -> None:
    """Train a byte-level BPE tokenizer on texts: lines of text files, JSON lines, or COCO captions.

    \b
    allsight data tokenizer books.txt wiki.txt --vocab 32000 --out tokenizer.json
    allsight data tokenizer pairs.jsonl --field caption --vocab 8000

    The same corpus gives the same file. Special tokens <PAD>, <BOS>, <EOS>, <MASK> and <SPE> have ids 0 to 4.
    """
    from allsight.data.corpus import Corpus
    from allsight.data.text import Tokenizer

    begun = time.perf_counter()
    texts = Corpus(corpus, field=field)
    trained = Tokenizer.train(texts, vocab_size=vocab, specials=special or ())
    out.parent.mkdir(parents=True, exist_ok=True)
    file = trained.save(out)
    if texts.replaced:
        print(
            f"{texts.replaced} of {texts.texts} texts were not UTF-8; their bad bytes became U+FFFD",
            file=sys.stderr,
        )
    if trained.vocab_size < vocab:
        print(
            f"the corpus gives {trained.vocab_size} tokens, not {vocab}; more text would give more",
            file=sys.stderr,
        )
    seconds = time.perf_counter() - begun
    print(
        f"{file}: {trained.vocab_size} tokens from {texts.texts} texts in {seconds:.1f} s; "
        f"hash {trained.hash[:12]}"
    )


app.command("inspect")(inspecting.inspect)
app.command("scan")(inspecting.scan)
app.command("pack")(packing.pack)
app.command("index")(packing.index)
app.command("verify")(packing.verify)
