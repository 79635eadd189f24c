"""The ray caster against brute force: a ray is inside a solid between the t it enters and the t it leaves."""

import math

import numpy as np
import pytest

from allsight.data.world.hulls import Hulls
from allsight.data.world.rays import Rays, Stand
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
        terms = [((v - c) / r) ** 2 for v, c, r in zip(p, solid.center, solid.radii, strict=True)]
        return np.sum(terms, axis=0) < 1
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


STAND = Stand(height_m=1.2, place_m=(0.3, 3.0), turn_rad=0.1, scale_m=1.3)


def camera_rays(side: int = 45, stand: Stand = STAND) -> Rays:
    """Rays around the place where the solids are."""
    across = np.linspace(-0.35, 0.55, side, dtype=np.float32)[None, :]
    up = np.linspace(0.2, -0.6, side, dtype=np.float32)[:, None]
    return Rays(across, np.ones_like(up), up, stand)


def lines(rays: Rays) -> tuple[np.ndarray, np.ndarray]:
    """Eye [3, 1] and directions [3, rays]."""
    directions = np.broadcast_arrays(*rays.directions())
    return np.array(rays.stand.eye)[:, None], np.stack([d.ravel() for d in directions])


@pytest.mark.parametrize("name", SOLIDS)
def test_camera_rays_stop_where_brute_force_says(name: str):
    rays = camera_rays()
    steps = np.arange(1.5, 5.0, 0.008)
    with np.errstate(all="ignore"):
        t, _ = SOLIDS[name].hit(rays)
    check(SOLIDS[name], t.ravel(), march(SOLIDS[name], *lines(rays), steps), 0.008)


def test_directions_are_those_of_a_turned_object():
    stand = Stand(height_m=1.2, place_m=(0.3, 3.0), turn_rad=0.7, scale_m=1.3)
    rays = camera_rays(5, stand)
    eye, directions = lines(rays)
    world = np.stack([d.ravel() for d in np.broadcast_arrays(rays.across, rays.ahead, rays.up)])
    cos, sin = math.cos(stand.turn_rad), math.sin(stand.turn_rad)
    to_world = stand.scale_m * np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    points = to_world @ (eye + 2.0 * directions) + np.array([[*stand.place_m, 0.0]]).T
    assert np.allclose(points, np.array([[0.0, 0.0, stand.height_m]]).T + 2.0 * world, atol=1e-6)
    squares = sum(w * d**2 for w, d in zip((0.5, 2.0, 3.0), directions, strict=True))
    assert np.allclose(rays.squares(0.5, 2.0, 3.0).ravel(), squares, rtol=1e-4)


@pytest.mark.parametrize("name", SOLIDS)
def test_shadows_fall_where_brute_force_says(name: str):
    solid, sun = SOLIDS[name], (0.3, -0.6, 0.5)
    across = np.linspace(-0.35, 0.4, 45, dtype=np.float32)[None, :]
    up = np.linspace(-0.21, -0.5, 45, dtype=np.float32)[:, None]
    rays = Rays(across, np.ones_like(up), up, STAND)
    ground = np.stack([*(g.ravel() for g in rays.ground()), np.zeros(45 * 45, dtype=np.float32)])
    hull = Hulls([solid])
    dark = rays.inside(STAND.borders(*hull.borders(sun))[:, hull.spans[0]]).ravel()
    if isinstance(solid, Torus):
        with np.errstate(all="ignore"):
            dark &= solid.stops((ground[0], ground[1], 0.0), sun)
    expected = march(solid, ground, np.array(sun)[:, None], np.arange(0.001, 2.5, 0.004))
    # Ground that a solid stands on is not seen.
    free = expected > 0.002
    assert (expected[free] < FAR).sum() > 50
    assert (dark != (expected < FAR))[free].mean() < 0.02


@pytest.mark.parametrize("name", [n for n, s in SOLIDS.items() if not isinstance(s, Polyhedron)])
def test_normals_have_unit_length_and_point_outwards(name: str):
    solid, rays = SOLIDS[name], camera_rays()
    assert not isinstance(solid, Polyhedron)
    with np.errstate(all="ignore"):
        t = solid.hit(rays)[0].ravel()
    eye, direction = lines(rays)
    point, direction = (eye + t * direction)[:, t < FAR], direction[:, t < FAR]
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
