"""What does a clip cost beside its JPEGs: one sample of 3 frames of 6 cameras, decoded and augmented?

    python benchmarks/clip_speed.py [--recipe bevformer_tiny_nuscenes] [--height 576] [--width 1024]
    python benchmarks/clip_speed.py --pictures driving/nuscenes_frame     # real ones in place of generated

The sample is what a recipe's task gets in training: pictures, boxes and matrices of the frame and of the two
before it, brought to the recipe's size, with its augmentation, read as the loader reads them (pictures of
which half is enough are decoded at half of their size). Bare decoding is `decode_picture` of the same 18
files, which are in memory. Both take turns on one thread that keeps freed memory, as workers do. Drives are
generated at the given size; with `--pictures` the JPEGs of a folder, all of one size, take the place of their
pictures: those of nuScenes are 900 x 1600.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from _page import RESULTS, setting_of, write_page

from allsight.config import replace
from allsight.data.decode import decode_picture
from allsight.data.workers import keep_freed_memory
from allsight.data.world.drives import Drives, generate_drives
from allsight.launch.bench.measure import interleave
from allsight.recipes import find_config
from allsight.types import Sample

FRAMES, CAMERAS = 3, 6


def exchange(drives: Path, pictures: Path) -> tuple[int, int]:
    """Put JPEGs of a folder in the place of those of drives; their height and width."""
    given = [file.read_bytes() for file in sorted(pictures.glob("*.jpg"))]
    height, width = decode_picture(given[0], "given").hw_px
    for number, file in enumerate(sorted(drives.rglob("*.jpg"))):
        file.write_bytes(given[number % len(given)])
    (table,) = drives.rglob("sample_data.json")
    rows = json.loads(table.read_text())
    for row in rows:
        if row["fileformat"] == "jpg":
            row.update(height=height, width=width)
    table.write_text(json.dumps(rows))
    return height, width


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="bevformer_tiny_nuscenes")
    parser.add_argument("--height", type=int, default=576)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--pictures", type=Path, help="folder of JPEGs that take their place")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    # As workers of the loader do, for both.
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        drives = Path(folder) / "drives"
        size = (chosen.height, chosen.width)
        generate_drives(drives, Drives.Config(train=1, val=1, frames=FRAMES, hw_px=size))
        if chosen.pictures is not None:
            chosen.height, chosen.width = exchange(drives, chosen.pictures)
        recipe, _ = find_config(chosen.recipe)
        changes = {"data": "nuscenes:drives", "chunk": 1, "history": FRAMES - 1, "history_kept": FRAMES - 1}
        task = replace(recipe.tasks["boxes"], changes).build(name="boxes", root=Path(folder))
        reader, transform = task.reader("train"), task.transform("train")
        files = [
            (drives / shot.file).read_bytes()
            for index in range(FRAMES)
            for shot in task.drives("train").frame(index).shots
        ]
        assert len(files) == FRAMES * CAMERAS
        numbers = iter(range(10**9))

        def bare() -> None:
            for data in files:
                decode_picture(data, "bare")

        def fresh() -> np.random.Generator:
            return np.random.default_rng(0)

        def read() -> Sample:
            return reader.reduced(FRAMES - 1, lambda h, w: transform.least_hw_px(h, w, fresh))

        def whole() -> object:
            return transform(read(), np.random.default_rng(next(numbers)))

        timed = interleave({"bare": bare, "read": read, "sample": whole}, pairs=chosen.pairs)
    seconds = {way: timed.median(way) for way in ("bare", "read", "sample")}
    rows = [
        ["what", "milliseconds", "of bare decoding's speed", "bar"],
        ["---", "---", "---", "---"],
        ["18 JPEGs decoded", f"{seconds['bare'] * 1e3:.1f}", "1", ""],
        ["read: decoded, with boxes and matrices", *_ways(seconds["read"], timed.ratio("read", "bare")), ""],
        ["sample: augmented too", *_ways(seconds["sample"], timed.ratio("sample", "bare")), ">= 0.75"],
    ]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    height, width = task.config.hw_px
    method = (
        f"{chosen.recipe}: {FRAMES} frames x {CAMERAS} cameras of {chosen.height} x {chosen.width} px "
        f"({'real' if chosen.pictures else 'generated'}) to "
        f"{height} x {width}; one thread, CPU time, medians of {chosen.pairs} turns"
    )
    write_page("clip_speed", "A clip beside its JPEGs", setting_of(__file__, method), [table], chosen.out)


def _ways(seconds: float, ratio: float) -> tuple[str, str]:
    return f"{seconds * 1e3:.1f}", f"{1 / ratio:.2f}"


if __name__ == "__main__":
    main()
