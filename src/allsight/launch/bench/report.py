"""The results of `allsight bench ops` as a table, a page, a picture with bars, and plain values."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from allsight import draw
from allsight.draw.palette import Rgb
from allsight.engine.run_folder import environment, write_text
from allsight.launch.bench import (
    ISA_VARIABLE,
    ONE_THREAD,
    TORCH_ADD,
    Results,
    Row,
    forced_instruction_set,
    instruction_set,
)
from allsight.launch.bench.cases import CALL, OFFICIAL, OURS, REFERENCE
from allsight.launch.bench.yardsticks import TORCH_MS_DEFORM_ATTN, torch_ms_deform_attn

_COLORS: dict[str, Rgb] = dict(
    zip((OFFICIAL, REFERENCE, TORCH_MS_DEFORM_ATTN, ONE_THREAD), draw.palette(4), strict=True)
)
_LEGEND = """\
`official` is the plain PyTorch fall-back of the official code, `reference` this package's own. `forward` of
DCNv3 includes the softmax of the weights on all sides; `forward+backward` computes all gradients, with
weights that are normalised already. `call` is the overhead of a tiny call without gradient; its bars are in
us. Bars are those of one thread with AVX-512, those of DCNv3 with AVX2 where that is the instruction set.
`differs by` is the largest difference of an output or gradient from any of the others, relative to the
largest number of its tensor."""
_MEMORY_SETTINGS = ("THP_MEM_ALLOC_ENABLE", "GLIBC_TUNABLES", "MALLOC_", "LD_PRELOAD")


@dataclass(frozen=True)
class Setting:
    """What the numbers were measured on, one line a fact, and the command that measures them again."""

    command: str
    day: str
    facts: Mapping[str, str]
    isa: str | None

    @classmethod
    def of_this_process(cls, words: Sequence[str], *, method: str) -> Setting:
        """Ask the machine.

        Args:
            words: The command line.
            method: How it was measured, in a line.
        """
        about = environment(words)
        other = torch_ms_deform_attn()
        if not isinstance(other, str):
            other = _version(TORCH_MS_DEFORM_ATTN)
        forced = forced_instruction_set()
        memory = {k: v for k, v in sorted(os.environ.items()) if k.startswith(_MEMORY_SETTINGS)}
        facts = {
            "machine": f"{about['cpu']}, {about['cores']} cores, {about['platform']}",
            "instruction set": (instruction_set() or "that of PyTorch; no compiled kernels used")
            + (f", forced by {ISA_VARIABLE}={forced}" if forced else ""),
            "backends": "; ".join(
                f"{name}: {op['backend']} ({op['reason']})" for name, op in about["ops"].items()
            ),
            "versions": f"allsight {about['allsight']} {about['git'][:10]}, "
            f"Python {platform.python_version()}, torch {about['torch']}, numpy {about['numpy']}, "
            f"{TORCH_MS_DEFORM_ATTN} {other}",
            "memory": " ".join(f"{k}={v}" for k, v in memory.items()) or "no settings of PyTorch's or libc's",
            "method": method,
        }
        given = {**memory, **({ISA_VARIABLE: forced} if forced else {})}
        command = " ".join([*(f"{k}={shlex.quote(v)}" for k, v in given.items()), shlex.join(words)])
        return cls(command, f"{datetime.now(UTC):%Y-%m-%d}", facts, instruction_set())


def turns(threads: int, pairs: int) -> str:
    """What `interleave` does, for `Setting`."""
    clock = "CPU time of the thread" if threads == 1 else "wall time"
    return (
        f"{threads} thread(s), {clock}, {pairs} rounds in which all ways take turns; ratios are medians of "
        "those within a round"
    )


def table(results: Results) -> str:
    """Markdown whose columns are aligned, so that it can be read as it is."""
    head = [
        "case",
        "work",
        "allsight",
        "against",
        "takes",
        "ratio",
        "must",
        "stretch",
        "reached",
        "differs by",
    ]
    lines = [head]
    for row in results.rows:
        first = [row.case, row.work, _duration(row.samples.median(OURS))]
        for number, against in enumerate(_others(row)):
            last = [f"{row.difference:.0e}"] if number == 0 else [""]
            lines.append([*(first if number == 0 else [""] * 3), *_comparison(row, against), *last])
    return aligned(lines)


def warning(results: Results) -> str:
    """What to say if others used the machine meanwhile; empty if not. CPU time of one thread hardly minds."""
    busy = sum(row.samples.disturbed for row in results.rows)
    total = results.pairs * len(results.rows)
    return f"the machine was busy during {busy} of {total} rounds; measure again when it is not" * bool(busy)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table in markdown whose columns are as wide as they need to be; the first line is its head."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    head, *rows = (
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )
    return "\n".join([head, f"|{'|'.join('-' * (width + 2) for width in widths)}|", *rows])


def markdown(results: Results, setting: Setting, picture: str) -> str:
    """The page.

    Args:
        results: What was measured.
        setting: On what.
        picture: Name of the picture's file beside it.
    """
    parts = [
        f"# Operators, {setting.day}",
        f"Command: `{setting.command}`",
        "\n".join(f"- {name}: {text}" for name, text in setting.facts.items()),
        _LEGEND,
        *([f"**{warning(results)}**"] if warning(results) else []),
        table(results),
        f"![ratios as bars]({picture})",
        "Sizes: " + "; ".join(dict.fromkeys(f"`{row.case}` {row.about}" for row in results.rows)) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def picture(results: Results, setting: Setting) -> UInt8[np.ndarray, "h w 3"]:
    """Ratios as bars, with marks where they should end."""
    groups = []
    for row in results.rows:
        if row.work == CALL:
            continue
        bars = []
        for against in _others(row):
            goal, ratio = row.goals.get(against), row.ratio(against)
            marks = (goal.must, goal.stretch) if goal else ()
            bars.append(draw.Bar(against, ratio, f"{ratio:.1f}x", marks))
        groups.append((f"{row.case}, {row.work}", bars))
    used = {bar.series for _, bars in groups for bar in bars}
    return draw.draw_bars(
        groups,
        {name: color for name, color in _COLORS.items() if name in used},
        title=f"allsight is so many times as fast as ... ({setting.day})",
        note=f"{setting.facts['machine']}; {setting.facts['instruction set']}; {results.threads} thread(s). "
        "Lines across a bar: what it must reach, and what it should.",
        base=1.0,
    )


def write(results: Results, setting: Setting, folder: Path) -> Path:
    """Write the page and its picture; returns the page's file, which is replaced if it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{setting.day}_ops_{setting.isa or 'reference'}_{results.threads}-thread"
    (folder / f"{name}.png").write_bytes(draw.encode_png(picture(results, setting)))
    write_text(folder / f"{name}.md", markdown(results, setting, f"{name}.png"))
    return folder / f"{name}.md"


