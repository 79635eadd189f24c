"""Tasks on a camera rig: what their batches hold, and that their truth scores best."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from data.toy_drives import write_infos, write_nuscenes

from allsight.config import ConfigError, build
from allsight.data.driving.vocabulary import CLASSES
from allsight.data.driving.writer import write_map_expansion
from allsight.data.transforms.world_moves import margin_cells
from allsight.models.bevformer import DetectionHead
from allsight.tasks import BEVDetection, BEVSegmentation, Task
from allsight.tasks.rigs import collate_rigs
from allsight.types import Batch, BEVGrid, BEVSpec, Boxes3D, FeatureSpec


@pytest.fixture(scope="module")
def drives(tmp_path_factory):
    root = tmp_path_factory.mktemp("drives")
    write_nuscenes(root, {"train": {"scene-0001": 4, "scene-0002": 2}, "val": {"scene-0003": 3}})
    road = [np.array([[900.0, 500], [1100, 500], [1100, 640], [900, 640]])]
    line = np.array([[900.0, 600], [1100, 600]])
    file = root / "maps/expansion/singapore-onenorth.json"
    write_map_expansion(file, {"drivable_area": [road]}, {"lane_divider": [line]})
    return root


def task(cls, root, **changes):
    return cls(cls.Config(data=f"nuscenes:{root}", hw_px=(32, 64), **changes), name="drive")


def batch_of(one, split="val", indices=(0, 1), seed=0):
    reader, transform = one.reader(split), one.transform(split)
    return one.collate([transform(reader[n], np.random.default_rng(seed + n)) for n in indices])


def test_batches_hold_rigs_and_boxes(drives):
    one = task(BEVDetection, drives)
    batch = batch_of(one)
    rig = batch.inputs["rig"]
    assert rig.images.shape == (2, 2, 3, 32, 64) and rig.images.dtype is torch.uint8
    assert rig.rig.time_s.dtype is torch.float64 and rig.rig.world_from_ref.dtype is torch.float64
    assert len(batch.targets["boxes"]) == 2 and one.classes == CLASSES
    assert batch.targets["box_notes"][0].attributes.tolist() == [0, 5, 0, -1, 3, 0]
    assert one.reader("train").sequences == (4, 2)
    assert not hasattr(task(BEVDetection, drives, streams=False).reader("train"), "sequences")
    assert batch.to("cpu").ids == batch.ids and pickle.loads(pickle.dumps(batch)).ids == batch.ids


def test_true_boxes_score_best_and_halves_merge(drives):
    one = task(BEVDetection, drives)
    batches = [batch_of(one, indices=(0, 1)), batch_of(one, indices=(2,))]
    whole, parts = one.metric(), [one.metric(), one.metric()]
    for part, batch in zip(parts, batches, strict=True):
        whole.update(one.truth(batch), batch)
        part.update(one.truth(batch), batch)
    values = whole.compute()
    assert values["map_occurring"] == pytest.approx(1) and values["mate"] < 0.6
    parts[0].merge(parts[1])
    assert parts[0].compute() == values
    rings = {row["ring"]: row for row in whole.tables()["rings"]}
    assert set(rings) == {"0-20 m", "20-40 m"} and rings["0-20 m"]["map_occurring"] == pytest.approx(1)
    assert np.isnan(one.metric().compute()["nds"]) and one.main_metric() in values


def test_answers_are_the_best_boxes_of_each_row(drives):
    one = task(BEVDetection, drives, max_boxes=3, min_score=0.3)
    batch = batch_of(one)
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7, 0.8], [0.2, 0.1, 0.0, 0.4, 0.2]])
    boxes = Boxes3D(
        torch.zeros(2, 5, 3),
        torch.ones(2, 5, 3),
        torch.zeros(2, 5),
        torch.zeros(2, 5, 2),
        torch.arange(10).reshape(2, 5),
        scores,
    )
    first, second = one.decode({"boxes": boxes}, batch)
    assert first.labels.tolist() == [1, 4, 3] and second.labels.tolist() == [8]
    assert first.id == batch.ids[0] and first.to_json()["boxes"][0]["name"] == "truck"


def test_clips_bring_their_history_and_repeat_its_first_frame_where_it_is_short(drives):
    one = task(BEVDetection, drives, history=2, turn_rad=0.0, mirror=0.0, colour=0.0)
    reader = one.reader("train")
    assert [len(reader[n].views) for n in range(6)] == [0, 1, 2, 2, 0, 1]
    batch = batch_of(one, "train", (1, 3))
    old, new = batch.inputs["history"]
    assert old.starts.tolist() == [True, True] and new.starts.tolist() == [True, False]
    times = torch.stack([old.rig.time_s, new.rig.time_s, batch.inputs["rig"].rig.time_s])
    assert (times - times[-1]).tolist() == [[-0.5, -1.0], [-0.5, -0.5], [0.0, 0.0]]
    assert len(batch.targets["history"]) == 2 and len(batch.targets["history"][0]) == 2
    thinned = task(BEVDetection, drives, history=2, history_kept=1)
    assert len(thinned.transform("train")(reader[3], np.random.default_rng(0)).views) == 1


def test_a_missing_camera_leaves_its_place_empty(drives):
    one = task(BEVDetection, drives)
    reader = one.reader("val")
    whole = reader[0].inputs["rig"]
    back = replace(
        whole, images=whole.images[1:], img_from_ref=whole.img_from_ref[1:], camera_names=("CAM_BACK",)
    )
    batch = collate_rigs([whole, back], ("CAM_FRONT", "CAM_BACK"), (32, 64))
    assert batch.rig.is_present.tolist() == [[True, True], [False, True]]
    assert torch.equal(batch.images[1, 1], batch.images[0, 1]) and not batch.images[1, 0].any()
    assert torch.equal(batch.rig.img_from_ref[1, 1], batch.rig.img_from_ref[0, 1])


def test_training_sees_other_pictures_each_time_and_boxes_in_range_only(drives):
    one = task(
        BEVDetection, drives, range_m=(-10, -10, 10, 10), crop=1.2, camera_dropout=0.2, noise_turn_rad=0.01
    )
    first, second = (batch_of(one, "train", (0,), seed) for seed in (1, 2))
    assert not torch.equal(first.inputs["rig"].rig.img_from_ref, second.inputs["rig"].rig.img_from_ref)
    for boxes in first.targets["boxes"]:
        assert bool((boxes.centers_ref_m[:, :2].abs() <= 10).all())


@pytest.mark.parametrize("protocol", ["lift_splat", "bevfusion"])
def test_maps_are_targets_and_score_best_as_answers(drives, protocol):
    one = task(BEVSegmentation, drives, protocol=protocol, map_hw=(50, 40))
    batch = batch_of(one)
    masks = batch.targets["bev_map"]
    assert masks.shape == (2, len(one.map_classes), 50, 40) and masks.dtype is torch.bool
    road = one.map_classes.index("road" if protocol == "lift_splat" else "drivable_area")
    assert 0.1 < masks[:, road].float().mean() < 1
    metric = one.metric()
    metric.update(one.truth(batch), batch)
    assert metric.compute()["miou"] == pytest.approx(1)
    logits = masks.float() * 8 - 4
    assert (one.decode({"map_logits": logits}, batch)[0].probabilities > 0.5).sum() == int(masks[0].sum())


def test_iou_is_that_of_the_best_threshold_over_the_whole_set(drives):
    metric = task(BEVSegmentation, drives, map_classes=("car",)).metric()
    truth = np.array([[[True, True, False, False]]])
    metric.add(truth, np.array([[[0.9, 0.45, 0.42, 0.1]]], dtype=np.float32))
    # From .45 down both are found; at .4 and below a wrong one too.
    values = metric.compute()
    assert values["iou_car"] == pytest.approx(1) and values["miou_0.5"] == pytest.approx(1 / 2)


def test_own_rigs_need_no_nuscenes(tmp_path):
    write_infos(tmp_path)
    one = BEVDetection(BEVDetection.Config(data=f"infos:{tmp_path}", hw_px=(32, 64)), name="own")
    batch = batch_of(one)
    metric = one.metric()
    metric.update(one.truth(batch), batch)
    assert one.classes == ("car", "bike") and metric.compute()[one.main_metric()] == pytest.approx(1)


def test_settings_that_make_no_sense_are_refused():
    for wrong in ({"range_m": (1, 0, 0, 1)}, {"history": 1, "history_kept": 2}, {"hw_px": (0, 4)}):
        with pytest.raises(ConfigError):
            build(Task.Config, {"kind": "bev_detection", "data": "infos:x", **wrong})


def head_of(**changes):
    small = {"queries": 3, "peaks": 3, "layers": 2, "heads": 2, "hidden": 8, "drop": 0.0, "num_answers": 5}
    return DetectionHead.Config(**{**small, **changes})


def spec_of(channels=8):
    return BEVSpec(channels, 1, BEVGrid((-40.0, -40, -5, 40, 40, 5), (8, 8)))


def test_losses_of_boxes_do_not_depend_on_how_a_batch_is_split(drives):
    one = task(BEVDetection, drives, head=head_of())
    torch.manual_seed(0)
    head = one.head((spec_of(),)).double()
    bev = torch.randn(3, 8, 8, 8, dtype=torch.float64)
    whole = batch_of(one, indices=(0, 1, 2))
    empty = whole.targets["boxes"][1].select(torch.zeros(6, dtype=torch.bool))
    rows = [whole.targets["boxes"][0], empty, whole.targets["boxes"][2]]
    batches = [
        Batch(one.name, whole.ids[part], {}, {"boxes": tuple(rows[part])})
        for part in (slice(0, 3), slice(0, 1), slice(1, 2), slice(2, 3))
    ]
    losses = [
        one.loss(head(bev[part]), batch)
        for part, batch in zip((slice(0, 3), slice(0, 1), slice(1, 2), slice(2, 3)), batches, strict=True)
    ]
    counts = [one.counts(batch) for batch in batches]
    for name in one.counted:
        parts = sum(loss[name] * count[name] for loss, count in zip(losses[1:], counts[1:], strict=True))
        torch.testing.assert_close(losses[0][name], parts / counts[0][name])


def test_all_frames_of_a_chunk_learn_and_a_model_that_answers_for_others_is_refused(drives):
    one = task(BEVDetection, drives, head=head_of(), chunk=2, turn_rad=0.0, mirror=0.0, colour=0.0)
    batch = batch_of(one, "train", (0, 2))
    assert one.reader("train").sequences == (2, 1) and len(batch.inputs["history"]) == 1
    head = one.head((spec_of(),))
    outputs = [head(torch.randn(2, 8, 8, 8)) for _ in range(2)]
    losses = one.loss(tuple(outputs), batch)
    assert set(losses) == set(one.counted)
    # Two rows and two moments with six boxes each, and one more for each frame.
    assert one.counts(batch)["boxes"] == 4 * (6 + 1)
    with pytest.raises(ConfigError, match=r"gradient_frames=2 and model\.network\.clip_loss=all"):
        one.loss(outputs[0], batch)


def test_a_chunk_at_a_scenes_start_may_be_shorter(drives):
    """Three frames in chunks of two: first one alone, whose own picture must not become its past."""
    one = task(BEVDetection, drives, chunk=2, train_split="val", turn_rad=0.0, mirror=0.0, colour=0.0)
    reader = one.reader("train")
    assert [len(reader[n].views) for n in range(2)] == [0, 1] and reader.sequences == (2,)
    batch = batch_of(one, "train", (0, 1))
    (before,) = batch.inputs["history"]
    assert batch.inputs["rig"].starts.tolist() == [True, False]
    assert (batch.inputs["rig"].rig.time_s - before.rig.time_s).tolist() == [0.0, 0.5]
    with pytest.raises(ConfigError, match="set streams=true"):
        task(BEVDetection, drives, chunk=2, history=1)


def test_maps_are_trained_on_what_turns_into_them(drives):
    """A turned map has no empty corners: more is drawn than is asked for, and cut off after the turn."""
    one = task(
        BEVSegmentation, drives, map_hw=(20, 20), turn_rad=0.5, mirror=0.0, colour=0.0, map_classes=("road",)
    )
    reader = one.reader("train")
    rows, columns = margin_cells(one.grid, 0.5)
    assert reader[0].targets["bev_map"].grid.hw == (20 + 2 * rows, 20 + 2 * columns) and rows > 0
    everywhere = replace(
        reader[0].targets["bev_map"], masks=torch.ones(1, 20 + 2 * rows, 20 + 2 * columns) > 0
    )
    for seed in range(4):
        sample = replace(reader[0], targets={"bev_map": everywhere})
        found = one.transform("train")(sample, np.random.default_rng(seed)).targets["bev_map"]
        assert found.grid.hw == one.grid.hw and np.allclose(found.grid.range_m, one.grid.range_m)
        assert bool(found.masks.all())


def test_reports_show_all_cameras_with_truth_and_answer(drives):
    for one in (task(BEVDetection, drives), task(BEVSegmentation, drives, map_hw=(20, 20))):
        batch = batch_of(one)
        truth = one.truth(batch)
        picture = one.picture(batch, 1, truth[1])
        assert picture.dtype == np.uint8 and picture.shape[1] > 256


def test_a_camera_can_be_left_out_of_judging(drives):
    one = task(BEVDetection, drives, eval_without=("CAM_BACK",))
    assert batch_of(one).inputs["rig"].rig.is_present.tolist() == [[True, False]] * 2
    assert batch_of(one, "train").inputs["rig"].rig.is_present is None


def test_a_head_needs_a_birds_eye_view_map_and_the_classes_of_the_data(drives):
    with pytest.raises(ConfigError, match=r"model\.kind=bevformer"):
        task(BEVDetection, drives).head((FeatureSpec(8, 4),))
    with pytest.raises(ConfigError, match="there are 10 classes"):
        task(BEVDetection, drives, head=head_of(num_classes=3)).head((spec_of(),))


def test_official_losses_leave_boxes_with_unknown_numbers_out_and_count_boxes(drives):
    ours, official = (task(BEVDetection, drives, compat=compat) for compat in (None, "official"))
    batch = batch_of(ours)
    boxes = batch.targets["boxes"][0]
    boxes.velocities_ref_mps[0] = float("nan")
    number = sum(len(each.labels) for each in batch.targets["boxes"])
    assert ours.counts(batch)["boxes"] == number + 2
    assert official.counts(batch)["boxes"] == number
    grid = BEVGrid((-50.0, -50.0, -5.0, 50.0, 50.0, 3.0), (4, 4))
    torch.manual_seed(0)
    head = ours.head((BEVSpec(16, 1, grid),))
    outputs = head(torch.randn(2, 16, 4, 4))
    losses = [one.loss(outputs, batch) for one in (ours, official)]
    assert all(bool(loss.isfinite()) for found in losses for loss in found.values())
    # Nothing of box 0 is left, so that its other numbers no longer matter.
    boxes.centers_ref_m[0, 2] += 3.0
    again = [one.loss(outputs, batch) for one in (ours, official)]
    assert float(again[0]["boxes"].detach()) != float(losses[0]["boxes"].detach())
