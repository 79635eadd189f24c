"""Camera geometry: official numbers, augmentations that travel with the matrices, frames and grids."""

import pytest
import torch
from rigs import rig_of, ring, turned

from allsight.types import (
    BEVGrid,
    Boxes3D,
    CameraRig,
    DataError,
    Image,
    MultiCameraBatch,
    Rig,
    inverse_affine,
    relative_pose,
)


def relative(actual, expected):
    return float((actual - expected).norm() / expected.norm())


def random_points(count=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(1, count, 3, generator=generator, dtype=torch.float64) - 0.5) * torch.tensor(
        [80, 80, 4]
    )


@pytest.mark.parametrize("case", ["one_sample", "two_samples_with_different_cameras"])
def test_pillars_and_their_pixels_are_the_official_ones(parity, case):
    about, tensors = parity("bevformer/geometry")
    about = about["cases"][case]
    grid = BEVGrid(tuple(about["pc_range"]), (about["bev_h"], about["bev_w"]))
    height, width = about["img_shape"]
    lidar2img = tensors[f"{case}.lidar2img"]
    batch = lidar2img.shape[0]
    eye = torch.eye(4, dtype=torch.float64).expand(batch, 4, 4)
    rig = CameraRig(lidar2img[:, :, :3], eye, eye, torch.zeros(batch, dtype=torch.float64))
    assert relative(grid.centers(lidar2img), tensors[f"{case}.ref_2d"][0, :, 0]) < 1e-15

    pillars = grid.pillars(lidar2img, points=about["points_in_pillar"])
    assert relative(grid.to_parts(pillars), tensors[f"{case}.ref_3d"][0].transpose(0, 1)) < 1e-15
    pixels, depth = rig.project(pillars.flatten(0, 1).expand(batch, -1, 3))
    parts = (pixels / torch.tensor([width, height])).unflatten(2, pillars.shape[:2])
    expected = tensors[f"{case}.reference_points_cam"].transpose(0, 1)
    assert relative(parts, expected) < 1e-9
    seen = (depth.unflatten(2, pillars.shape[:2]) > about["eps"]) & ((parts > 0) & (parts < 1)).all(-1)
    assert torch.equal(seen, tensors[f"{case}.bev_mask"].transpose(0, 1))


def test_cells_and_anchors_of_a_small_grid_are_the_official_ones(parity):
    about, tensors = parity("bevformer/geometry")
    about = about["cases"]["refs_small"]
    grid = BEVGrid((0.0, 0.0, 0.0, 1.0, 1.0, about["Z"]), (about["H"], about["W"]))
    like = tensors["refs_small.ref_3d"]
    assert relative(grid.centers(like), tensors["refs_small.ref_2d"][0, :, 0]) < 1e-15
    pillars = grid.to_parts(grid.pillars(like, points=about["num_points_in_pillar"]))
    assert relative(pillars, like[0].transpose(0, 1)) < 1e-15


@pytest.mark.parametrize(("dtype", "most_px"), [(torch.float64, 1e-9), (torch.float32, 1e-2)])
def test_points_come_back_from_their_pixels_also_after_an_image_affine(dtype, most_px):
    generator = torch.Generator().manual_seed(0)
    affine = torch.eye(3, dtype=torch.float64).repeat(1, 6, 1, 1)
    affine[..., :2, :] += torch.randn(1, 6, 2, 3, generator=generator, dtype=torch.float64) * 0.2
    rig = rig_of(ring()).with_image_affine(affine)
    matrices = rig.img_from_ref.to(dtype)
    pixels = torch.rand(1, 6, 50, 2, generator=generator, dtype=dtype) * 90
    depth = torch.rand(1, 6, 50, 1, generator=generator, dtype=dtype) * 50 + 1
    rays = torch.cat([pixels, torch.ones_like(depth)], -1) * depth - matrices[..., 3][:, :, None]
    points = torch.linalg.solve(matrices[..., :3], rays.transpose(-1, -2)).transpose(-1, -2)
    for camera in range(6):
        again, far = rig_of(matrices[0].to(dtype)).project(points[:, camera])
        assert float((again[0, camera] - pixels[0, camera]).abs().max()) < most_px
        assert torch.allclose(far[0, camera], depth[0, camera, :, 0], rtol=1e-3)


def test_a_flip_of_the_picture_mirrors_pixels_at_its_width():
    flip = torch.tensor([[-1.0, 0, 96], [0, 1, 0], [0, 0, 1]]).expand(1, 6, 3, 3)
    before, depth = rig_of(ring()).project(random_points())
    after, _ = rig_of(ring()).with_image_affine(flip).project(random_points())
    seen = depth > 0
    assert torch.allclose(after[seen][:, 0], 96 - before[seen][:, 0])
    assert torch.allclose(after[seen][:, 1], before[seen][:, 1])


MIRROR = torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))
SCALE = torch.diag(torch.tensor([1.05, 1.05, 1.05, 1], dtype=torch.float64))


@pytest.mark.parametrize("affine", [turned(0.4), MIRROR, SCALE, turned(0.3, x=2, y=-1) @ MIRROR @ SCALE])
def test_moving_the_world_with_the_matrices_leaves_pixels_where_they_are(affine):
    rig = rig_of(ring(), world_from_ref=turned(1.1, x=900, y=-400))
    moved = rig.with_ref_affine(affine[None])
    points = random_points()
    there = points @ affine[:3, :3].T + affine[:3, 3]
    for before, after in zip(rig.project(points), moved.project(there), strict=True):
        assert torch.allclose(before, after, rtol=1e-9)
    # Relative poses: T' = B T inverse(B).
    later = rig_of(ring(), world_from_ref=turned(1.3, x=905, y=-395))
    motion = relative_pose(rig.world_from_ref, later.world_from_ref)
    expected = affine @ motion[0] @ torch.linalg.inv(affine)
    changed = relative_pose(moved.world_from_ref, later.with_ref_affine(affine[None]).world_from_ref)
    assert torch.allclose(changed[0], expected, atol=1e-9)
    assert torch.allclose(rig.world_from_ego, moved.world_from_ego)


