"""`allsight weights`: looking at files of weights, converting, checking and exporting them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from allsight.cli.words import Json, Run, Trust, print_json

if TYPE_CHECKING:
    from allsight.backbones import InternImage
    from allsight.models import Classifier
    from allsight.weights import LoadReport, Opened, Survey

app = typer.Typer(
    help="Look at files of weights, convert, check and export them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="Weights: .safetensors, a torch file, or a folder (Hugging Face, DeepSpeed).",
        show_default=False,
    ),
]
Ema = Annotated[bool, typer.Option("--ema", help="Take the averaged weights that the file keeps besides.")]
Rows = Annotated[
    Path | None,
    typer.Option(
        "--head-rows", metavar="FILE", help="Classes to keep, a number a line, such as map22kto1k.txt."
    ),
]
To = Annotated[
    str, typer.Option("--to", metavar="official|huggingface|allsight", help="Names of the result.")
]


@app.callback()
def _before() -> None:
    """Look at files of weights, convert, check and export them."""


@app.command("inspect")
def inspect(
    file: File,
    ema: Ema = False,
    names: Annotated[bool, typer.Option("--names", help="List every tensor, too.")] = False,
    as_json: Json = False,
) -> None:
    """Say what a file of weights holds: container, naming, variant, tensors, types, checksum, surprises.

    \b
    allsight weights inspect internimage_t_1k_224.pth
    allsight weights inspect cascade_internimage_xl.pth --names
    """
    from allsight.types import CheckpointError
    from allsight.weights import open_weights, sha256, survey

    opened = open_weights(file, ema=ema)
    counted = survey(opened.tensors)
    said: dict[str, Any] = {"source": opened.source, "container": opened.container}
    try:
        said |= _network(opened)
    except CheckpointError as error:
        said |= {"network": None, "notes": [*opened.notes, str(error).removeprefix(f"{opened.source}: ")]}
    if counted.not_finite:
        said["notes"].append(
            f"{len(counted.not_finite)} tensors hold infinities or NaN: {counted.not_finite[0]}"
        )
    said["tensors"], said["numbers"] = counted.tensors, counted.numbers
    said["bytes"], said["types"] = counted.bytes, counted.dtypes
    said["sha256"] = {path.name: sha256(path) for path in opened.files}
    if names:
        said["names"] = {name: list(tensor.shape) for name, tensor in opened.tensors.items()}
    if as_json:
        print_json(said)
    else:
        _print(said, counted)


@app.command("convert")
def convert(
    file: File,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write; a folder for huggingface.")],
    to: To = "official",
    ema: Ema = False,
    head_rows: Rows = None,
) -> None:
    """Write weights in another form, in float32: .safetensors, or a torch file.

    \b
    allsight weights convert internimage_t_1k_224.pth tiny --to huggingface
    allsight weights convert cascade_internimage_xl.pth backbone.safetensors
    allsight weights convert internimage_l_22k.pth l_1k.pth --head-rows map22kto1k.txt
    """
    _check_out(out, to)
    model = _load(file, ema=ema, head_rows=head_rows)
    _save(model, out, to)
    print(f"{_report(model)}\n-> {out} ({to})")


@app.command("verify")
def verify(
    file: File,
    variant: Annotated[
        str | None, typer.Option("--variant", metavar="NAME", help="Which it must be, such as tiny.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="FILE", help="Weights it must be equal to.")
    ] = None,
    sha256: Annotated[
        str | None, typer.Option("--sha256", metavar="HEX", help="Checksum the file must have.")
    ] = None,
    ema: Ema = False,
) -> None:
    """Check that weights are whole, of the right shapes and finite. Exit status 1 where values differ.

    \b
    allsight weights verify internimage_t_1k_224.pth --variant tiny
    allsight weights verify again.safetensors --against internimage_t_1k_224.pth
    """
    from allsight.backbones import InternImage
    from allsight.config import ConfigError, did_you_mean
    from allsight.types import CheckpointError
    from allsight.weights import Mismatch, difference
    from allsight.weights import sha256 as checksum

    if variant is not None and variant not in InternImage.variants:
        raise ConfigError(f"--variant: no variant '{variant}'{did_you_mean(variant, InternImage.variants)}")
    if sha256 is not None:
        found = checksum(file)
        if found != sha256.lower():
            raise CheckpointError(f"{file}: has checksum {found}, expected {sha256.lower()}")
    try:
        model = _load(_undamaged(file, ema=ema))
    except Mismatch as error:
        print(error.full())
        raise
    report = _report(model)
    if variant is not None and report.variant != variant:
        raise CheckpointError(f"{file}: is {report.variant or 'no known variant'}, expected {variant}")
    print(report)
    if against is not None:
        lines = difference(model.official_state_dict(), _load(_undamaged(against)).official_state_dict())
        if lines:
            print("\n".join(lines[:20]) + (f"\nand {len(lines) - 20} more" if len(lines) > 20 else ""))
            print(f"{len(lines)} tensors differ from {against}", file=sys.stderr)
            raise typer.Exit(1)
        print(f"equal to {against}")


@app.command("export")
def export(
    run: Run,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write; a folder for huggingface.")],
    weights: Annotated[
        str, typer.Option("--weights", metavar="best|last|raw", help="Which weights of the run.")
    ] = "best",
    part: Annotated[
        str | None,
        typer.Option("--part", metavar="NAME", help="Only this part of the model, such as backbone."),
    ] = None,
    to: To = "allsight",
    trust: Trust = False,
) -> None:
    """Write the weights of a trained run as one file.

    \b
    allsight weights export runs/pets pets.safetensors
    allsight weights export runs/pets backbone.pth --part backbone --to official
    """
    import allsight
    from allsight.weights import write_weights

    _check_out(out, to)
    predictor = allsight.load(run, weights, device="cpu", trust=trust)
    for note in predictor.notes:
        print(f"note: {note}; taken instead: {predictor.weights}", file=sys.stderr)
    module = _part(predictor.model, part, official=to != "allsight")
    if to == "allsight":
        write_weights(module.state_dict(), out)
    else:
        _save(module, out, to)
    print(f"{run}: {predictor.weights} -> {out} ({to}, {type(module).__name__})")


def _network(opened: Any) -> dict[str, Any]:
    """What network it is."""
    from allsight.backbones import InternImage, internimage_layouts, internimage_recognition
    from allsight.weights import in_words

    found = internimage_layouts.find(opened)
    seen = internimage_recognition.recognise(found, InternImage.variants)
    head = internimage_recognition.head_of(found.tensors)
    return {
        "layout": found.layout,
        "network": "InternImage",
        "variant": seen.variant or None,
        "settings": {name: seen.fields[name] for name in sorted(seen.fields)},
        "head": head,
        "skipped": in_words(found.skipped) if found.skipped else None,
        "notes": [*found.notes, *seen.notes],
    }


def _print(said: dict[str, Any], counted: Survey) -> None:
    print(f"{said['source']}: {said.get('layout', said['container'])}")
    if said["network"]:
        settings, head = said["settings"], said["head"]
        shown = (
            "operator",
            "channels",
            "depths",
            "groups",
            "block_norm",
            "layer_scale",
            "offset_scale",
            "act",
        )
        print(f"network     {said['network']} {said['variant'] or '(no known variant)'}")
        print(f"settings    {', '.join(f'{name}={settings[name]}' for name in shown if name in settings)}")
        print("head        " + (f"{head['head']}, {head['num_classes']} classes" if head else "none"))
    types = ", ".join(f"{name} ({count})" for name, count in counted.dtypes.items())
    print(
        f"tensors     {counted.tensors}, {counted.numbers:,} numbers, {counted.bytes / 1e6:.1f} MB: {types}"
    )
    for name, digest in said["sha256"].items():
        print(f"sha256      {digest}  {name}")
    if said.get("skipped"):
        print(f"beside it   {said['skipped']}")
    for note in said["notes"]:
        print(f"! {note}")
    for name, shape in said.get("names", {}).items():
        print(f"  {name}  {tuple(shape)}")


def _load(
    file: Path | Opened, *, ema: bool = False, head_rows: Path | None = None
) -> Classifier | InternImage:
    """The classifier, or the backbone where there is no head."""
    from allsight.backbones import InternImage, internimage_layouts, internimage_recognition
    from allsight.models import Classifier
    from allsight.weights import open_weights

    opened = open_weights(file, ema=ema)
    head = internimage_recognition.head_of(internimage_layouts.find(opened).tensors)
    if head is None and head_rows is None:
        return InternImage.from_official(opened)
    return Classifier.from_official(opened, head_rows=head_rows)


def _undamaged(source: Path, *, ema: bool = False) -> Opened:
    """Opened weights, every record of whose files is as it was written."""
    from allsight.types import CheckpointError
    from allsight.weights import damaged_record, open_weights

    opened = open_weights(source, ema=ema)
    for file in opened.files:
        damaged = damaged_record(file)
        if damaged is not None:
            raise CheckpointError(f"{file}: {damaged} is not as it was written (checksum); fetch it again")
    return opened


def _report(model: Classifier | InternImage) -> LoadReport:
    assert model.load_report is not None
    return model.load_report


def _save(model: Any, out: Path, to: str) -> None:
    from allsight.weights import write_weights

    if to == "official":
        model.save_official(out)
    elif to == "huggingface":
        model.save_huggingface(out)
    else:
        write_weights(_own_weights(model), out)


def _own_weights(model: Any) -> dict[str, Any]:
    """Weights as a run has them, for `allsight predict RECIPE --weights OUT`."""
    from allsight.models import Classifier

    prefix = "classifier." if isinstance(model, Classifier) else ""
    return {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}


def _check_out(out: Path, to: str) -> None:
    from allsight.config import ConfigError, did_you_mean

    known = ("official", "huggingface", "allsight")
    if to not in known:
        raise ConfigError(f"--to: no layout '{to}'{did_you_mean(to, known)}")
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise ConfigError(f"{out}: exists already; remove it or choose another name")
    if to != "huggingface" and out.suffix not in (".safetensors", ".pth", ".pt"):
        raise ConfigError(f"{out}: expected a name ending in .safetensors, .pth or .pt")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"{out}: there is no folder {out.absolute().parent}")


def _part(model: Any, part: str | None, *, official: bool) -> Any:
    """The part of a model that is meant: named, or the first with official weights, or all of it."""
    from allsight.config import ConfigError, did_you_mean

    modules = dict(model.named_modules())
    if part == "backbone" and part not in modules:
        from allsight.models.features import backbone_of

        model = backbone_of(model)
        modules = dict(model.named_modules())
    elif part is not None:
        if part not in modules:
            raise ConfigError(f"--part: the model has no part '{part}'{did_you_mean(part, modules)}")
        model, modules = modules[part], dict(modules[part].named_modules())
    if not official:
        return model
    known = [module for module in modules.values() if hasattr(module, "save_official")]
    if not known:
        raise ConfigError(f"--to: {type(model).__name__} has no official form; use --to allsight")
    return known[0]
