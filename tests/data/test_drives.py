"""Drives: nuScenes tables and infos.json, and what is wrong with them."""

import json
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import simplejpeg
import torch
from data.toy_drives import HEIGHT, RIG, WIDTH, boxes_at, car_at, write_infos, write_nuscenes

from allsight.data.driving.index import open_index
from allsight.data.driving.mapped import Chunks, Clips
from allsight.data.driving.poses import heading, inverse, moved
from allsight.data.readers import open_reader
from allsight.data.transforms import Compose, ResizeRig
from allsight.models.bevformer.alignment import official_can_bus
from allsight.tasks.rigs import NoStreams
from allsight.types import DataError, MultiCameraBatch


def edited(file, change):
    """Change the parsed content of a json file in place."""
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))


@pytest.fixture
def tables(tmp_path):
    write_nuscenes(tmp_path)
    return tmp_path


def test_box_centers_fall_on_the_pixels_that_the_chain_of_poses_gives(tables):
    reader = open_reader(f"nuscenes:{tables}")
    frame = reader.frame(1)
    written = boxes_at(0.5, 10)
    for shot, (name, camera), late in zip(frame.shots, RIG.items(), (0.02, 0.04), strict=True):
        assert shot.name == name and shot.hw_px == (HEIGHT, WIDTH)
        world_from_cam = car_at(0.5 + late) @ camera.ego_from_cam
        for box, center in zip(written, frame.boxes.centers_m, strict=True):
            in_camera = camera.intrinsics @ moved(inverse(world_from_cam), np.asarray(box.center_m))
            assert np.allclose(shot.img_from_ref @ [*center, 1], in_camera, atol=1e-8)


def test_boxes_stand_in_the_reference_frame_with_their_velocities(tables):
    frame = open_reader(f"nuscenes:{tables}").frame(0)
    world_from_ref = frame.world_from_ref
    # LiDAR: x right, y ahead.
    assert np.allclose(frame.ego_from_ref[:3, 1], [1, 0, 0])
    for place, (now, later) in enumerate(zip(boxes_at(0.0, 10), boxes_at(0.5, 10), strict=True)):
        assert np.allclose(moved(world_from_ref, frame.boxes.centers_m[place]), now.center_m, atol=1e-9)
        assert np.allclose(frame.boxes.sizes_lwh_m[place], now.size_lwh_m)
        yaw = heading(inverse(world_from_ref)[:3, :3] @ now.rotation)
        assert np.isclose(frame.boxes.yaw_rad[place], yaw)
        speed = (np.asarray(later.center_m) - now.center_m)[:2] / 0.5
        flat = inverse(world_from_ref)[:3, :3] @ [*speed, 0]
        assert np.allclose(frame.boxes.velocities_mps[place], flat[:2])


def test_a_box_seen_once_has_no_velocity(tables):
    alone = open_reader(f"nuscenes:{tables}")[2].targets["boxes"]
    assert bool(alone.velocities_ref_mps.isnan().all())


def test_scenes_stay_whole_and_splits_are_those_of_the_file(tables):
    train, val = (open_reader(f"nuscenes:{tables}", split=split) for split in ("train", "val"))
    assert train.sequences == (2, 1) and val.sequences == (2,)
    assert [train.frame(n).scene for n in range(3)] == ["scene-0001", "scene-0001", "scene-0002"]
    assert train.frame(0).time_s < train.frame(1).time_s


def test_official_splits_need_no_file(tmp_path):
    write_nuscenes(tmp_path, {"x": {"scene-0103": 1, "scene-0061": 1, "scene-0553": 2}}, version="v1.0-mini")
    (tmp_path / "v1.0-mini/splits.json").unlink()
    assert [open_reader(str(tmp_path), split=s).sequences for s in ("train", "mini_val")] == [(1, 2), (1,)]
    with pytest.raises(DataError, match="no split 'test'; there are: train, val"):
        open_reader(f"nuscenes:{tmp_path}", split="test")


