"""How fast drives are generated: frames of six cameras a second, JPEG, tables and maps written, and CPU time.

    python benchmarks/drives_speed.py [--scenes 60] [--height 96] [--width 160] [--workers 2]

The rate is that of the whole call, start of the other processes included. `--folder` says on which disk to
write.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from world_speed import cpu_s

from allsight.data.world.drives import Drives, generate_drives


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of generated drives")
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--height", type=int, default=96)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; default the system's temporary folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    config = Drives.Config(train=options.scenes, val=1, hw_px=(options.height, options.width))
    count, rates, costs = (options.scenes + 1) * config.frames, [], []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            cpu, wall = cpu_s(), time.perf_counter()
            generate_drives(Path(folder) / "drives", config, workers=options.workers)
            costs.append(1000 * (cpu_s() - cpu) / count)
            rates.append(count / (time.perf_counter() - wall))
    # Not above: each worker process imports this file, and these import torch.
    from _page import setting_of, write_page

    from allsight.launch.bench.report import aligned

    method = f"{options.repeats} times {count} frames, start of {options.workers} processes included"
    lines = [["what", "median", "lowest", "highest", "bar"]]
    for what, values, digits, bar in (
        ("frames/s, six cameras", rates, 0, ">= 30"),
        ("CPU of a frame, ms", costs, 1, ""),
    ):
        figures = (f"{value:.{digits}f}" for value in (median(values), min(values), max(values)))
        lines.append([what, *figures, bar])
    where = f"{options.height} x {options.width} px, ten classes, truth, tables and maps included"
    setting = setting_of(__file__, method)
    write_page("drives_speed", "Speed of generated drives", setting, [where, aligned(lines)], options.out)


if __name__ == "__main__":
    main()