def to_json(results: Results, setting: Setting) -> dict[str, Any]:
    """All as plain values; without rows where something differed."""
    return {
        "command": setting.command,
        "day": setting.day,
        **setting.facts,
        "isa": setting.isa,
        "threads": results.threads,
        "pairs": results.pairs,
        "differences": [difference.to_json() for difference in results.differences],
        "rows": [_row_to_json(row) for row in results.rows],
    }


def _row_to_json(row: Row) -> dict[str, Any]:
    goals = {
        name: {"must": goal.must, "stretch": goal.stretch, "reached": row.verdict(name)}
        for name, goal in row.goals.items()
    }
    return {
        "case": row.case,
        "about": row.about,
        "work": row.work,
        "seconds": {name: row.samples.median(name) for name in row.samples.seconds},
        "ratios": {} if row.work == CALL else {name: row.ratio(name) for name in _others(row)},
        "bars": goals,
        "difference": row.difference,
        "disturbed": row.samples.disturbed,
    }


def _others(row: Row) -> list[str]:
    return [name for name in row.samples.seconds if name != OURS]


def _comparison(row: Row, against: str) -> list[str]:
    """Cells from `against` to `reached`."""
    takes = _duration(row.samples.median(against))
    judged = OURS if against == TORCH_ADD else against
    goal = row.goals.get(judged)
    ratio = "" if against == TORCH_ADD else f"{row.ratio(against):.1f}x"
    if goal is None:
        return [against, takes, ratio, "", "", ""]
    unit = " us" if against == TORCH_ADD else "x"
    return [against, takes, ratio, f"{goal.must:g}{unit}", f"{goal.stretch:g}{unit}", row.verdict(judged)]


def _duration(seconds: float) -> str:
    if seconds < 1e-4:
        return f"{1e6 * seconds:.3g} us"
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of an unknown version"
