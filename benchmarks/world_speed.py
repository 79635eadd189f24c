"""How fast the embedded world is generated: pictures a second, JPEG and truth written, and CPU time a
picture.

    python benchmarks/world_speed.py [--size 96] [--pictures 1000] [--workers 2] [--variant normal]
                                     [--folder FOLDER]

A portrait writes one file, a scene two (a JPEG with two names and the label map); half of the pictures are
of each kind. The rate is that of the whole call, start of the worker processes included. New files can cost
as much as a quarter of it: `--folder` says on which disk (or RAM disk) to write.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path
from statistics import median

from allsight.data.world import World, generate_world


def cpu_s() -> float:
    """CPU time of this process and of its finished children."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the embedded world")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--variant", default="normal")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; default the system's temporary folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    per_stream = max(12, options.pictures // 4)
    config = World.Config.variant(options.variant, size_px=options.size, train=per_stream, val=per_stream)
    count, rates, costs = 4 * per_stream, [], []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            cpu, wall = cpu_s(), time.perf_counter()
            generate_world(Path(folder) / "world", config, workers=options.workers)
            costs.append(1000 * (cpu_s() - cpu) / count)
            rates.append(count / (time.perf_counter() - wall))
    # Not above: each worker process imports this file, and these import torch.
    from _page import setting_of, write_page

    from allsight.launch.bench.report import aligned

    method = f"{options.repeats} worlds of {count} pictures, start of {options.workers} processes included"
    lines = [["what", "median", "lowest", "highest", "bar"]]
    for what, values, digits, bar in (
        ("pictures/s", rates, 0, ">= 200"),
        ("CPU of a picture, ms", costs, 1, ""),
    ):
        figures = (f"{value:.{digits}f}" for value in (median(values), min(values), max(values)))
        lines.append([what, *figures, bar])
    place = options.folder or "the system's temporary folder"
    where = f"{options.variant}, {options.size} px, written to {place}"
    setting = setting_of(__file__, method)
    write_page("world_speed", "Speed of the embedded world", setting, [where, aligned(lines)], options.out)


if __name__ == "__main__":
    main()
