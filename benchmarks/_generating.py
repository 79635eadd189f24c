"""How fast something is generated: the rate of the whole call, and CPU time of each piece.

Nothing heavy is imported before the work is done: worker processes import the script that asks, and this.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median


def options_of(what: str, *, repeats: int) -> argparse.ArgumentParser:
    """The options that every such benchmark has."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--folder", type=Path, help="where to write; default the system's temporary folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    return parser


def time_generation(
    generate: Callable[[Path], object],
    options: argparse.Namespace,
    *,
    script: str,
    title: str,
    pieces: tuple[str, str],
    count: int,
    least: int,
    setting: str,
) -> None:
    """Generate into fresh folders, and write a page.

    Args:
        generate: Into a folder that does not exist yet.
        script: The benchmark's file; its name is the page's.
        pieces: What is counted, many and one.
        count: How many there are.
        least: The bar, a second.
        setting: What was generated.
    """
    rates, costs = [], []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            cpu, wall = _cpu_s(), time.perf_counter()
            generate(Path(folder) / "out")
            costs.append(1000 * (_cpu_s() - cpu) / count)
            rates.append(count / (time.perf_counter() - wall))
    from _page import setting_of, write_page

    from allsight.launch.bench.report import aligned

    method = f"{options.repeats} times {count} {pieces[0]}, start of {options.workers} processes included"
    lines = [["what", "median", "lowest", "highest", "bar"]]
    for what, values, digits, bar in (
        (f"{pieces[0]}/s", rates, 0, f">= {least}"),
        (f"CPU of a {pieces[1]}, ms", costs, 1, ""),
    ):
        figures = (f"{value:.{digits}f}" for value in (median(values), min(values), max(values)))
        lines.append([what, *figures, bar])
    where = f"{setting}, written to {options.folder or 'the temporary folder of the system'}"
    page = setting_of(script, method)
    write_page(Path(script).stem, title, page, [where, aligned(lines)], options.out)


def _cpu_s() -> float:
    """CPU time of this process and of its finished children."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