def test_a_kept_index_gives_the_same_and_is_made_anew_when_a_table_changes(tables):
    plain = open_reader(f"nuscenes:{tables}")
    kept = open_reader(f"nuscenes:{tables}", index=True)
    again = pickle.loads(pickle.dumps(open_reader(f"nuscenes:{tables}", index=True)))
    assert isinstance(again.index.box_center, np.memmap)
    for reader in (kept, again):
        for n in range(3):
            assert np.array_equal(reader.frame(n).boxes.centers_m, plain.frame(n).boxes.centers_m)
    edited(tables / "v1.0-toy/sample_annotation.json", lambda rows: rows[0].update(num_lidar_pts=999))
    assert 999 in open_index(tables / "v1.0-toy", kept=True)[0].box_points


def as_jpegs(tables):
    """Smooth pictures, each another, in place of those that are there."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for number, file in enumerate(sorted((tables / "samples").rglob("*.jpg"))):
        waves = [
            127 + 100 * np.sin((rows * a + columns * b + number) / 5) for a, b in ((1, 0), (0, 1), (1, 1))
        ]
        file.write_bytes(simplejpeg.encode_jpeg(np.stack(waves, -1).astype(np.uint8), quality=95))


@pytest.mark.parametrize("how", ["exact", "bottom"])
@pytest.mark.parametrize("wrap", [lambda r: r, lambda r: Clips(r, 2), lambda r: Chunks(r, 2), NoStreams])
def test_pictures_decoded_smaller_show_the_same_at_the_same_place(tables, wrap, how):
    as_jpegs(tables)
    reader = wrap(open_reader(f"nuscenes:{tables}"))
    step = ResizeRig((HEIGHT // 2 - 1, WIDTH // 2), how)
    smaller = Compose(step)

    def least(height, width):
        return smaller.least_hw_px(height, width, lambda: None)

    for index in range(min(2, len(reader))):
        whole, reduced = reader[index], reader.reduced(index, least)
        assert len(whole.views) == len(reduced.views)
        assert reduced.inputs["rig"].images[0].hw_px == (HEIGHT // 2, WIDTH // 2)
        shown, same = (step(sample, np.random.default_rng(0)) for sample in (whole, reduced))
        rigs = [[sample.inputs["rig"], *(view["rig"] for view in sample.views)] for sample in (shown, same)]
        for one, other in zip(*rigs, strict=True):
            assert torch.allclose(one.img_from_ref, other.img_from_ref, rtol=1e-5, atol=1e-4)
            for a, b in zip(one.images, other.images, strict=True):
                assert a.hw_px == b.hw_px
                assert (a.pixels.float() - b.pixels.float()).abs().mean() < 6


def test_pictures_of_which_more_is_wanted_are_decoded_whole(tables):
    as_jpegs(tables)
    reader = open_reader(f"nuscenes:{tables}")
    whole, asked = reader[1], reader.reduced(1, lambda height, width: (height // 2 + 1, width // 2))
    assert torch.equal(whole.inputs["rig"].img_from_ref, asked.inputs["rig"].img_from_ref)
    for a, b in zip(whole.inputs["rig"].images, asked.inputs["rig"].images, strict=True):
        assert torch.equal(a.pixels, b.pixels)


def test_filters_leave_boxes_out_and_say_so(tables):
    reader = open_reader(f"nuscenes:{tables}", classes=("bus", "car"))
    labels = reader[0].targets["boxes"].labels
    assert reader.classes == ("bus", "car") and sorted(labels.tolist()) == [0, 1, 1]
    assert "9 boxes of other classes" in reader.notes[0]
    assert len(open_reader(f"nuscenes:{tables}", min_points=1000)[0].targets["boxes"].labels) == 0
    near = open_reader(f"nuscenes:{tables}", range_m=15.0)[0].targets["boxes"].centers_ref_m
    assert len(near) < 6 and bool((near[:, :2].abs() <= 15).all())


def test_what_the_car_measured_is_read_where_it_is_there(tables):
    rig = open_reader(f"nuscenes:{tables}", can_bus=True)[1].inputs["rig"]
    assert rig.can_bus[7:16].tolist() == [0.1, 0, 9.8, 0, 0, 0.2, 6, 0, 0]
    # Place and heading are those that the model would make of the pose.
    batch = MultiCameraBatch.of([replace(rig, can_bus=None)])
    without = official_can_bus(batch.rig)[0]
    kept = [n for n in range(18) if not 7 <= n < 16]
    torch.testing.assert_close(rig.can_bus[kept], without[kept], rtol=1e-6, atol=1e-5)
    (tables / "can_bus/scene-0003_pose.json").unlink()
    rig = open_reader(f"nuscenes:{tables}", split="val", can_bus=True)[0].inputs["rig"]
    assert not rig.can_bus[7:16].any() and rig.can_bus[:3].any()


def test_the_attitude_of_the_table_keeps_its_sign(tables):
    """A network that was trained on the numbers tells the two quaternions of a turn apart."""
    signs = []
    for factor in (1, -1):
        edited(
            tables / "v1.0-toy/ego_pose.json",
            lambda rows, factor=factor: [
                row.update(rotation=[factor * value for value in row["rotation"]]) for row in rows
            ],
        )
        signs.append(open_reader(f"nuscenes:{tables}", can_bus=True)[1].inputs["rig"].can_bus[3:7])
    torch.testing.assert_close(signs[1], -signs[0])


@pytest.mark.parametrize(
    ("table", "row", "field", "other"),
    [
        ("sample_annotation", 3, "instance_token", "instance"),
        ("sample_annotation", 0, "next", "sample_annotation"),
        ("sample_data", 1, "ego_pose_token", "ego_pose"),
        ("sample_data", 1, "sample_token", "sample"),
        ("sample_data", 1, "calibrated_sensor_token", "calibrated_sensor"),
        ("calibrated_sensor", 1, "sensor_token", "sensor"),
        ("sample", 1, "scene_token", "scene"),
        ("scene", 1, "log_token", "log"),
        ("instance", 1, "category_token", "category"),
    ],
)
def test_a_token_that_no_row_has_is_named(tables, table, row, field, other):
    edited(tables / f"v1.0-toy/{table}.json", lambda rows: rows[row].update({field: "lost"}))
    with pytest.raises(
        DataError, match=rf"{table}.json: row .*{field} is 'lost', which no row of {other}"
    ) as caught:
        open_reader(f"nuscenes:{tables}")
    assert "\n" not in str(caught.value)


def test_damaged_and_missing_tables_are_named(tables):
    file = tables / "v1.0-toy/ego_pose.json"
    text = file.read_text()
    file.write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match=r"ego_pose\.json: damaged or cut short"):
        open_reader(f"nuscenes:{tables}")
    file.unlink()
    with pytest.raises(DataError, match=r"no table ego_pose\.json; expected attribute"):
        open_reader(f"nuscenes:{tables}")


@pytest.mark.parametrize("pose", [{"translation": [0, None, 0]}, {"rotation": [0, 0, 0, 0]}])
def test_a_pose_that_is_none_is_named(tables, pose):
    edited(tables / "v1.0-toy/ego_pose.json", lambda rows: rows[2].update(pose))
    with pytest.raises(DataError, match=r"ego_pose\.json: row .* expected 3 and 4 finite numbers"):
        open_reader(f"nuscenes:{tables}")


def test_time_that_goes_backwards_is_an_error_with_the_token(tables):
    def swap(rows):
        rows[0]["timestamp"], rows[1]["timestamp"] = rows[1]["timestamp"], rows[0]["timestamp"]

    rows = json.loads((tables / "v1.0-toy/sample.json").read_text())
    edited(tables / "v1.0-toy/sample.json", swap)
    with pytest.raises(DataError, match=rf"time goes backwards: row {rows[0]['token']}"):
        open_reader(f"nuscenes:{tables}")


def test_a_wrong_version_is_an_error_that_lists_those_that_are_there(tables):
    with pytest.raises(
        DataError, match=r"no tables of version 'v1\.0-tyo'; did you mean .*; there are: v1\.0-toy"
    ):
        open_reader(f"nuscenes:{tables}", version="v1.0-tyo")
    (tables / "v1.0-other").mkdir()
    for file in (tables / "v1.0-toy").iterdir():
        (tables / "v1.0-other" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(
        DataError, match=r"several versions fit; set version to one of: v1\.0-other, v1\.0-toy"
    ):
        open_reader(f"nuscenes:{tables}")


def test_a_missing_camera_is_refused_or_left_out_as_asked(tables):
    edited(
        tables / "v1.0-toy/sample_data.json",
        lambda rows: rows.remove(next(row for row in rows if "0001_0000_CAM_BACK" in row["filename"])),
    )
    reader = open_reader(f"nuscenes:{tables}")
    with pytest.raises(
        DataError, match=r"train/\w+: no key frame of camera CAM_BACK .*missing_cameras=allow"
    ):
        reader[0]
    assert reader[1].inputs["rig"].camera_names == ("CAM_FRONT", "CAM_BACK")
    allowed = open_reader(f"nuscenes:{tables}", missing_cameras="allow")
    assert allowed[0].inputs["rig"].camera_names == ("CAM_FRONT",)


def test_singular_intrinsics_are_an_error_with_token_and_camera(tables):
    edited(
        tables / "v1.0-toy/calibrated_sensor.json",
        lambda rows: rows[1].update(camera_intrinsic=[[0] * 3] * 3),
    )
    with pytest.raises(DataError, match=r"train/\w+: camera CAM_FRONT: the intrinsics .* are singular"):
        open_reader(f"nuscenes:{tables}")[0]


def test_infos_give_rigs_boxes_and_streams(tmp_path):
    write_infos(tmp_path)
    reader = open_reader(f"infos:{tmp_path}")
    sample = reader[1]
    rig, boxes = sample.inputs["rig"], sample.targets["boxes"]
    assert sample.id == "train/train-1" and reader.sequences == (3,) and rig.camera_names == tuple(RIG)
    assert torch.allclose(
        boxes.velocities_ref_mps, torch.tensor([[1.0, 2], [torch.nan, torch.nan]]), equal_nan=True
    )
    assert sample.targets["box_notes"].num_points.tolist() == [-1, 4]
    assert torch.allclose(
        rig.world_from_ref, torch.from_numpy(car_at(0.5)) @ rig.ego_from_ref.double(), atol=1e-5
    )


def test_camera_poses_may_take_the_place_of_lidar2cam(tmp_path):
    write_infos(tmp_path)
    direct = open_reader(f"infos:{tmp_path}").frame(0).shots[1].img_from_ref

    def change(tree):
        for sample in tree["samples"]:
            for name, camera in sample["cams"].items():
                del camera["lidar2cam"]
                camera["cam2ego"] = RIG[name].ego_from_cam.tolist()

    edited(tmp_path / "infos_train.json", change)
    assert np.allclose(open_reader(f"infos:{tmp_path}").frame(0).shots[1].img_from_ref, direct)


def test_one_file_may_name_scenes_of_splits_or_is_the_split_all(tmp_path):
    write_infos(tmp_path, {"x": 3})
    (tmp_path / "infos_x.json").rename(tmp_path / "infos.json")
    assert len(open_reader(f"infos:{tmp_path}", split="all")) == 3
    edited(tmp_path / "infos.json", lambda tree: tree.update(splits={"train": ["drive x"]}))
    assert len(open_reader(f"infos:{tmp_path}")) == 3
    with pytest.raises(DataError, match="no split 'val'; there are: train"):
        open_reader(f"infos:{tmp_path}", split="val")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda s: s["cams"].pop("CAM_BACK"),
            "train/train-0: no camera CAM_BACK .* set missing_cameras=allow",
        ),
        (lambda s: s.pop("ego2global"), "train/train-0: no 'ego2global' .* set poses=false"),
        (
            lambda s: s["cams"]["CAM_FRONT"].update(cam2img=np.zeros((3, 3)).tolist()),
            "CAM_FRONT: the intrinsics",
        ),
        (
            lambda s: s["cams"]["CAM_FRONT"].update(lidar2cam=None, cam2ego=None),
            "CAM_FRONT: cam2ego is missing",
        ),
        (
            lambda s: s["cams"]["CAM_FRONT"].update(lidar2cam=np.ones((4, 4)).tolist()),
            "no rotation and shift",
        ),
        (lambda s: s["boxes"][0].update(size=[1, 2]), "box 0 is malformed"),
        (lambda s: s["boxes"][1].update(center=[0, float("nan"), 0]), "box 1 has center"),
        (lambda s: s["cams"]["CAM_FRONT"].update(width=7), "is 40 x 24 px, the data set says 7 x 24"),
        (lambda s: s["cams"]["CAM_FRONT"].update(path="../x.png"), "leads out of the data set's folder"),
    ],
)
def test_faults_of_one_sample_name_it_and_leave_the_others(tmp_path, change, said):
    write_infos(tmp_path)
    edited(tmp_path / "infos_train.json", lambda tree: change(tree["samples"][0]))
    reader = open_reader(f"infos:{tmp_path}")
    with pytest.raises(DataError, match=said) as caught:
        reader[0]
    assert "train-0" in str(caught.value) and "\n" not in str(caught.value)
    assert reader[1].id == "train/train-1"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda tree: tree["samples"].reverse(),
            "sample train-1 of scene drive train is at .* not after train-2",
        ),
        (lambda tree: tree["samples"][1].update(token="train-0"), "token train-0 occurs twice"),
        (lambda tree: tree["samples"][1].pop("timestamp"), "sample 1 lacks a token"),
        (lambda tree: tree.update(categories=["car", "car"]), "category 'car' occurs twice"),
        (lambda tree: tree.pop("samples"), "expected an object with a list 'samples'"),
    ],
)
def test_faults_of_the_file_are_said_when_it_is_opened(tmp_path, change, said):
    write_infos(tmp_path)
    edited(tmp_path / "infos_train.json", change)
    with pytest.raises(DataError, match=said):
        open_reader(f"infos:{tmp_path}")


def test_a_sample_without_boxes_has_none(tmp_path):
    write_infos(tmp_path)
    edited(tmp_path / "infos_train.json", lambda tree: tree["samples"][0].update(boxes=[]))
    assert open_reader(f"infos:{tmp_path}")[0].targets["boxes"].centers_ref_m.shape == (0, 3)


def test_real_frames_are_read(real_data):
    for name, cameras in (("nuscenes_frame", "CAM_FRONT"), ("ddad_scene", "CAMERA_01")):
        reader = open_reader(f"infos:driving/{name}", real_data, "all")
        sample = reader[0]
        assert sample.inputs["rig"].camera_names[0] == cameras and len(sample.targets["boxes"].labels) > 10
    # At 12.7 m/s and 0.1 s.
    way = np.diff([reader.frame(n).world_from_ref[:3, 3] for n in range(3)], axis=0)
    assert np.allclose(np.linalg.norm(way, axis=1), 1.27, atol=0.05)


def test_projected_boxes_of_the_real_frame_agree_with_those_of_the_data_set(real_data):
    reader = open_reader("infos:driving/ddad_scene", real_data, "all")
    sample = reader[0]
    info = json.loads((real_data / "driving/ddad_scene/infos.json").read_text())["samples"][0]
    corners = sample.targets["boxes"].corners_ref_m().double().numpy()
    ids = sample.targets["box_notes"].instances.tolist()
    compared = 0
    for matrix, name in zip(sample.inputs["rig"].img_from_ref.double().numpy(), reader.cameras, strict=True):
        for box in info["cams"][name].get("boxes2d", ()):
            points = corners[ids.index(box["instance_id"])] @ matrix[:, :3].T + matrix[:, 3]
            if points[:, 2].min() < 1:
                continue
            pixels = points[:, :2] / points[:, 2:]
            middle = (pixels.min(0) + pixels.max(0)) / 2
            left, top, right, bottom = box["bbox_xyxy"]
            assert abs(middle[0] - (left + right) / 2) < max(12, 0.5 * (right - left)), (name, box)
            assert abs(middle[1] - (top + bottom) / 2) < max(12, 0.5 * (bottom - top)), (name, box)
            compared += 1
    assert compared >= 8


def test_errors_are_one_line(tmp_path):
    (tmp_path / "infos.json").write_text("{")
    with pytest.raises(DataError, match=re.escape("infos.json: not JSON")) as caught:
        open_reader(f"infos:{tmp_path}", split="all")
    assert "\n" not in str(caught.value)
