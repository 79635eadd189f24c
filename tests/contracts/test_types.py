import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch

from allsight.types import (
    Batch,
    Boxes3D,
    CameraRig,
    ClassScores,
    Closed,
    CorruptSample,
    DataError,
    Image,
    InBatch,
    LabelMapAnswer,
    MultiCameraBatch,
    Objects,
    Query,
    Sample,
    Segment,
    Step,
    Text,
    TextAnswer,
    Video,
    Vocabulary,
    class_name,
)


@pytest.fixture
def shapes_are_checked(pytestconfig):
    if not pytestconfig.getoption("jaxtyping_packages"):
        pytest.skip("switched off by --jaxtyping-packages=")


def rig_of(rows=1, cameras=2, **changes):
    """Camera k looks along x from (-k, 0, 0): right is -y, down is -z, focal length 100, centre (50, 40)."""
    intrinsics = torch.tensor([[100.0, 0.0, 50.0], [0.0, 100.0, 40.0], [0.0, 0.0, 1.0]])
    axes = torch.tensor([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])
    matrices = []
    for camera in range(cameras):
        shift = torch.tensor([[0.0], [0.0], [float(camera)]])
        matrices.append(intrinsics @ torch.cat([axes, shift], dim=1))
    values = {
        "img_from_ref": torch.stack(matrices).expand(rows, cameras, 3, 4),
        "ego_from_ref": torch.eye(4).expand(rows, 4, 4),
        "world_from_ref": torch.eye(4).expand(rows, 4, 4),
        "time_s": torch.zeros(rows),
        **changes,
    }
    return CameraRig(**values)


def test_points_project_to_the_pixels_worked_out_by_hand():
    points = torch.tensor([[[10.0, 0.0, 0.0], [10.0, 1.0, -2.0], [-5.0, 0.0, 0.0]]])
    pixels, depth = rig_of().project(points)
    assert pixels.shape == (1, 2, 3, 2)
    # Straight ahead is the centre; 1 m to the left at 10 m is 10 px to the left, 2 m lower is 20 px down.
    torch.testing.assert_close(pixels[0, 0, :2], torch.tensor([[50.0, 40.0], [40.0, 60.0]]))
    # The second camera stands 1 m further back, so 10 m become 11.
    torch.testing.assert_close(pixels[0, 1, 1], torch.tensor([50 - 100 / 11, 40 + 200 / 11]))
    torch.testing.assert_close(depth[0], torch.tensor([[10.0, 10.0, -5.0], [11.0, 11.0, -4.0]]))


def test_a_point_in_the_plane_of_the_camera_projects_to_finite_pixels():
    pixels, depth = rig_of().project(torch.tensor([[[0.0, 3.0, 1.0]]]))
    assert depth[0, 0, 0] == 0
    assert pixels[:, 0].isfinite().all()


def test_corners_of_a_turned_box_are_those_worked_out_by_hand():
    boxes = Boxes3D(
        centers_ref_m=torch.tensor([[10.0, 20.0, 1.0]]),
        sizes_m=torch.tensor([[4.0, 2.0, 1.0]]),
        yaw_rad=torch.tensor([math.pi / 2]),
        velocities_ref_mps=torch.zeros(1, 2),
        labels=torch.zeros(1, dtype=torch.int64),
    )
    corners = boxes.corners_ref_m()
    assert corners.shape == (1, 8, 3)
    # Turned by 90 degrees, the length lies along y: rear is at y = 18, its right side at x = 11.
    torch.testing.assert_close(corners[0, 0], torch.tensor([11.0, 18.0, 0.5]))
    torch.testing.assert_close(corners[0, 1], torch.tensor([11.0, 18.0, 1.5]))
    torch.testing.assert_close(corners[0, 2], torch.tensor([9.0, 18.0, 0.5]))
    torch.testing.assert_close(corners[0, 7], torch.tensor([9.0, 22.0, 1.5]))
    torch.testing.assert_close(corners.mean(dim=1), boxes.centers_ref_m)


def test_boxes_take_further_axes_in_front():
    boxes = Boxes3D(
        torch.randn(2, 5, 3),
        torch.rand(2, 5, 3),
        torch.randn(2, 5),
        torch.full((2, 5, 2), torch.nan),
        torch.zeros(2, 5, dtype=torch.int64),
        torch.rand(2, 5),
    )
    assert boxes.corners_ref_m().shape == (2, 5, 8, 3)


def test_a_wrong_shape_of_a_rig_is_refused(shapes_are_checked):
    with pytest.raises(Exception, match="img_from_ref"):
        rig_of(img_from_ref=torch.zeros(1, 2, 4, 4))
    with pytest.raises(Exception, match="ego_from_ref"):
        rig_of(rows=2, ego_from_ref=torch.eye(4).expand(3, 4, 4))


