"""Vector maps as masks: against a slow test of each cell, and on a real map."""

import json
import os
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from allsight.data.driving.masks import PROTOCOLS, MapClass, MapMasks, ground_pose
from allsight.data.driving.raster import draw_lines, fill_polygons
from allsight.data.driving.vector_map import VectorMap, read_map
from allsight.data.driving.writer import write_map_expansion
from allsight.types import BEVGrid, DataError

GRID = BEVGrid((-10, -8, -5, 12, 9, 3), (17, 44))


def middles(grid=GRID):
    return grid.centers_m(torch.zeros(1, dtype=torch.float64)).numpy().reshape(*grid.hw, 2)


def winds_odd(points, ring):
    """Whether each point lies inside a ring: crossings of a ray to the right, one edge at a time."""
    inside = np.zeros(points.shape[:-1], dtype=bool)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        crosses = (y0 > points[..., 1]) != (y1 > points[..., 1])
        with np.errstate(divide="ignore", invalid="ignore"):
            at = x0 + (points[..., 1] - y0) / (y1 - y0) * (x1 - x0)
        inside ^= crosses & (points[..., 0] < at)
    return inside


@pytest.mark.parametrize("seed", range(6))
def test_polygons_with_holes_fill_the_cells_whose_middle_is_inside(seed):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    rays = np.stack([np.cos(angles), np.sin(angles)], 1)
    outline = rays * rng.uniform(4, 14, (9, 1)) + rng.uniform(-4, 4, 2)
    hole = rays[::-1] * 2 + outline.mean(0)
    expected = winds_odd(middles(), outline) ^ winds_odd(middles(), hole)
    assert np.array_equal(fill_polygons([[outline, hole]], GRID), expected)
    # Two that overlap are one area.
    other = outline + 3
    both = fill_polygons([[outline], [other]], GRID)
    assert np.array_equal(both, winds_odd(middles(), outline) | winds_odd(middles(), other))


def test_a_rectangle_of_whole_cells_fills_just_these():
    mask = fill_polygons([[np.array([[-2.0, -3], [3, -3], [3, 2], [-2, 2]])]], GRID)
    x, y = middles()[..., 0], middles()[..., 1]
    assert np.array_equal(mask, (x > -2) & (x < 3) & (y > -3) & (y < 2)) and mask.sum() == 50


@pytest.mark.parametrize("polygon", [np.zeros((0, 2)), np.array([[0.0, 0], [1, 1]]), np.full((4, 2), 1e7)])
def test_what_has_no_area_here_fills_nothing(polygon):
    assert not fill_polygons([[polygon]], GRID).any()


@pytest.mark.parametrize("seed", range(4))
def test_lines_cover_the_cells_within_half_their_width(seed):
    rng = np.random.default_rng(seed)
    line = rng.uniform(-14, 14, (5, 2))
    distance = np.full(GRID.hw, np.inf)
    for start, end in pairwise(line):
        along = end - start
        at = np.clip(((middles() - start) @ along) / (along @ along), 0, 1)
        distance = np.minimum(distance, np.linalg.norm(middles() - start - at[..., None] * along, axis=-1))
    assert np.array_equal(draw_lines([line], 1.5, GRID), distance <= 0.75)


def test_a_point_twice_is_a_dot():
    assert draw_lines([np.array([[0.25, 0.5], [0.25, 0.5]])], 0.6, GRID).sum() == 1


def turned_map():
    """A road 4 m wide along a world that the car crosses at 30 degrees."""
    yaw, place = np.radians(30), np.array([100.0, 50.0])
    along, across = np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])
    corners = [(-40, -2), (40, -2), (40, 2), (-40, 2)]
    outline = np.array([place + a * along + b * across for a, b in corners])
    divider = np.array([place - 40 * along, place + 40 * along])
    pose = np.eye(4)
    pose[:2, :2] = np.stack([along, across], 1)
    pose[:2, 3] = place
    return outline, divider, pose