def test_mirroring_the_world_exchanges_left_and_right_cameras():
    rig = rig_of(ring())
    point = torch.tensor([[[8.0, 5.0, 1.0]]], dtype=torch.float64)
    right = int(rig.project(point)[1].argmax())
    mirrored = point * torch.tensor([-1.0, 1, 1])
    assert {right, int(rig.project(mirrored)[1].argmax())} == {1, 5}


@pytest.mark.parametrize("affine", [turned(0.7, x=3), MIRROR, SCALE, turned(-2.0) @ MIRROR @ SCALE])
def test_corners_of_boxes_move_as_points_do(affine):
    boxes = Boxes3D(
        centers_ref_m=torch.tensor([[4.0, 1, 0.5], [-3, 2, 1]]).double(),
        sizes_m=torch.tensor([[4.0, 1.8, 1.5], [0.7, 0.6, 1.8]]).double(),
        yaw_rad=torch.tensor([0.3, -2.5]).double(),
        velocities_ref_mps=torch.tensor([[3.0, 1], [0, -1]]).double(),
        labels=torch.tensor([0, 1]),
    )
    moved = boxes.transformed(affine)
    expected = boxes.corners_ref_m() @ affine[:3, :3].T + affine[:3, 3]
    # A mirror exchanges corners, so sets are compared.
    distances = torch.cdist(moved.corners_ref_m(), expected)
    assert float(distances.min(-1).values.max()) < 1e-9
    ahead = boxes.centers_ref_m[:, :2] + boxes.velocities_ref_mps
    expected = ahead @ affine[:2, :2].T + affine[:2, 3]
    assert torch.allclose(moved.centers_ref_m[:, :2] + moved.velocities_ref_mps, expected)


def test_inverse_of_an_affine_map():
    affine = turned(0.5, x=1000, y=-3) @ SCALE @ MIRROR
    assert torch.allclose(inverse_affine(affine[None])[0], torch.linalg.inv(affine), atol=1e-12)


def test_points_behind_a_camera_have_no_depth():
    rig = rig_of(ring(cameras=1))
    pixels, depth = rig.project(torch.tensor([[[0.0, -5.0, 1.6], [0.0, 5.0, 1.6]]]).double())
    assert depth[0, 0].tolist() == [-5.0, 5.0]
    assert pixels[0, 0, 1].tolist() == pytest.approx([48.0, 32.0], abs=1e-5)
    assert bool(pixels.isfinite().all())


def test_grid_of_a_range_that_is_neither_square_nor_centered():
    grid = BEVGrid((-150.0, -30.0, -2.0, 100.0, 85.0, 4.0), (23, 50))
    like = torch.zeros((), dtype=torch.float64)
    assert grid.cell_m == (5.0, 5.0)
    centers = grid.centers_m(like)
    assert centers[0].tolist() == [-147.5, -27.5]
    assert centers[1].tolist() == [-142.5, -27.5]
    assert centers[50].tolist() == [-147.5, -22.5]
    assert torch.allclose(grid.to_parts(centers), grid.centers(like))
    assert grid.pillars(like, heights_m=(0.0, 1.0))[3, :, 2].tolist() == [0.0, 1.0]


def test_an_empty_range_is_refused():
    with pytest.raises(ValueError, match="minimum < maximum"):
        BEVGrid((0.0, 0.0, 0.0, 0.0, 1.0, 1.0), (2, 2))


def sample_rig(sizes, **changes):
    images = tuple(Image(torch.full((3, *size), 7, dtype=torch.uint8)) for size in sizes)
    eye = torch.eye(4)
    values = dict(
        images=images,
        img_from_ref=ring(len(sizes)).float(),
        ego_from_ref=eye,
        world_from_ref=eye,
        time_s=1.5e9,
    )
    return Rig(**{**values, **changes})


def test_rigs_with_other_cameras_and_sizes_meet_in_one_batch():
    batch = MultiCameraBatch.of([sample_rig([(40, 64), (33, 50)]), sample_rig([(64, 90)])])
    assert batch.images.shape == (2, 2, 3, 64, 96)
    assert batch.rig.is_present.tolist() == [[True, True], [True, False]]
    assert batch.valid_hw_px.tolist() == [[[40, 64], [33, 50]], [[64, 90], [0, 0]]]
    assert int(batch.images[0, 1].sum()) == 7 * 3 * 33 * 50
    assert batch.rig.time_s.tolist() == [1.5e9, 1.5e9]
    assert batch.rig.can_bus is None
    known = [sample_rig([(32, 32)], can_bus=torch.arange(18.0) + row) for row in range(2)]
    assert MultiCameraBatch.of(known).rig.can_bus[1, 0].item() == 1
    with pytest.raises(DataError, match="raise hw_px"):
        MultiCameraBatch.of([sample_rig([(40, 64)])], hw_px=(32, 64))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"img_from_ref": torch.zeros(1, 3, 4)}, "camera 0: img_from_ref is singular"),
        ({"world_from_ref": torch.full((4, 4), float("nan"))}, "world_from_ref is singular or not finite"),
        ({"img_from_ref": ring(2).float()}, "got 2 for 1 pictures"),
    ],
)
def test_matrices_that_cannot_be_are_refused_in_one_line(changes, match):
    with pytest.raises(DataError, match=match):
        MultiCameraBatch.of([sample_rig([(8, 8)], **changes)])
