"""Boxes in space over pictures, and from above."""

import numpy as np
import pytest

from allsight import draw

MATRIX = np.array([[50.0, 0, 40, 0], [0, 50, 30, 0], [0, 0, 1, 0]])
RED = (255, 0, 0)


def box(x, y, z, size=2.0):
    """Corners around a point of a camera that looks along z."""
    signs = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)])
    return signs * size / 2 + np.array([x, y, z])


def drawn(*boxes):
    picture = np.zeros((60, 80, 3), dtype=np.uint8)
    return (
        draw.draw_boxes3d(picture, np.array(boxes).reshape(-1, 8, 3), MATRIX, [RED] * len(boxes))[..., 0] > 0
    )


def test_edges_lie_where_their_corners_project():
    found = drawn(box(0, 0, 10))
    rows, columns = np.nonzero(found)
    # The near face, 9 m away, is the largest: 50 / 9 pixels each way.
    assert (columns.min(), columns.max()) == (pytest.approx(40 - 5.6, abs=1), pytest.approx(40 + 5.6, abs=1))
    assert (rows.min(), rows.max()) == (pytest.approx(30 - 5.6, abs=1), pytest.approx(30 + 5.6, abs=1))
    assert not found[30, 36]


def test_what_is_behind_the_camera_is_not_drawn():
    assert not drawn(box(0, 0, -10)).any() and not drawn(box(200, 0, 10)).any()


def test_a_box_around_the_camera_is_cut_at_its_plane():
    found = drawn(box(0, 0, 0.5, 3.0))
    assert found.any()
    # Its far face is 2 m away and 3 m wide, so its edges are at 40 +- 37.5 pixels.
    assert found[30, [2, 3]].any() and not found[30, 30:39].any()


def test_numbers_that_are_none_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        drawn(np.full((8, 3), np.nan))
    with pytest.raises(ValueError, match="2 colors for 1 boxes"):
        draw.draw_boxes3d(np.zeros((9, 9, 3), np.uint8), box(0, 0, 5)[None], MATRIX, [RED, RED])


def test_ahead_is_up_and_left_is_left():
    view = draw.BEVView.square(20, 80)
    corners = np.array([[[12.0, 9], [12, 7], [8, 7], [8, 9]]])
    panel = draw.draw_bev(view, corners, [RED], velocities_mps=np.array([[np.nan, np.nan]]), filled=True)
    rows, columns = np.nonzero((panel == RED).all(-1))
    assert rows.mean() == pytest.approx(40 - 20, abs=1) and columns.mean() == pytest.approx(40 - 16, abs=1)


def test_the_ground_is_the_map_turned_into_the_cars_frame():
    view = draw.BEVView.square(10, 40)
    masks = np.zeros((1, 20, 20), dtype=bool)
    masks[0, 15:, :] = True  # y > 5 of a frame whose y is ahead
    ref_from_ego = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    ground = draw.bev_ground(view, masks, (-10, -10, 10, 10), [RED], ref_from_ego)
    assert (ground[:10] == RED).all() and not (ground[10:] == RED).all(-1).any()


def test_cameras_stand_as_seen_from_the_car():
    images = [np.full((20, 40, 3), shade, np.uint8) for shade in (10, 60, 110, 160)]
    sheet = draw.surround(images, ["a", "b", "c", "d"], np.array([0.5, -0.5, -2.6, 2.6]), tile_px=40)
    assert sheet[18, 35, 0] == 10 and sheet[18, 80, 0] == 60
    assert sheet[-2, 35, 0] == 160 and sheet[-2, 80, 0] == 110
    panel = np.zeros((50, 50, 3), np.uint8)
    assert draw.surround(images, "abcd", np.zeros(4), panel=panel, tile_px=40).shape[0] == sheet.shape[0]
