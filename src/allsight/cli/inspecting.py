"""`allsight data inspect` and `allsight data scan`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from allsight.cli.words import (
    Counter,
    DataSet,
    FormatOptions,
    Json,
    Processes,
    Quiet,
    parsed_options,
    print_json,
)

if TYPE_CHECKING:
    from allsight.data.inspection import SplitSurvey, Survey
    from allsight.data.readers import Candidate, NamedReader

_MOST_SHOWN = 15
_BAR = 30

Splits = Annotated[
    list[str] | None, typer.Option("--split", metavar="S", help="Only this split (may be repeated).")
]


def inspect(
    data: DataSet,
    options: FormatOptions = None,
    split: Splits = None,
    limit: Annotated[
        int, typer.Option("--limit", min=0, metavar="N", help="Read at most N samples a split; 0: all.")
    ] = 1000,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="OUT.png", help="Write a sheet of samples, annotations drawn."),
    ] = None,
    as_json: Json = False,
    processes: Annotated[int, typer.Option("--processes", min=1, help="Read in so many processes.")] = 1,
) -> None:
    """Say what a data set holds: format, splits, classes, sizes, faults, duplicates, leaks between splits.

    \b
    allsight data inspect pets
    allsight data inspect coco:coco --split val --picture val.png
    allsight data inspect label_maps:camvid classes=[sky,road,car] ignore=11
    """
    from allsight import draw
    from allsight.data.inspection import mosaic, survey

    candidate, others, readers = _open(data, options, split)
    result = survey(readers, limit=limit, processes=processes)
    if as_json:
        found = {"format": candidate.format, "reason": candidate.reason}
        print_json({**found, "others": [other.format for other in others], **result.to_json()})
    else:
        _print_survey(candidate, others, result)
    if picture is not None:  # Last, so that a place that cannot be written costs nothing else.
        picture.write_bytes(draw.encode_png(mosaic(readers[0])))
        if not as_json:
            print(f"picture     {picture} (split {readers[0].split})")


def _print_survey(candidate: Candidate, others: list[Candidate], result: Survey) -> None:
    print(f"format      {candidate.format}: {candidate.reason}")
    if others:
        print(f"also fits   {', '.join(f'{other.format}:' for other in others)}")
    for name, part in result.splits.items():
        _print_split(name, part)
    for pair, shared in result.overlaps.items():
        print(f"! {len(shared)} pictures are in both {pair}, such as {shared[0][0]} and {shared[0][1]}")


def scan(
    data: DataSet,
    options: FormatOptions = None,
    split: Splits = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Where to list samples that cannot be used.")
    ] = Path("unusable.jsonl"),
    processes: Processes = None,
    quiet: Quiet = False,
) -> None:
    """Read every sample once, and list those that cannot be used: a JSON line each. Exit status 1 if any.

    \b
    allsight data scan pets
    allsight data scan coco:coco --split train --out broken.jsonl
    """
    from allsight.data.inspection import look_at_all
    from allsight.launch.run import usable_cores

    _, _, readers = _open(data, options, split)
    bad = total = 0
    with out.open("w", encoding="utf-8") as file:
        for reader in readers:
            looks = look_at_all(
                reader,
                range(len(reader)),
                processes=processes or usable_cores(),
                on_progress=None if quiet else Counter(f"samples of {reader.split}"),
            )
            for look in looks:
                total += 1
                if look.fault:
                    bad += 1
                    line = {"split": reader.split, "index": look.index, "id": look.id, "reason": look.fault}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    file.flush()
    print(f"{total} samples read, {bad} cannot be used" + (f"; see {out}" if bad else ""))
    if bad:
        raise typer.Exit(1)
    out.unlink()


def _open(
    data: str, options: list[str] | None, splits: list[str] | None
) -> tuple[Candidate, list[Candidate], list[NamedReader]]:
    """The format, others that fit too, and a reader for each split."""
    from allsight.data.readers import candidates_of, open_reader
    from allsight.data.readers.formats import format_class

    path, candidates = candidates_of(data)
    first, *others = candidates
    chosen = splits or sorted(first.splits, key=lambda name: (name != "train", name))
    given = {**getattr(format_class(first.format), "for_looking", {}), **parsed_options(options)}
    return first, others, [open_reader(f"{first.format}:{path}", None, name, **given) for name in chosen]


def _print_split(name: str, part: SplitSurvey) -> None:
    looked = "" if part.looked_at == part.samples else f" ({part.looked_at} of them looked at)"
    print(f"\n{name}: {part.samples} samples{looked}")
    if part.size_wh_px is not None:
        print(f"  pictures, longer side (median {part.size_wh_px[0]} x {part.size_wh_px[1]})")
        _print_bars(part.sizes)
    for what, counts in part.counted.items():
        there = {name: count for name, count in counts.items() if count}
        print(f"  {what} of {len(there)} classes{_missing([name for name in counts if name not in there])}")
        _print_bars(dict(sorted(there.items(), key=lambda pair: -pair[1])))
    for note in part.notes:
        print(f"  note: {note}")
    if part.duplicates:
        extra = sum(len(ids) - 1 for ids in part.duplicates)
        print(f"! {extra} exact duplicates, such as {part.duplicates[0][0]} and {part.duplicates[0][1]}")
    if part.unusable:
        print(f"! {len(part.unusable)} samples cannot be used:")
        for reason in list(part.unusable.values())[:_MOST_SHOWN]:
            print(f"    {reason}")


def _missing(names: list[str]) -> str:
    """How many classes do not occur, and which, as long as a person would read them."""
    if not names:
        return ""
    verb = "does" if len(names) == 1 else "do"
    listed = f": {', '.join(names)}" if len(names) <= _MOST_SHOWN else ""
    return f"; {len(names)} more {verb} not occur{listed}"


def _print_bars(counts: Mapping[str, int]) -> None:
    shown = list(counts.items())[:_MOST_SHOWN]
    width = max((len(key) for key, _ in shown), default=0)
    most = max(counts.values(), default=0)
    for key, count in shown:
        print(f"    {key:<{width}}  {count:>8}  {'#' * round(_BAR * count / max(1, most))}")
    rest = list(counts.values())[_MOST_SHOWN:]
    if rest:
        print(f"    and {len(rest)} more with {sum(rest)}, the fewest {min(rest)}")