def test_a_wrong_shape_of_a_batch_or_picture_is_refused(shapes_are_checked):
    with pytest.raises(Exception, match="slots"):
        Batch("t", ("a",), {}, slots=torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(Exception, match="pixels"):
        Image(torch.zeros(4, 4))
    with pytest.raises(Exception, match="images"):
        MultiCameraBatch(torch.zeros(1, 3, 8, 8), rig_of())


def test_a_batch_moves_every_tensor_however_deep():
    rig = MultiCameraBatch(torch.zeros(1, 2, 3, 4, 4, dtype=torch.uint8), rig_of())
    batch = Batch("t", ("a",), {"rig": rig, "pair": (torch.zeros(1), "text")}, {"x": {"y": torch.ones(1)}})
    moved = batch.to("meta")
    assert moved.inputs["rig"].images.is_meta
    assert moved.inputs["rig"].rig.img_from_ref.is_meta
    assert moved.inputs["rig"].rig.is_present is None
    assert moved.inputs["pair"][0].is_meta
    assert moved.inputs["pair"][1] == "text"
    assert moved.targets["x"]["y"].is_meta
    assert moved.slots.is_meta
    assert moved.starts.is_meta
    assert (moved.task, moved.ids) == ("t", ("a",))
    assert not batch.inputs["rig"].images.is_meta


def test_a_batch_without_slots_has_its_rows_as_slots_that_all_start():
    batch = Batch("t", ("a", "b", "c"), {})
    assert len(batch) == 3
    assert batch.slots.tolist() == [0, 1, 2]
    assert batch.starts.tolist() == [True, True, True]
    assert len(Batch("t", (), {})) == 0


def test_batches_steps_and_data_errors_can_be_sent_between_processes():
    batch = Batch("t", ("a",), {"x": torch.ones(1)}, corrupt=(CorruptSample("t", "b", "cut short", "c"),))
    step = Step(3, ("t",), {"t": 1.0}, {"t": 1}, {"t": (batch,)})
    again = pickle.loads(pickle.dumps(step))
    assert again.batches["t"][0].corrupt == batch.corrupt
    assert again.batches["t"][0].inputs["x"].tolist() == [1.0]
    error = pickle.loads(pickle.dumps(DataError("train/x.jpg: cut short", "train/x.jpg")))
    assert (str(error), error.sample_id) == ("train/x.jpg: cut short", "train/x.jpg")


def test_a_batch_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Batch("t", ("a",), {}).task = "u"


def test_a_sample_of_a_picture_has_it_as_its_image():
    sample = Sample.of_image("a", torch.zeros(3, 4, 5, dtype=torch.uint8), {"label": 1})
    assert sample.image.hw_px == (4, 5)
    assert sample.targets == {"label": 1}


def test_pixels_of_another_type_and_samples_without_a_picture_say_so():
    with pytest.raises(
        ValueError, match=r"sample 'a': pixels must be uint8 or floating point, got torch.int64"
    ):
        Sample.of_image("a", torch.zeros(3, 4, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"sample 'a' has no input 'image'; it has \['text'\]"):
        _ = Sample("a", {"text": Text("hello")}).image


def test_objects_are_selected_with_all_that_belongs_to_them():
    objects = Objects(
        torch.arange(12.0).view(3, 4), torch.tensor([5, 6, 7]), torch.eye(3).bool()[:, None].expand(3, 2, 3)
    )
    chosen = objects.select(torch.tensor([True, False, True]))
    assert len(chosen) == 2
    assert chosen.labels.tolist() == [5, 7]
    assert chosen.masks.shape == (2, 2, 3)
    assert chosen.is_crowd is None
    assert objects.select(torch.tensor([2])).boxes_xyxy_px.tolist() == [[8.0, 9.0, 10.0, 11.0]]


def test_a_video_has_a_time_for_each_frame_else_its_shape_is_refused(shapes_are_checked):
    Video(torch.zeros(4, 3, 2, 2), torch.arange(4.0))
    with pytest.raises(Exception, match="times_s"):
        Video(torch.zeros(4, 3, 2, 2), torch.arange(3.0))


@pytest.mark.parametrize("among", [Vocabulary(), Closed("k", (Segment("text", torch.zeros(3, 2)),))])
def test_a_query_holds_its_segments_and_candidates(among):
    image, text = Segment("image", torch.zeros(2, 3, 4, 4)), Segment("text", torch.zeros(2, 5), causal=True)
    query = Query((image, text), among, read=1, labels=torch.zeros(2, 5, dtype=torch.int64))
    assert query.inputs[query.read].causal
    assert query.temperature == ""
    assert Query((image,), InBatch((text,))).labels is None


def test_a_mask_of_another_shape_than_its_segment_is_refused(shapes_are_checked):
    with pytest.raises(Exception, match="mask"):
        Segment("text", torch.zeros(2, 5), mask=torch.ones(3, 5, dtype=torch.bool))


def test_class_scores_list_the_likeliest_first_and_the_lower_index_on_ties():
    scores = np.array([0.2, 0.4, 0.4], dtype=np.float32)
    assert [name for name, _ in ClassScores("a", "t", scores, ("x", "y", "z")).top(2)] == ["y", "z"]
    assert ClassScores("a", "t", scores).top(1)[0][0] == "class 1"
    with pytest.raises(ValueError, match="top: k: expected at least 1, got -1"):
        ClassScores("a", "t", scores).top(-1)
    assert ClassScores("a", "t", scores).to_json()["top"][0] == ["class 1", pytest.approx(0.4)]


def test_a_label_map_says_what_covers_how_much():
    answer = LabelMapAnswer("a", "t", np.array([[0, 0, 1], [0, 255, 1]], dtype=np.uint8), ("sky", "road"))
    assert list(answer.shares().items()) == [
        ("sky", 0.5),
        ("road", pytest.approx(1 / 3)),
        ("class 255", 1 / 6),
    ]
    assert answer.to_json()["size_hw_px"] == [2, 3]
    assert answer.arrays()["label_map"].shape == (2, 3)
    assert TextAnswer("a", "t", "hi").to_json()["kind"] == "text"


def test_a_class_without_a_name_is_told_by_its_number():
    assert class_name(281, ("cat",)) == "class 281"
    assert class_name(0, ("cat",)) == "cat"
