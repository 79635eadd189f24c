"""The ray caster against brute force: a ray is inside a solid between the t it enters and the t it leaves."""

import math

import numpy as np
import pytest

from allsight.data.world.shapes import shape
from allsight.data.world.solids import FAR, Ellipsoid, Frustum, Polyhedron, Solid, Torus, box, hull
from allsight.data.world.vocabulary import SHAPES

SOLIDS: dict[str, Solid] = {
    "ellipsoid": Ellipsoid((0.1, -0.2, 0.5), (0.5, 0.3, 0.4)),
    "cone": Frustum((0.1, 0.0), 0.0, 1.0, 0.5, 0.0),
    "cylinder": Frustum((0.0, 0.2), 0.1, 0.9, 0.4, 0.4),
    "funnel": Frustum((0.0, 0.0), 0.0, 0.3, 0.1, 0.7),
    "wheel": Frustum((0.0, 0.5), -0.2, 0.2, 0.4, 0.4, along="y"),
    "box": box((-0.4, -0.3, 0.1), (0.5, 0.2, 0.8)),
    "pyramid": hull(
        ((-0.5, -0.5, 0.0), (0.5, -0.5, 0.0), (-0.5, 0.5, 0.0), (0.5, 0.5, 0.0), (0.0, 0.0, 1.0))
    ),
    "ring": Torus((0.0, 0.0, 0.5), 0.4, 0.15),
}


def inside(solid: Solid, p: np.ndarray) -> np.ndarray:
    x, y, z = p
    if isinstance(solid, Ellipsoid):
        return sum(((v - c) / r) ** 2 for v, c, r in zip(p, solid.center, solid.radii, strict=True)) < 1
    if isinstance(solid, Polyhedron):
        return np.all([a * x + b * y + c * z < h for a, b, c, h in solid.planes], axis=0)
    if isinstance(solid, Torus):
        x, y, z = (v - c for v, c in zip(p, solid.center, strict=True))
        return (np.hypot(x, z) - solid.major) ** 2 + y**2 < solid.minor**2
    assert isinstance(solid, Frustum)
    u, v, along = (x, z, y) if solid.along == "y" else (x, y, z)
    share = (along - solid.low) / (solid.high - solid.low)
    radius = solid.radius_low + share * (solid.radius_high - solid.radius_low)
    return (share > 0) & (share < 1) & (np.hypot(u - solid.across[0], v - solid.across[1]) < radius)


def march(solid: Solid, origin: np.ndarray, direction: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """First step inside, by trying all [rays]."""
    points = origin[:, :, None] + direction[:, :, None] * steps
    within = inside(solid, points)
    return np.where(within.any(axis=1), steps[within.argmax(axis=1)], FAR)


def check(solid: Solid, t: np.ndarray, expected: np.ndarray, step: float) -> None:
    assert (expected < FAR).sum() > 200, "too few rays meet the solid"
    both = (t < FAR) & (expected < FAR)
    # A ray that touches an edge for less than a step is met by one and missed by the other.
    assert ((t < FAR) != (expected < FAR)).mean() < 0.01
    assert (np.abs(t - expected)[both] < 1.5 * step).mean() > 0.99


@pytest.mark.parametrize("name", SOLIDS)
def test_camera_rays_stop_where_brute_force_says(name: str):
    rng = np.random.default_rng(0)
    eye = (0.3, -3.0, 1.2)
    aims = rng.uniform(-0.7, 0.7, (3, 2000)) + np.array([[0.0], [0.0], [0.5]])
    direction = (aims - np.array(eye)[:, None]).astype(np.float32)
    steps = np.arange(0.5, 1.6, 0.002)
    with np.errstate(all="ignore"):
        t, _ = SOLIDS[name].hit(eye, tuple(direction))
    check(SOLIDS[name], t, march(SOLIDS[name], np.array(eye)[:, None], direction, steps), 0.002)


@pytest.mark.parametrize("name", SOLIDS)
def test_sun_rays_from_the_ground_are_stopped_where_brute_force_says(name: str):
    rng = np.random.default_rng(1)
    sun = (0.3, -0.55, 0.7)
    ground = np.stack([rng.uniform(-1.2, 0.8, 2000), rng.uniform(-0.5, 1.5, 2000)]).astype(np.float32)
    origin = np.stack([*ground, np.zeros(2000, dtype=np.float32)])
    with np.errstate(all="ignore"):
        t, _ = SOLIDS[name].hit((origin[0], origin[1], 0.0), sun)
    expected = march(SOLIDS[name], origin, np.array(sun)[:, None], np.arange(0.001, 2.5, 0.004))
    # Ground that a solid stands on is not seen.
    free = expected > 0.002
    assert (expected[free] < FAR).sum() > 50
    assert ((t < FAR) != (expected < FAR))[free].mean() < 0.02


@pytest.mark.parametrize("name", [n for n, s in SOLIDS.items() if not isinstance(s, Polyhedron)])
def test_normals_have_unit_length_and_point_outwards(name: str):
    solid = SOLIDS[name]
    rng = np.random.default_rng(2)
    direction = rng.uniform(-0.3, 0.3, (3, 3000)).astype(np.float32)
    direction[1] = 1
    eye = (0.0, -3.0, 0.5)
    with np.errstate(all="ignore"):
        t, _ = solid.hit(eye, tuple(direction))
    point = np.array(eye)[:, None] + t * direction
    point, direction = point[:, t < FAR], direction[:, t < FAR]
    normal = np.array(solid.normals(tuple(point)))
    assert np.allclose(np.linalg.norm(normal, axis=0), 1, atol=2e-3)
    facing = (normal * direction).sum(axis=0) < 0.02
    assert facing.mean() > 0.99, (
        "a surface seen from outside faces the viewer (but for points on a sharp rim)"
    )
    # Close to a sharp rim a step inwards leaves through the other side.
    assert inside(solid, point - 0.003 * normal).mean() > 0.95
    assert not inside(solid, point + 0.01 * normal).any()


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_stands_on_the_ground_and_is_about_a_metre(name: str):
    (x0, y0, z0), (x1, y1, z1) = shape(name).bounds
    assert abs(z0) < 0.02
    assert 0.6 < max(z1, x1 - x0) < 1.5
    assert shape(name).radius >= max(-x0, x1) and shape(name).radius <= math.hypot(max(-x0, x1), max(-y0, y1))


def test_an_unknown_shape_is_refused():
    with pytest.raises(ValueError, match="no such shape"):
        shape("teapot")
