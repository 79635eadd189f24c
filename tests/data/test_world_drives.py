"""Generated drives: the truth is that of the pictures, and the tables are those of nuScenes."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from allsight.data.driving.masks import PROTOCOLS, MapMasks
from allsight.data.driving.vector_map import read_nuscenes_map
from allsight.data.driving.vocabulary import CLASSES
from allsight.data.readers.nuscenes import NuScenes
from allsight.data.world.drives import Drives, Painter, generate_drives, sample_drive
from allsight.data.world.drives.drive import pose
from allsight.data.world.drives.generate import LEAST_PX
from allsight.data.world.drives.models import MODELS
from allsight.data.world.drives.road import Road
from allsight.data.world.drives.sampling import CAMERA_YAWS_DEG
from allsight.types import BEVGrid, Boxes3D, Rig

SMALL = Drives.Config(seed=3, hw_px=(48, 80), train=3, val=2, frames=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_drives(tmp_path_factory.mktemp("drives") / "set", SMALL)


def fingerprint(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes_with_one_or_two_workers(root: Path, tmp_path: Path):
    again = fingerprint(generate_drives(tmp_path / "again", SMALL, workers=2))
    assert again == fingerprint(root)
    other = fingerprint(generate_drives(tmp_path / "other", SMALL.model_copy(update={"seed": 4})))
    assert {name for name in other if again.get(name) == other[name]} <= {
        f"v1.0-world/{table}.json"
        for table in (
            "attribute",
            "category",
            "visibility",
            "sensor",
            "log",
            "map",
            "scene",
            "sample",
            "splits",
        )
    } | {"maps/empty.png"}


@pytest.mark.parametrize("curvature", [0.0, 1 / 25, -1 / 60])
def test_places_on_a_road_are_found_again(curvature: float):
    road = Road(30.0, -20.0, 0.7, curvature, 30.0 if curvature else 0.0)
    s, d = np.meshgrid(np.linspace(-40, 70, 60), np.linspace(-9, 9, 20))
    x, y, _ = road.place(s, d)
    found_s, found_d = road.locate(x, y)
    assert np.abs(found_s - s).max() < 1e-3
    assert np.abs(found_d - d).max() < 1e-3


def test_nothing_touches_anything():
    for index in range(6):
        drive = sample_drive(Drives.Config(), "train", index)
        for frame in range(drive.frames):
            places = np.array([thing.track.at(drive.time_s(frame))[:2] for thing in drive.things])
            reach = np.array([0.45 * min(thing.size_lwh_m[:2]) for thing in drive.things])
            apart = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
            np.fill_diagonal(apart, np.inf)
            assert (apart > reach[:, None] + reach[None]).all()


def test_a_thing_is_painted_where_its_box_says():
    checked = 0
    for index in range(3):
        drive = sample_drive(Drives.Config(noise=0.0), "train", index)
        drive = replace(drive, weather=replace(drive.weather, direct=0.0))
        with_all = Painter(drive).take(1)
        for number, thing in enumerate(drive.things):
            others = replace(drive, things=drive.things[:number] + drive.things[number + 1 :])
            seen = {camera: shot.pixels.get(number, 0) for camera, shot in with_all.items()}
            camera = max(seen, key=seen.__getitem__)
            if seen[camera] < 60:
                continue
            lens = drive.rig[camera]
            change = np.abs(
                with_all[camera].picture.astype(int) - Painter(others).take(1)[camera].picture.astype(int)
            ).max(axis=2)
            rows, columns = np.nonzero(change > 8)
            x, y, heading = thing.track.at(drive.time_s(1))
            signs = np.array([[a, b, c, 2] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]) / 2
            corners = pose(x, y, heading, thing.size_lwh_m[2] / 2) @ (signs * [*thing.size_lwh_m, 1.0]).T
            world_from_cam = drive.world_from_ego(drive.time_s(1) + lens.delay_s) @ lens.ego_from_cam
            local = (np.linalg.inv(world_from_cam) @ corners)[:3]
            if local[2].min() < 0.5:
                continue
            pixels = lens.intrinsics @ local
            low, high = (pixels[:2] / pixels[2]).min(axis=1), (pixels[:2] / pixels[2]).max(axis=1)
            assert low[0] - 2 < columns.min() and columns.max() < high[0] + 2
            assert low[1] - 2 < rows.min() and rows.max() < high[1] + 2
            # What is not hidden fills the box's outline to a good part.
            area = np.prod(np.minimum(high, lens.hw_px[::-1]) - np.maximum(low, 0))
            assert seen[camera] > 0.12 * area * seen[camera] / max(with_all[camera].alone[number], 1)
            checked += 1
    assert checked > 8


def test_every_class_has_its_share_of_what_is_seen():
    counts: dict[str, int] = dict.fromkeys(CLASSES, 0)
    for index in range(24):
        drive = sample_drive(Drives.Config(noise=0.0), "train", index)
        shots = Painter(drive).take(0)
        for number, thing in enumerate(drive.things):
            counts[thing.name] += sum(shot.pixels.get(number, 0) for shot in shots.values()) >= LEAST_PX
    assert min(counts.values()) >= 0.04 * sum(counts.values()), counts


def test_the_reader_finds_boxes_speeds_and_poses(root: Path):
    reader = NuScenes(root, "train", min_points=0)
    assert reader.sequences == (3, 3, 3)
    assert reader.cameras == tuple(CAMERA_YAWS_DEG)
    moving = 0
    for row in range(len(reader)):
        drive = sample_drive(SMALL, "train", row // 3)
        sample = reader[row]
        ego = drive.world_from_ego(drive.time_s(row % 3))
        rig, boxes = sample.inputs["rig"], sample.targets["boxes"]
        assert isinstance(rig, Rig) and isinstance(boxes, Boxes3D)
        world_from_ref = np.asarray(rig.world_from_ref)
        places = (world_from_ref @ np.c_[boxes.centers_ref_m, np.ones(len(boxes.labels))].T)[:2].T
        tracks = [thing.track.at(drive.time_s(row % 3)) for thing in drive.things]
        for place, label, speed in zip(places, boxes.labels, boxes.velocities_ref_mps, strict=True):
            away = [np.hypot(*(place - track[:2])) for track in tracks]
            thing = drive.things[int(np.argmin(away))]
            assert min(away) < 1e-3 and CLASSES[int(label)] == thing.name
            true = np.hypot(thing.track.speed_s_mps, thing.track.speed_d_mps)
            if torch.isfinite(speed).all():
                # On a bend the middle of a thing is faster or slower than the road's middle line.
                assert abs(float(speed.norm()) - true) < 0.05 + 0.6 * true
                moving += true > 0
        assert np.allclose(world_from_ref[:2, 3], (ego @ [0.94, 0, 0, 1])[:2], atol=1e-6)
    assert moving > 5


def test_the_map_is_that_of_the_street(root: Path):
    drive = sample_drive(SMALL, "train", 0)
    vector_map = read_nuscenes_map(root / "maps/expansion/singapore-onenorth.json")
    grid = BEVGrid((-40.0, -40.0, -5.0, 40.0, 40.0, 3.0), (160, 160))
    ego = drive.world_from_ego(0.0)
    masks = MapMasks(grid, PROTOCOLS["bevfusion"]).of("a", ego, vector_map, {})
    road = masks.masks[list(PROTOCOLS["bevfusion"]).index("drivable_area")].numpy()
    at = (np.arange(160) + 0.5) * 0.5 - 40
    x, y = np.meshgrid(at, at)
    places = ego @ np.stack([x.ravel(), y.ravel(), np.zeros(x.size), np.ones(x.size)])
    expected = np.zeros(x.size, dtype=bool)
    for lane in drive.street.roads:
        _, d = lane.locate(places[0], places[1])
        expected |= (d > lane.carriageway[0]) & (d < lane.carriageway[1])
    assert (road.ravel() == expected).mean() > 0.99
    assert 0.1 < road.mean() < 0.9
    assert road[80, 80], "the car is on the road"


def test_a_folder_in_use_is_refused(root: Path):
    from allsight.config import ConfigError

    with pytest.raises(ConfigError, match="not an empty folder"):
        generate_drives(root, SMALL)


def test_every_class_of_the_benchmark_has_a_model_that_shows_its_heading():
    assert set(MODELS) == set(CLASSES)
    for name in ("car", "truck", "bus", "motorcycle", "construction_vehicle"):
        sides = {patch.side for part in MODELS[name].parts for patch in part.patches}
        assert {"front", "back"} <= sides or name == "construction_vehicle"
