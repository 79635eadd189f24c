"""nuScenes' detection score: by hand, by its properties, and against the devkit where that is at hand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data.toy_drives import write_nuscenes
from tasks.noisy_results import write_noisy

from allsight.data.driving.vocabulary import CLASSES
from allsight.data.readers import open_reader
from allsight.tasks.metrics.detection_3d import (
    ERRORS,
    THRESHOLDS_M,
    WorldBoxes,
    evaluate,
    without_racked,
)
from allsight.tasks.metrics.matching_3d import match
from allsight.tasks.metrics.submission import filtered, read_submission, tables_truth, write_submission
from allsight.types import Boxes3DAnswer, DataError


def boxes(centers, labels=0, scores=1.0, samples=0, **changes):
    count = len(centers)
    values = {
        "samples": np.full(count, samples) if np.isscalar(samples) else np.array(samples),
        "labels": np.full(count, labels) if np.isscalar(labels) else np.array(labels),
        "centers_m": np.array([[*c, 0.0] for c in centers], dtype=float).reshape(-1, 3),
        "sizes_lwh_m": np.ones((count, 3)),
        "yaw_rad": np.zeros(count),
        "velocities_mps": np.zeros((count, 2)),
        "attributes": np.zeros(count, dtype=np.int64),
        "distances_m": np.array([np.hypot(*c) for c in centers], dtype=float),
        "scores": np.full(count, scores, dtype=float)
        if np.isscalar(scores)
        else np.array(scores, dtype=float),
    }
    return WorldBoxes(**{**values, **changes})


def greedy(groups, centers, true_groups, true_centers, threshold):
    """The same, a box at a time."""
    taken, found = set(), []
    for group, center in zip(groups, centers, strict=True):
        free = [n for n in range(len(true_groups)) if true_groups[n] == group and n not in taken]
        far = [float(np.hypot(*(center - true_centers[n]))) for n in free]
        best = int(np.argmin(far)) if far else -1
        is_hit = bool(far) and far[best] < threshold
        found.append(free[best] if is_hit else -1)
        taken |= {found[-1]} if is_hit else set()
    return found


@pytest.mark.parametrize("seed", range(5))
def test_matching_all_at_once_equals_a_box_at_a_time(seed):
    rng = np.random.default_rng(seed)
    groups, true_groups = rng.integers(0, 6, 120), rng.integers(0, 7, 40)
    # On a lattice, so that distances are often equal.
    centers, truth = rng.integers(0, 8, (120, 2)) / 2.0, rng.integers(0, 8, (40, 2)) / 2.0
    found = match(groups, centers, true_groups, truth, (0.5, 2.0))
    for row, threshold in enumerate((0.5, 2.0)):
        assert found[row].tolist() == greedy(groups, centers, true_groups, truth, threshold)


def test_perfect_answers_score_one():
    truth = boxes([(3, 4), (8, 1), (2, 9)], labels=[0, 1, 1], samples=[0, 0, 1])
    result = evaluate(truth, truth, ("car", "bus"))
    assert result.mean_ap == pytest.approx(1) and result.nds == pytest.approx(1)
    assert result.counts.tolist() == [1, 2]


def test_one_hit_and_one_miss_by_hand():
    # The best is wrong, so precision rises evenly to 1/2 at recall 1: the sum of 0.5 r - 0.1 from r = 0.2 on.
    truth, answers = boxes([(0, 5)]), boxes([(0, 30), (0, 5.6)], scores=[0.9, 0.8])
    result = evaluate(truth, answers, ("car",))
    assert result.ap[0].tolist() == [0.0, *[pytest.approx(16.2 / 90 / 0.9)] * 3]
    assert result.errors[0, 0] == pytest.approx(0.6)


def test_errors_are_those_of_the_matched_boxes():
    truth = boxes([(0, 5)], velocities_mps=np.array([[3.0, 4.0]]), yaw_rad=np.array([0.1]))
    answer = boxes(
        [(0, 6)],
        sizes_lwh_m=np.full((1, 3), 0.5),
        yaw_rad=np.array([0.4 - 2 * np.pi]),
        attributes=np.array([2]),
    )
    expected = [1.0, 1 - 0.125, 0.3, 5.0, 1.0]
    assert np.allclose(evaluate(truth, answer, ("car",)).errors[0], expected)
    cone = evaluate(truth, answer, ("traffic_cone",)).errors[0]
    assert np.isnan(cone[2:]).all() and np.allclose(cone[:2], expected[:2])
    turned = boxes([(0, 6)], yaw_rad=np.array([0.1 + np.pi]))
    assert evaluate(truth, turned, ("barrier",)).errors[0, 2] == pytest.approx(0, abs=1e-9)


def test_unknown_velocities_and_attributes_are_passed_over():
    truth = boxes(
        [(0, 5), (5, 0)],
        velocities_mps=np.array([[np.nan, np.nan], [1.0, 0.0]]),
        attributes=np.array([-1, 0]),
    )
    errors = evaluate(truth, boxes([(0, 5), (5, 0)], scores=[0.5, 0.9]), ("car",)).errors[0]
    assert errors[3] == pytest.approx(1) and errors[4] == pytest.approx(0)


@pytest.mark.parametrize("truth", [[], [(1, 2)]])
@pytest.mark.parametrize("answers", [[], [(1, 2)]])
def test_no_boxes_are_no_crash(truth, answers):
    result = evaluate(boxes(truth), boxes(answers), ("car",))
    assert result.mean_ap == pytest.approx(1 if truth and answers else 0) and np.isfinite(result.nds)


def test_equal_scores_are_ranked_from_the_last():
    truth = boxes([(0, 5)])
    answers = boxes([(0, 30), (0, 5)], scores=[0.5, 0.5])
    # At recall 1 both count.
    assert evaluate(truth, answers, ("car",)).mean_ap == pytest.approx((89 * 0.9 + 0.4) / 90 / 0.9)


def test_two_wheelers_in_racks_do_not_count():
    racks = boxes([(5, 5)], sizes_lwh_m=np.array([[4.0, 2.0, 2.0]]), yaw_rad=np.array([np.pi / 2]))
    some = boxes([(5, 6.5), (5, 6.5), (6.5, 5), (5, 6.5)], labels=[0, 1, 0, 0], samples=[0, 0, 0, 1])
    assert without_racked(some, racks, ("bicycle", "car")).labels.tolist() == [1, 0, 0]


@pytest.fixture(scope="module")
def drives(tmp_path_factory):
    root = tmp_path_factory.mktemp("drives")
    write_nuscenes(root, {"toyval": {f"scene-{n:04d}": 3 for n in range(4)}}, boxes=30, pictures=False)
    reader = open_reader(f"nuscenes:{root}", split="toyval")
    write_noisy(root / "results.json", reader.index, reader.samples)
    return root, reader


def own_result(root, reader):
    truth, racks = tables_truth(reader.index, reader.samples)
    answers = read_submission(
        root / "results.json", reader.index, reader.samples, in_table_order=reader.has_own_splits
    )
    return evaluate(filtered(truth, racks), filtered(answers, racks), CLASSES)


def test_a_result_file_without_a_sample_is_an_error_that_names_it(drives, tmp_path):
    root, reader = drives
    tree = json.loads((root / "results.json").read_text())
    token = reader.frame(1).token
    del tree["results"][token]
    (tmp_path / "results.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=f"no results of sample {token}"):
        read_submission(tmp_path / "results.json", reader.index, reader.samples)


def test_equal_scores_of_own_splits_rank_as_in_the_table_whatever_the_file(drives, tmp_path):
    root, reader = drives
    assert reader.has_own_splits
    tree = json.loads((root / "results.json").read_text())
    table = [row["token"] for row in json.loads((root / "v1.0-toy/sample.json").read_text())]
    tree["results"] = {token: tree["results"][token] for token in sorted(tree["results"])}
    (tmp_path / "results.json").write_text(json.dumps(tree))
    orders = []
    for in_table_order in (False, True):
        boxes = read_submission(
            tmp_path / "results.json", reader.index, reader.samples, in_table_order=in_table_order
        )
        tokens = [reader.index.token(int(reader.samples[n])) for n in boxes.samples]
        orders.append(list(dict.fromkeys(tokens)))
    assert orders[0] == [token for token in tree["results"] if tree["results"][token]]
    assert orders[1] == [token for token in table if tree["results"][token]]


def test_written_truth_reads_back_as_a_perfect_result(drives, tmp_path):
    _, reader = drives
    answers = []
    for n in range(len(reader)):
        frame = reader.frame(n)
        own = frame.boxes
        facts = (own.centers_m, own.sizes_lwh_m, own.yaw_rad, own.velocities_mps, own.labels)
        poses = (frame.ego_from_ref, frame.world_from_ref)
        answers.append(
            Boxes3DAnswer(f"toyval/{frame.token}", "t", *facts, np.ones(len(own)), *poses, classes=CLASSES)
        )
    assert write_submission(tmp_path / "results.json", answers) == len(reader)
    result = own_result(tmp_path, reader)
    occurs = result.counts > 0
    assert np.allclose(result.ap[occurs], 1)
    assert np.nanmax(result.errors[occurs][:, :2]) < 1e-9
    # A box upright in a tilted frame is not quite upright in the world.
    assert np.nanmax(result.errors[occurs][:, 2]) < 2e-3 and np.nanmax(result.errors[occurs][:, 3]) < 0.1


@pytest.mark.slow
def test_scores_equal_those_of_the_devkit(drives, tmp_path):
    """`pip install --target FOLDER --no-deps nuscenes-devkit==1.2.0 pyquaternion cachetools shapely`."""
    if "ALLSIGHT_DEVKIT" not in os.environ:
        pytest.skip("ALLSIGHT_DEVKIT is not set: folder with nuscenes-devkit")
    root, reader = drives
    script = Path(__file__).with_name("devkit_run.py")
    words = [str(root), "v1.0-toy", "toyval", str(root / "results.json"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.environ["ALLSIGHT_DEVKIT"]}
    done = subprocess.run(
        [sys.executable, str(script), *words], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    official, own = json.loads((tmp_path / "summary.json").read_text()), own_result(root, reader)
    assert own.mean_ap == pytest.approx(official["mean_ap"], abs=1e-6)
    assert own.nds == pytest.approx(official["nd_score"], abs=1e-6)
    for row, name in enumerate(CLASSES):
        aps = [official["label_aps"][name][str(threshold)] for threshold in THRESHOLDS_M]
        errors = [official["label_tp_errors"][name][error] for error in ERRORS]
        assert np.allclose(own.ap[row], aps, atol=1e-6), name
        assert np.allclose(own.errors[row], errors, atol=1e-6, equal_nan=True), name
