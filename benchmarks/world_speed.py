"""How fast the embedded world is generated: pictures a second, JPEG and truth written, and CPU time a
picture.

    python benchmarks/world_speed.py [--size 96] [--pictures 1000] [--workers 2] [--variant normal]

A portrait writes one file, a scene three (the JPEG twice and the label map); half of the pictures are of
each kind. The rate is that of the whole call, start of the worker processes included.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import resource
import tempfile
import time
from pathlib import Path

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
    options = parser.parse_args()
    per_stream = max(12, options.pictures // 4)
    config = World.Config.variant(options.variant, size_px=options.size, train=per_stream, val=per_stream)
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "pillow", "simplejpeg")}
    with tempfile.TemporaryDirectory() as folder:
        cpu, wall = cpu_s(), time.perf_counter()
        generate_world(Path(folder) / "world", config, workers=options.workers)
        cpu, wall = cpu_s() - cpu, time.perf_counter() - wall
    count = 4 * per_stream
    print(f"python {platform.python_version()}, {versions}, {platform.processor() or platform.machine()}")
    print(
        f"{options.variant}, {options.size} px, {options.workers} workers: {count} pictures in {wall:.1f} s"
    )
    print(
        f"{count / wall:.0f} pictures/s; {1000 * cpu / count:.1f} ms CPU a picture ({count / cpu:.0f} a core)"
    )


if __name__ == "__main__":
    main()
