"""Transforms of camera rigs: whatever moves, points of the world stay on their pixels."""

import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from allsight.data.transforms import (
    ColorJitter,
    Compose,
    DropCameras,
    GridMask,
    JitterRig,
    MoveWorld,
    NoisyExtrinsics,
    PermuteCameras,
    PhotometricDistortion,
    RandomCropRig,
    ResizeRig,
    WithinRange,
    move_world,
)
from allsight.data.transforms.carry import FILL
from allsight.types import BEVGrid, BEVMap, Boxes3D, BoxNotes, DataError, Image, Rig, Sample

NAMES = ("FRONT", "FRONT_LEFT", "FRONT_RIGHT", "BACK")
YAWS = (0.0, 1.1, -1.1, math.pi)
POINTS = torch.tensor(
    [[12.0, 1.0, 0.3, 1], [9.0, -2.0, 1.0, 1], [4.0, 7.0, 0.2, 1], [4.0, -8.0, 0.5, 1], [-9.0, 1.0, 0.1, 1]]
).double()


def looking(yaw):
    """img_from_ref of a camera 1.5 m up; reference x ahead, y left."""
    axes = torch.tensor([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]]).double()
    cos, sin = math.cos(yaw), math.sin(yaw)
    turn = torch.tensor([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]).double()
    pose = axes @ torch.cat([turn, torch.tensor([[0.0], [0], [-1.5]]).double()], dim=1)
    return torch.tensor([[50.0, 0, 40], [0, 50, 24], [0, 0, 1]]).double() @ pose


