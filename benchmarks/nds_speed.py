"""How long nuScenes' detection score takes, and how much faster it is than nuscenes-devkit on the same file.

    python benchmarks/nds_speed.py [--frames 6000] [--boxes 300] [--devkit FOLDER --devkit-frames 400]

Truth has 30 boxes a frame, answers are these with noise and invented ones. The time is that of filtering,
matching and scoring arrays, and beside it that of reading them from the result file first. The devkit runs in
a process of its own on a smaller set of the same kind (it takes minutes), on which the ratio is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from _page import RESULTS, setting_of, write_page

from allsight.data.driving.vocabulary import CLASSES
from allsight.data.readers import open_reader
from allsight.launch.bench.report import aligned
from allsight.tasks.metrics.detection_3d import WorldBoxes, evaluate
from allsight.tasks.metrics.submission import filtered, read_submission, tables_truth

TESTS = Path(__file__).parents[1] / "tests"
_TRUE_BOXES = 30


def invented_boxes(frames: int, boxes: int, seed: int = 0) -> tuple[WorldBoxes, WorldBoxes]:
    """Truth and answers of a set of this size, as arrays."""
    rng = np.random.default_rng(seed)
    count = frames * _TRUE_BOXES
    places = rng.uniform(-50, 50, (count, 3))
    truth = WorldBoxes(
        np.repeat(np.arange(frames), _TRUE_BOXES),
        rng.integers(0, len(CLASSES), count),
        places,
        rng.uniform(0.5, 5, (count, 3)),
        rng.uniform(-3, 3, count),
        rng.normal(0, 3, (count, 2)),
        rng.integers(-1, 8, count),
        np.hypot(places[:, 0], places[:, 1]),
        np.ones(count),
    )
    total = frames * boxes
    source = np.repeat(np.arange(frames), boxes) * _TRUE_BOXES + rng.integers(0, _TRUE_BOXES, total)
    near = truth.select(source)
    centers = near.centers_m + rng.normal(0, 1.5, (total, 3))
    answers = WorldBoxes(
        **{
            **vars(near),
            "centers_m": centers,
            "distances_m": np.hypot(centers[:, 0], centers[:, 1]),
            "scores": rng.random(total),
        }
    )
    return truth, answers


def against_devkit(frames: int, boxes: int, devkit: Path) -> list[list[str]]:
    """Lines of the table: CPU time of both, with and without reading the files, and the difference in NDS."""
    sys.path.insert(0, str(TESTS))
    from data.toy_drives import write_nuscenes
    from tasks.noisy_results import write_noisy

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        scenes = {f"scene-{n:04d}": 20 for n in range(max(1, frames // 20))}
        write_nuscenes(root, {"toyval": scenes}, boxes=_TRUE_BOXES, pictures=False)
        reader = open_reader(f"nuscenes:{root}", split="toyval")
        result = root / "results.json"
        write_noisy(result, reader.index, reader.samples, invented=boxes - _TRUE_BOXES)
        begun = time.process_time()
        truth, racks = tables_truth(reader.index, reader.samples)
        answers = read_submission(result, reader.index, reader.samples, in_table_order=reader.has_own_splits)
        loaded = time.process_time()
        own = evaluate(filtered(truth, racks), filtered(answers, racks), CLASSES)
        end = time.process_time()
        words = [str(root), "v1.0-toy", "toyval", str(result), str(root)]
        environment = {**os.environ, "PYTHONPATH": str(devkit)}
        subprocess.run(
            [sys.executable, str(TESTS / "tasks" / "devkit_run.py"), *words], env=environment, check=True
        )
        official = json.loads((root / "summary.json").read_text())
    scoring, whole = official["scoring_s"] / (end - loaded), official["seconds"] / (end - begun)
    return [
        [f"scoring {frames} frames: devkit, CPU s", f"{official['scoring_s']:.2f}", ""],
        ["allsight", f"{end - loaded:.2f}", ""],
        ["ratio", f"{scoring:.1f}", ">= 10"],
        ["reading the result file and scoring: devkit, CPU s", f"{official['seconds']:.2f}", ""],
        ["allsight", f"{end - begun:.2f}", ""],
        ["ratio (both parse the same json)", f"{whole:.1f}", ""],
        ["difference in NDS", f"{abs(official['nd_score'] - own.nds):.1e}", "<= 1e-6"],
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of nuScenes' detection score")
    parser.add_argument("--frames", type=int, default=6000)
    parser.add_argument("--boxes", type=int, default=300)
    parser.add_argument("--devkit", type=Path, help="folder with nuscenes-devkit")
    parser.add_argument("--devkit-frames", type=int, default=400)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    truth, answers = invented_boxes(options.frames, options.boxes)
    begun, cpu = time.perf_counter(), time.process_time()
    nothing = WorldBoxes.joined([])
    result = evaluate(filtered(truth, nothing), filtered(answers, nothing), CLASSES)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    lines = [["what", "figure", "bar"]]
    lines.append([f"{options.frames} frames x {options.boxes} boxes, s", f"{seconds:.1f}", "<= 60"])
    lines.append(["the same in CPU time, s", f"{cpu:.1f}", ""])
    lines.append(["its mAP, NDS", f"{result.mean_ap:.4f}, {result.nds:.4f}", ""])
    if options.devkit is not None:
        lines += against_devkit(options.devkit_frames, options.boxes, options.devkit)
    setting = setting_of(__file__, "one pass each; arrays invented, seed 0")
    write_page("nds_speed", "Speed of nuScenes' detection score", setting, [aligned(lines)], options.out)


if __name__ == "__main__":
    main()