def test_maps_lie_in_the_reference_frame(tmp_path):
    outline, divider, pose = turned_map()
    file = tmp_path / "maps/expansion/singapore-onenorth.json"
    write_map_expansion(file, {"drivable_area": [[outline]]}, {"lane_divider": [divider]})
    grid = BEVGrid((-10, -8, -5, 10, 8, 3), (32, 40))
    masks = MapMasks(grid, PROTOCOLS["lift_splat"], cache=tmp_path / "cache")
    car = np.array([[1.0, 6], [3, 6], [3, 7], [1, 7]])
    found = masks.of("a", pose, read_map(file), {"car": [car], "bus": [car - 10]})
    by_name = dict(zip(found.classes, found.masks.numpy(), strict=True))
    y = middles(grid)[..., 1]
    assert np.array_equal(by_name["road"], np.abs(y) < 2)
    assert np.array_equal(by_name["lane"], np.abs(y) <= 0.5)
    assert by_name["car"].sum() == 8 and by_name["vehicles"].sum() == 16 - 0 * 8
    # A second look needs neither map nor boxes.
    again = masks.of("a", pose, None, {})
    assert torch.equal(again.masks, found.masks) and len(list((tmp_path / "cache").iterdir())) == 1


def test_the_ground_pose_has_no_tilt():
    tilted = np.eye(4)
    tilted[:3, :3] = [[0.9, 0.1, 0.2], [-0.05, 0.99, 0], [-0.2, 0, 0.98]]
    pose = ground_pose(tilted)
    assert np.allclose(pose[:2, :2] @ pose[:2, :2].T, np.eye(2)) and pose[1, 0] < 0


def test_what_is_wrong_with_a_map_is_said(tmp_path):
    outline, divider, _ = turned_map()
    file = tmp_path / "map.json"
    with pytest.raises(DataError, match=r"map\.json: no such map"):
        read_map(file)
    write_map_expansion(file, {"drivable_area": [[outline]]}, {"lane_divider": [divider]})
    tree = json.loads(file.read_text())
    lost = tree["node"].pop(0)["token"]
    file.write_text(json.dumps(tree))
    with pytest.raises(DataError, match=lost):
        read_map(file)
    with pytest.raises(DataError, match="no layer 'walkway'; it has road"):
        list(VectorMap({"road": []}, {}).near(("walkway",), np.zeros(2), np.ones(2)))


def real_masks(real_data, cells=200):
    poses = np.load(real_data / "driving/av2_log/ego_poses.npz")
    from allsight.data.driving.poses import poses as matrices

    place = len(poses["timestamp_ns"]) // 2
    pose = matrices(poses["translation_xyz"][place], poses["quat_wxyz"][place])
    vector_map = read_map(real_data / "driving/av2_log/map.json")
    classes = {"road": MapClass(("drivable_area",)), "lane": MapClass(("lane_divider",))}
    grid = BEVGrid((-50, -50, -5, 50, 50, 3), (cells, cells))
    return vector_map, pose, grid, MapMasks(grid, classes, 0.5).of("x", pose, vector_map, {})


def test_the_real_car_drives_on_the_real_road(real_data):
    _, _, grid, found = real_masks(real_data)
    road, lane = found.masks.numpy()
    middle = slice(grid.hw[0] // 2 - 2, grid.hw[0] // 2 + 2)
    assert road[middle, middle].all() and 0.1 < road.mean() < 0.6
    assert 0.002 < lane.mean() < 0.1 and (lane & road).sum() > 0.9 * lane.sum()


@pytest.mark.slow
def test_the_real_road_is_that_of_shapely(real_data):
    """Needs shapely, installed or in the folder ALLSIGHT_DEVKIT."""
    if "ALLSIGHT_DEVKIT" in os.environ and os.environ["ALLSIGHT_DEVKIT"] not in sys.path:
        sys.path.append(os.environ["ALLSIGHT_DEVKIT"])
    shapely = pytest.importorskip("shapely")
    vector_map, pose, grid, found = real_masks(real_data, 100)
    ground = ground_pose(pose)
    points = middles(grid) @ ground[:2, :2].T + ground[:2, 2]
    shapes = [shapely.Polygon(outline, holes) for outline, *holes in vector_map.areas["drivable_area"]]
    inside = np.any([shapely.contains_xy(shape, points[..., 0], points[..., 1]) for shape in shapes], axis=0)
    assert (inside != found.masks[0].numpy()).mean() < 1e-4
    lines = [shapely.LineString(line) for line in vector_map.lines["lane_divider"]]
    near = shapely.distance(shapely.MultiLineString(lines), shapely.points(points)) <= 0.25
    assert (near != found.masks[1].numpy()).mean() < 1e-4