def rig(seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = tuple(
        Image(torch.randint(0, 255, (3, 48, 80), dtype=torch.uint8, generator=generator)) for _ in NAMES
    )
    world = torch.eye(4).double()
    world[:3, 3] = torch.tensor([500.0 + seed, 700, 2])
    matrices = torch.stack([looking(yaw) for yaw in YAWS])
    return Rig(images, matrices, torch.eye(4).double(), world, 10.0 + seed, NAMES)


def sample():
    grid = BEVGrid((-20, -16, -5, 20, 16, 3), (32, 40))
    masks = torch.zeros(1, 32, 40, dtype=torch.bool)
    masks[0, 20:, 30:] = True
    boxes = Boxes3D(
        POINTS[:, :3].float(),
        torch.tensor([[4.0, 2, 1.5]]).repeat(5, 1),
        torch.tensor([0.0, 0.5, 1.0, -1.0, 3.0]),
        torch.tensor([[1.0, 0.5], [torch.nan, torch.nan], [0, 1], [2, 2], [0, 0]]),
        torch.arange(5),
    )
    notes = BoxNotes(torch.arange(5), torch.arange(5), torch.arange(5))
    targets = {"boxes": boxes, "box_notes": notes, "bev_map": BEVMap(masks, grid, ("road",))}
    earlier = {"boxes": boxes, "box_notes": notes}
    return Sample("a/0", {"rig": rig()}, {**targets, "history": (earlier,)}, ({"rig": rig(1)},))


def pixels(matrix, points):
    projected = matrix.double() @ points.T
    return (projected[:2] / projected[2]).T, projected[2]


def homogeneous(boxes):
    return torch.cat([boxes.centers_ref_m.double(), torch.ones(len(boxes.labels), 1).double()], 1)


EVERY = [
    ResizeRig((24, 40)),
    RandomCropRig(1.3, 0.5),
    JitterRig(ColorJitter(0.3, 0.3, 0.3)),
    NoisyExtrinsics(),
    DropCameras(0.5),
    PermuteCameras(),
    MoveWorld(0.4, 0.1, 0.5),
    WithinRange((-5, -5, 10, 5)),
]


@pytest.mark.parametrize("transform", EVERY, ids=lambda transform: type(transform).__name__)
def test_transforms_are_picklable_repeat_and_leave_their_input(transform):
    raw, untouched = sample(), sample()
    again = pickle.loads(pickle.dumps(transform))
    one, other = transform(raw, np.random.default_rng(3)), again(raw, np.random.default_rng(3))
    for a, b in zip(one.inputs["rig"].images, other.inputs["rig"].images, strict=True):
        assert torch.equal(a.pixels, b.pixels)
    assert torch.equal(one.inputs["rig"].img_from_ref, other.inputs["rig"].img_from_ref)
    assert torch.equal(raw.inputs["rig"].img_from_ref, untouched.inputs["rig"].img_from_ref)
    assert torch.equal(raw.inputs["rig"].images[0].pixels, untouched.inputs["rig"].images[0].pixels)
    with pytest.raises(DataError, match="no input 'rig'"):
        transform(Sample("x", {}), np.random.default_rng(0)) if not isinstance(transform, WithinRange) else (
            ResizeRig((8, 8))(Sample("x", {}), np.random.default_rng(0))
        )


@pytest.mark.parametrize("how", ["exact", "bottom"])
def test_a_resized_picture_shows_points_where_its_matrix_says(how):
    after = ResizeRig((24, 60), how)(sample(), np.random.default_rng(0)).inputs["rig"]
    assert all(image.hw_px == (24, 60) for image in after.images)
    x, y = 60 / 80, (24 / 48 if how == "exact" else 60 / 80)
    top = 0 if how == "exact" else 48 * y - 24
    for before, now in zip(rig().img_from_ref, after.img_from_ref, strict=True):
        old, new = pixels(before, POINTS)[0], pixels(now, POINTS)[0]
        assert torch.allclose(new, old * torch.tensor([x, y]) - torch.tensor([0.0, top]), atol=1e-6)


def test_a_picture_that_is_too_low_is_resized_and_then_padded_below():
    """The last row of the picture is not mixed with what is added, as in the release."""
    raw = sample()
    white = torch.full((3, 20, 80), 255, dtype=torch.uint8)
    images = tuple(Image(white) for _ in raw.inputs["rig"].images)
    raw = Sample("a", {"rig": Rig(images, *list(vars(rig()).values())[1:])})
    after = ResizeRig((24, 60))(raw, np.random.default_rng(0)).inputs["rig"]
    for image in after.images:
        assert image.hw_px == (24, 60)
        assert bool((image.pixels[:, :15] == 255).all())
        assert bool((image.pixels[:, 15:] == torch.tensor(FILL, dtype=torch.uint8)[:, None, None]).all())
    expected = torch.tensor([[0.75, 0, 0], [0, 0.75, 0], [0, 0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(after.img_from_ref.double(), expected @ rig().img_from_ref.double())


def test_cut_and_mirrored_pictures_keep_points_on_what_they_show():
    """A bright cell is followed through the pixels and through the matrix."""
    spot = torch.zeros(3, 48, 80, dtype=torch.uint8)
    target = pixels(rig().img_from_ref[0], POINTS[:1])[0][0]
    spot[:, int(target[1]) - 1 : int(target[1]) + 2, int(target[0]) - 1 : int(target[0]) + 2] = 255
    raw = sample()
    images = (Image(spot), *raw.inputs["rig"].images[1:])
    raw = Sample("a", {"rig": Rig(images, *list(vars(rig()).values())[1:])})
    for seed in range(6):
        after = RandomCropRig(1.4, 0.5)(raw, np.random.default_rng(seed)).inputs["rig"]
        seen = after.images[0].pixels[0].double()
        if seen.max() < 200:
            continue
        weights = seen / seen.sum()
        middle = torch.stack(
            [
                (weights.sum(0) * (torch.arange(80) + 0.5)).sum(),
                (weights.sum(1) * (torch.arange(48) + 0.5)).sum(),
            ]
        )
        assert torch.allclose(pixels(after.img_from_ref[0], POINTS[:1])[0][0], middle, atol=1.2)


@pytest.mark.parametrize(("turn", "scale"), [(0.4, 1.0), (-1.0, 1.1)])
def test_a_turned_world_stays_on_its_pixels_and_at_its_place(turn, scale):
    raw = sample()
    after = move_world(raw, turn, scale)
    moved = homogeneous(after.targets["boxes"])
    for before, now in zip(rig().img_from_ref, after.inputs["rig"].img_from_ref, strict=True):
        assert torch.allclose(pixels(now, moved)[0], pixels(before, POINTS)[0], atol=1e-4)
    world = after.inputs["rig"].world_from_ref @ moved.T
    assert torch.allclose(world, rig().world_from_ref @ POINTS.T, atol=1e-4)
    assert torch.allclose(after.targets["boxes"].sizes_m, raw.targets["boxes"].sizes_m * scale, atol=1e-5)
    assert torch.allclose(after.targets["boxes"].yaw_rad[0], torch.tensor(turn), atol=1e-5)
    speed = after.targets["boxes"].velocities_ref_mps[0]
    assert torch.allclose(speed.norm(), torch.tensor([1.0, 0.5]).norm() * scale) and bool(
        after.targets["boxes"].velocities_ref_mps[1].isnan().all()
    )


def test_a_mirrored_world_is_seen_by_proper_cameras_that_changed_sides():
    raw = sample()
    after = move_world(raw, 0.2, is_mirrored=True)
    now = after.inputs["rig"]
    assert now.camera_names == NAMES
    moved = homogeneous(after.targets["boxes"])
    sources = (0, 2, 1, 3)
    for camera, source in enumerate(sources):
        assert torch.equal(now.images[camera].pixels, raw.inputs["rig"].images[source].pixels.flip(-1))
        old, depth = pixels(rig().img_from_ref[source], POINTS)
        new, same = pixels(now.img_from_ref[camera], moved)
        assert torch.allclose(new[:, 0], 80 - old[:, 0], atol=1e-4) and torch.allclose(same, depth, atol=1e-4)
        assert torch.allclose(new[:, 1], old[:, 1], atol=1e-4)
        assert torch.linalg.det(now.img_from_ref[camera][:, :3]) > 0
    # What turned left turns right.
    assert torch.allclose(after.targets["boxes"].yaw_rad[1], torch.tensor(-0.5 + 0.2), atol=1e-5)


def test_motion_between_the_frames_of_a_clip_stays_true():
    raw = sample()
    after = move_world(raw, 0.7, 1.1, is_mirrored=True)
    then, now = after.views[0]["rig"], after.inputs["rig"]
    old_from_new = torch.linalg.inv(then.world_from_ref) @ now.world_from_ref
    # The same things, seen from both frames.
    there = torch.linalg.inv(rig(1).world_from_ref) @ rig().world_from_ref @ POINTS.T
    back = torch.linalg.inv(now.world_from_ref) @ rig().world_from_ref
    new_points = back @ POINTS.T
    assert torch.allclose(
        old_from_new @ new_points, torch.linalg.inv(then.world_from_ref) @ rig(1).world_from_ref @ there
    )
    assert torch.allclose(
        after.targets["history"][0]["boxes"].centers_ref_m, after.targets["boxes"].centers_ref_m
    )


def test_maps_turn_with_the_world():
    raw = sample()
    quarter = move_world(raw, math.pi / 2).targets["bev_map"].masks[0]
    grid = raw.targets["bev_map"].grid
    x, y = grid.centers_m(torch.zeros(1)).unbind(-1)
    expected = ((y > 10) & (-x > 4) & (-x < 16)).reshape(32, 40)
    assert torch.equal(quarter, expected)
    mirrored = move_world(raw, 0.0, is_mirrored=True).targets["bev_map"].masks[0]
    assert torch.equal(mirrored, raw.targets["bev_map"].masks[0].flip(0))


def test_noise_moves_the_matrix_a_little_and_no_pixel():
    raw = sample()
    after = NoisyExtrinsics(0.01, 0.02)(raw, np.random.default_rng(0)).inputs["rig"]
    way = pixels(after.img_from_ref[0], POINTS[:2])[0] - pixels(rig().img_from_ref[0], POINTS[:2])[0]
    assert float(way.norm(dim=1).min()) > 0.01 and float(way.norm(dim=1).max()) < 5
    assert torch.equal(after.images[0].pixels, raw.inputs["rig"].images[0].pixels)
    same = NoisyExtrinsics(0.0, 0.0)(raw, np.random.default_rng(0)).inputs["rig"].img_from_ref
    assert torch.allclose(same, rig().img_from_ref)


def test_cameras_drop_out_and_one_always_stays():
    for seed in range(20):
        after = DropCameras(0.9)(sample(), np.random.default_rng(seed)).inputs["rig"]
        assert 1 <= len(after.images) == len(after.camera_names) == len(after.img_from_ref)
    only = DropCameras(1.0, ("BACK",))(sample(), np.random.default_rng(0)).inputs["rig"]
    assert only.camera_names == NAMES[:3]


def test_permuted_cameras_keep_or_lose_their_calibration_as_asked():
    raw = sample().inputs["rig"]
    for matrices in (True, False):
        after = PermuteCameras(matrices)(sample(), np.random.default_rng(2)).inputs["rig"]
        places = [
            next(n for n, old in enumerate(raw.images) if torch.equal(old.pixels, image.pixels))
            for image in after.images
        ]
        assert sorted(places) == [0, 1, 2, 3] and places != [0, 1, 2, 3] and after.camera_names == NAMES
        assert torch.equal(after.img_from_ref, raw.img_from_ref[places] if matrices else raw.img_from_ref)


def test_boxes_outside_the_range_are_left_out_with_their_notes():
    after = WithinRange((0, -3, 20, 3))(sample(), np.random.default_rng(0)).targets
    assert after["boxes"].labels.tolist() == after["box_notes"].num_points.tolist() == [0, 1]
    assert after["history"][0]["boxes"].labels.tolist() == [0, 1]


def test_transforms_compose():
    after = Compose(*EVERY)(sample(), np.random.default_rng(5))
    assert after.inputs["rig"].images[0].hw_px == (24, 40)


def test_a_grid_of_squares_is_wiped_out_of_all_cameras_of_the_moment_alone():
    """The rule in plain loops: rows and columns of the first half of each period stay."""
    clip = replace(sample(), views=({"rig": rig(7)},))
    seen = set()
    for seed in range(30):
        found = GridMask(1.0)(clip, np.random.default_rng(seed))
        assert found.views == clip.views
        before, after = clip.inputs["rig"], found.inputs["rig"]
        wiped = (after.images[0].pixels == torch.tensor([124, 116, 104])[:, None, None]).all(0)
        for old, new in zip(before.images, after.images, strict=True):
            assert torch.equal(new.pixels[:, ~wiped], old.pixels[:, ~wiped])
            assert bool((new.pixels[:, wiped] == torch.tensor([124, 116, 104])[:, None]).all())
        rows, columns = wiped.any(1), wiped.any(0)
        assert torch.equal(wiped, rows[:, None] & columns)
        seen.add(round(float(wiped.float().mean()), 3))
    assert len(seen) > 10 and 0.1 < np.mean(list(seen)) < 0.35
    kept = [GridMask(0.3)(clip, np.random.default_rng(seed)) is clip for seed in range(200)]
    assert 0.6 < np.mean(kept) < 0.8


def test_published_distortion_moves_values_as_far_as_it_says():
    """A grey picture shows brightness and contrast, a red one saturation, hue and channels."""
    grey = Sample("grey", {"image": Image(torch.full((3, 2, 2), 100, dtype=torch.uint8))})
    values = [
        int(PhotometricDistortion()(grey, np.random.default_rng(seed)).image.pixels[0, 0, 0])
        for seed in range(300)
    ]
    # (100 - 32) * 0.5 and (100 + 32) * 1.5 are the farthest; a quarter stays.
    assert 34 <= min(values) < 50 and 160 < max(values) <= 198
    assert 0.15 < np.mean([value == 100 for value in values]) < 0.4
    red = Sample("red", {"image": Image(torch.tensor([200, 100, 100], dtype=torch.uint8)[:, None, None])})
    only = PhotometricDistortion(brightness=0, contrast=0, hue_deg=0)
    found = [only(red, np.random.default_rng(seed)).image.pixels.flatten().tolist() for seed in range(60)]
    # The strongest channel stays what it is, wherever it goes; the others draw near it or away.
    assert all(max(colours) == 200 for colours in found)
    assert {colours.index(200) for colours in found} == {0, 1, 2}
    weakest = [min(colours) for colours in found]
    assert 49 <= min(weakest) < 60 and 140 < max(weakest) <= 151
    with pytest.raises(ValueError, match="hue up to 180"):
        PhotometricDistortion(hue_deg=200)
