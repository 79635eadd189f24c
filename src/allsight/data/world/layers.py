"""One toy alone, as the camera sees it: which face each ray meets, and its paint in the light.

Letters in shapes: h w the window of the toy in the picture, in pixels; rows columns the same in rays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from allsight.data.world.parts import Shape
from allsight.data.world.rays import Rays, Stand
from allsight.data.world.scene import Scene, Sun, Toy
from allsight.data.world.shapes import shape
from allsight.data.world.solids import FAR, Point, Polyhedron, Triple

SAMPLES = 2
"""Rays a pixel along each direction; edges of toys are smoothed over their square."""

Window = tuple[int, int, int, int]
"""Top, left, bottom, right of some pixels."""


@dataclass(frozen=True)
class Layer:
    """One toy alone: colours multiplied by their coverage, and coverage, in its window of the picture."""

    top: int
    left: int
    colours: Float32[np.ndarray, "3 h w"]
    cover: Float32[np.ndarray, "h w"]

    @property
    def window(self) -> tuple[slice, slice]:
        h, w = self.cover.shape
        return slice(self.top, self.top + h), slice(self.left, self.left + w)

    @property
    def mask(self) -> Bool[np.ndarray, "h w"]:
        return self.cover >= 0.5


def windows_of(scene: Scene, toys: tuple[Toy, ...], shadows: bool = False) -> list[list[Window]]:
    """Where each part of each toy is seen, or its shadow on the ground."""
    if not toys:
        return []
    # The shadow of a box is the hull of its corners pushed along the light onto the ground.
    sun_x, sun_y, sun_z = scene.sun.direction
    up = (-sun_x / sun_z, -sun_y / sun_z, 0.0) if shadows else (0.0, 0.0, 1.0)
    world_from_toy = []
    for toy in toys:
        height = toy.scale_m
        cos, sin = math.cos(toy.turn_rad) * height, math.sin(toy.turn_rad) * height
        world_from_toy.append(
            (
                (cos, -sin, up[0] * height, toy.x_m),
                (sin, cos, up[1] * height, toy.y_m),
                (0.0, 0.0, up[2] * height, 0.0),
                (0.0, 0.0, 0.0, 1.0),
            )
        )
    matrices = scene.camera.matrix @ np.array(world_from_toy)
    points = [shape(toy.shape).corners @ matrix.T for toy, matrix in zip(toys, matrices, strict=True)]
    windows = iter(scene.camera.windows(np.concatenate(points).reshape(-1, 8, 3)))
    return [[next(windows) for _ in shape(toy.shape).parts] for toy in toys]


def rays_at(scene: Scene, toy: Toy, samples: int) -> Rays:
    """The rays of the whole picture as a toy meets them."""
    stand = Stand(scene.camera.height_m, (toy.x_m, toy.y_m), toy.turn_rad, toy.scale_m)
    return Rays(*scene.camera.rays(samples), stand)


def look(scene: Scene, toy: Toy, windows: list[Window]) -> Layer:
    """Cast rays at a toy alone; `windows` are those of its parts."""
    form = shape(toy.shape)
    tops, lefts, lows, rights = zip(*windows, strict=True)
    top, left = min(tops), min(lefts)
    rays = rays_at(scene, toy, SAMPLES).window(
        *(SAMPLES * edge for edge in (top, left, max(lows), max(rights)))
    )
    places = [
        (slice((a - top) * SAMPLES, (c - top) * SAMPLES), slice((b - left) * SAMPLES, (d - left) * SAMPLES))
        for a, b, c, d in windows
    ]
    codes, nearest = _meet(form, rays, places)
    met = codes > 0
    point = _points(form, toy, rays, nearest)
    light = rays.stand.turned(scene.sun.direction)
    lit = _Light.of(scene.sun, light, rays.stand.eye)
    looks = (
        lit.on(form.face_normals).take(codes, axis=1) if form.faces else np.zeros((3, *met.shape), np.float32)
    )
    normals = form.face_normals.take(codes, axis=1) if toy.texture == "dots" else None
    for part, code, place in zip(form.parts, form.codes, places, strict=False):
        if not isinstance(part.solid, Polyhedron):
            x, y, z = (values[place] for values in point)
            of_part = part.solid.normals((x, y, z))
            here = codes[place] == code
            np.copyto(looks[:, *place], lit.on(of_part), where=here)
            if normals is not None:
                np.copyto(normals[:, *place], np.stack(of_part), where=here)
    # Light from above falls off towards the ground, where the toy shades itself.
    direct, above, shine = looks
    above *= np.minimum(point[2] * 0.7 + 0.72, 1)
    direct += above
    planes = np.empty((4, *met.shape), dtype=np.float32)
    planes[:3] = form.paints(toy.rgb).take(codes, axis=1)
    if toy.texture != "plain":
        marked = form.textured.take(codes) & _marked(toy.texture, point, normals)
        np.copyto(planes[:3], np.array(toy.pattern_rgb, dtype=np.float32)[:, None, None], where=marked)
    planes[:3] *= direct
    planes[:3] += shine
    planes[3] = met
    planes = _shrink(planes)
    colours, cover = planes[:3], planes[3]
    if not scene.place.wall_m:
        haze = 0.5 * toy.y_m / (toy.y_m + 40.0)
        colours *= 1.0 - haze
        colours += cover * (np.array(scene.place.haze_rgb, dtype=np.float32) * haze)[:, None, None]
    return Layer(top, left, colours, cover)


def _meet(
    form: Shape, rays: Rays, places: list[tuple[slice, slice]]
) -> tuple[UInt8[np.ndarray, "rows columns"], Float32[np.ndarray, "rows columns"]]:
    """The number of the face that each ray meets first, 0 for none, and its t there."""
    if len(form.parts) == 1:
        t, faces = form.parts[0].solid.hit(rays)
        met = t < FAR
        return (met.view(np.uint8) if faces is None else (faces + np.uint8(1)) * met), t
    nearest = np.full(rays.shape, FAR, dtype=np.float32)
    codes = np.zeros(rays.shape, dtype=np.uint8)
    near, spans = (form.faces.near(rays), iter(form.faces.spans)) if form.faces else (None, iter(()))
    for part, code, (rows, columns) in zip(form.parts, form.codes, places, strict=False):
        if near is not None and isinstance(part.solid, Polyhedron):
            t, faces = near.of(next(spans), rows, columns).first()
        else:
            t, faces = part.solid.hit(rays.window(rows.start, columns.start, rows.stop, columns.stop))
        view = nearest[rows, columns]
        found = t < view
        np.copyto(view, t, where=found)
        np.copyto(codes[rows, columns], code if faces is None else faces + np.uint8(code), where=found)
    return codes, nearest


def _points(form: Shape, toy: Toy, rays: Rays, t: Float32[np.ndarray, "rows columns"]) -> Triple:
    """Where the rays are at t; x and y are not computed (None) where nobody asks for them."""
    x, y, z = rays.stand.eye
    dx, dy, dz = (
        rays.directions()
        if form.is_curved or toy.texture in ("checks", "dots")
        else (None, None, rays.along(0, 0, 1))
    )
    return (None if dx is None else x + t * dx), (None if dy is None else y + t * dy), z + t * dz


@dataclass(frozen=True)
class _Light:
    """The sun as a toy has it.

    Args:
        direct, ambient: Strengths.
        toward: Direction to the sun.
        half: Direction between the sun and the eye; the same for all of a toy.
    """

    direct: float
    ambient: float
    toward: Point
    half: Point

    @classmethod
    def of(cls, sun: Sun, toward: Point, eye: Point) -> _Light:
        size = math.sqrt(sum(e * e for e in eye))
        half = [a + b / size for a, b in zip(toward, eye, strict=True)]
        length = math.sqrt(sum(h * h for h in half))
        x, y, z = (h / length for h in half)
        return cls(sun.direct, sun.ambient, toward, (x, y, z))

    def on(self, normals: Triple | Float32[np.ndarray, " 3 *rest"]) -> Float32[np.ndarray, " 3 *rest"]:
        """Light on surfaces from the sun, light from above, and the grey levels of a soft highlight."""
        nx, ny, nz = normals
        x, y, z = self.toward
        out: np.ndarray = np.empty((3, *nx.shape), dtype=np.float32)
        direct, above, shine = out
        np.maximum(nx * x + ny * y + nz * z, 0, out=direct)
        direct *= 1.25 * self.direct
        np.multiply(nz, 0.22 * self.ambient, out=above)
        above += 0.78 * self.ambient
        x, y, z = self.half
        # Cut off well above 0: of smaller numbers nothing is seen, and their powers are slow to compute.
        np.maximum(nx * x + ny * y + nz * z, 0.1, out=shine)
        for _ in range(5):
            shine *= shine
        shine *= 90.0 * self.direct
        return out


def _shrink(planes: Float32[np.ndarray, "c rows columns"]) -> Float32[np.ndarray, "c h w"]:
    """Mean over the samples of each pixel."""
    rows = reduce(np.add, (planes[:, start::SAMPLES] for start in range(SAMPLES)))
    total = reduce(np.add, (rows[:, :, start::SAMPLES] for start in range(SAMPLES)))
    total *= 1.0 / SAMPLES**2
    return total


def _marked(
    texture: str, point: Triple, normals: Float32[np.ndarray, "3 rows columns"] | None
) -> Bool[np.ndarray, "rows columns"]:
    """Where the second colour of a texture is; patterns are about as fine on every shape."""
    x, y, z = point
    if texture == "stripes":
        band = z * 4.6
        return band - np.floor(band) < 0.45
    if texture == "checks":
        # The shifts keep flat faces off the borders between checks.
        cells = np.floor(x * 3.6 + 0.27) + np.floor(y * 3.6 + 0.27) + np.floor(z * 3.6)
        return cells - 2.0 * np.floor(cells * 0.5) > 0.5
    assert normals is not None, "dots lie flat on the surface"
    ax, ay, az = np.abs(normals)
    flat, sideways = (az > ax) & (az > ay), ax > ay
    u = np.where(flat | ~sideways, x, y) * 4.2
    v = np.where(flat, y, z) * 4.2
    u, v = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5
    return u * u + v * v < 0.085
