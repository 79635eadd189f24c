"""Drives as moving pictures."""

import io

import numpy as np
import pytest
from data.toy_drives import write_nuscenes
from PIL import Image

from allsight.data.driving.statistics import drive_statistics
from allsight.data.inspection import draw_rig, drive_sheet, ego_path, mosaic, survey
from allsight.data.readers import open_reader
from allsight.types import Boxes3DAnswer
from allsight.view.drives import draw_answers, drive_gif, to_gif


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    root = tmp_path_factory.mktemp("drives")
    write_nuscenes(root, {"train": {"scene-0001": 3}})
    return open_reader(f"nuscenes:{root}")


def test_a_clip_becomes_a_gif(reader, tmp_path):
    assert drive_gif(reader, range(3), tmp_path / "drive.gif", tile_px=80, seconds=0.2) == 3
    with Image.open(tmp_path / "drive.gif") as gif:
        assert gif.n_frames == 3 and gif.info["duration"] == 200
    with pytest.raises(ValueError, match="at least one picture"):
        to_gif([], 1.0)


def test_frames_of_a_gif_may_differ_in_size():
    shades = [np.full((4 + n, 9 - n, 3), 90 * n, np.uint8) for n in range(2)]
    with Image.open(io.BytesIO(to_gif(shades, 0.1))) as gif:
        assert gif.size == (9, 5) and gif.n_frames == 2


def test_the_cars_way_leads_through_where_it_is(reader):
    path = ego_path(reader, 1)
    own = np.linalg.inv(reader.frame(1).ego_from_ref)[:2, 3]
    assert path.shape == (3, 2) and np.allclose(path[1], own, atol=1e-6)


def test_answers_below_the_score_are_not_drawn(reader):
    sample, frame = reader[0], reader.frame(0)
    boxes = frame.boxes
    facts = (boxes.centers_m, boxes.sizes_lwh_m, boxes.yaw_rad, boxes.velocities_mps, boxes.labels)

    def drawn(score):
        scores = np.full(len(boxes), score)
        answer = Boxes3DAnswer(
            sample.id, "t", *facts, scores, frame.ego_from_ref, frame.world_from_ref, reader.classes
        )
        return draw_answers(sample, [answer], tile_px=80)

    key_px = drawn(0.9).shape[0] - drawn(0.1).shape[0]
    assert key_px > 0  # The names of classes below.
    assert np.array_equal(drawn(0.9), draw_rig(sample, reader.classes, tile_px=80))


def test_inspection_shows_drives_and_counts_their_boxes(reader):
    assert np.array_equal(mosaic(reader), drive_sheet(reader, 3))
    found = survey([reader]).splits["train"]
    assert found.counted["boxes"]["car"] == 6 and not found.duplicates and not found.unusable


def test_statistics_tell_way_time_and_speed(reader):
    found = drive_statistics(reader)
    assert (found.scenes, found.samples, found.boxes) == (1, 3, 18) and found.seconds == pytest.approx(1.0)
    assert found.metres == pytest.approx(6.3, abs=0.3) and found.turn_rad == pytest.approx(0.1, abs=0.01)
    assert found.cameras == {"CAM_FRONT": 3, "CAM_BACK": 3}
    assert found.classes["car"].boxes == 6 and found.classes["car"].moving == 1
    assert sum(sum(one.rings) for one in found.classes.values()) == 18
