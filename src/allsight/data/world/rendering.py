"""A scene as a picture and its truth: layers of toys over a backdrop, nearer ones over farther ones.

Letters in shapes: s side of the picture, h w the window of one toy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from allsight.data.world.backdrop import draw_backdrop
from allsight.data.world.options import World
from allsight.data.world.sampling import sample_scene
from allsight.data.world.scene import Scene, Sun, Toy, with_relations
from allsight.data.world.shapes import shape
from allsight.data.world.solids import FAR, Polyhedron, Triple
from allsight.data.world.vocabulary import IGNORE_LABEL, LABEL_CLASSES

SAMPLES = 2
"""Rays a pixel along each direction; edges of toys are smoothed over their square."""


@dataclass(frozen=True)
class Rendered:
    """A picture and its truth.

    Args:
        picture: RGB.
        instances: 0 where no toy is seen, else 1 + position in `scene.toys`.
        labels: Values of `vocabulary.LABEL_CLASSES`, `IGNORE_LABEL` on stones.
    """

    picture: UInt8[np.ndarray, "s s 3"]
    instances: UInt8[np.ndarray, "s s"]
    labels: UInt8[np.ndarray, "s s"]


@dataclass(frozen=True)
class _Layer:
    """One toy alone: colours multiplied by their coverage, and coverage, in its window of the picture."""

    top: int
    left: int
    colours: Float32[np.ndarray, "h w 3"]
    cover: Float32[np.ndarray, "h w"]

    @property
    def window(self) -> tuple[slice, slice]:
        h, w = self.cover.shape
        return slice(self.top, self.top + h), slice(self.left, self.left + w)

    @property
    def mask(self) -> Bool[np.ndarray, "h w"]:
        return self.cover >= 0.5


def compose(config: World.Config, split: str, stream: str, index: int) -> tuple[Scene, Rendered]:
    """Draw scene number `index` and render it; toys that are hidden more than allowed are left out.

    The scene that is returned says what is to be seen: boxes, visible parts, relations; `render` of it
    gives the same picture again.
    """
    scene = sample_scene(config, split, stream, index)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        layers = _layers(scene)
        keep = _settle(scene, layers, 1.0 - config.occlusion, least_px=max(12, (config.size_px // 16) ** 2))
        layers = [layers[k] for k in keep] + layers[len(scene.toys) :]
        scene = replace(scene, toys=tuple(scene.toys[k] for k in keep))
        instances = _stack(scene, layers)
        return _describe(scene, layers, instances), _assemble(scene, layers, instances)


def render(scene: Scene) -> Rendered:
    """Render a scene as it stands."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        layers = _layers(scene)
        return _assemble(scene, layers, _stack(scene, layers))


def _layers(scene: Scene) -> list[_Layer]:
    """Layers of the toys, then of the stones."""
    toys = scene.toys + scene.stones
    return [_layer(scene, toy, windows) for toy, windows in zip(toys, _windows(scene, toys), strict=True)]


def _order(toys: tuple[Toy, ...]) -> list[int]:
    """Positions of toys from the farthest to the nearest."""
    return sorted(range(len(toys)), key=lambda k: (-math.hypot(toys[k].x_m, toys[k].y_m), k))


def _stack(scene: Scene, layers: list[_Layer]) -> UInt8[np.ndarray, "s s"]:
    """Which toy is seen where; stones hide toys too, but count as nothing."""
    instances = np.zeros((scene.camera.size_px, scene.camera.size_px), dtype=np.uint8)
    for k in _order(scene.toys + scene.stones):
        instances[layers[k].window][layers[k].mask] = k + 1 if k < len(scene.toys) else 0
    return instances


def _settle(scene: Scene, layers: list[_Layer], least_visible: float, least_px: int) -> list[int]:
    """Positions of the toys that stay; the most hidden goes first, since others may show more without it."""
    keep = list(range(len(scene.toys)))
    alone = [int(np.count_nonzero(layer.mask)) for layer in layers]
    while keep:
        part = replace(scene, toys=tuple(scene.toys[k] for k in keep))
        instances = _stack(part, [layers[k] for k in keep] + layers[len(scene.toys) :])
        seen = np.bincount(instances.ravel(), minlength=len(keep) + 1)[1:]
        share = [seen[n] / alone[k] if seen[n] >= least_px else -1.0 for n, k in enumerate(keep)]
        # The main toy of a portrait stays: nothing but stones is ever put before it.
        candidates = [n for n, k in enumerate(keep) if k != scene.main and share[n] < least_visible]
        if not candidates:
            break
        del keep[min(candidates, key=lambda n: share[n])]
    return keep


def _describe(scene: Scene, layers: list[_Layer], instances: np.ndarray) -> Scene:
    """The scene with what is seen of each toy, and the relations that follow."""
    toys, hiding = [], []
    for k, toy in enumerate(scene.toys):
        layer = layers[k]
        window = instances[layer.window]
        mask = window == k + 1
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (
            layer.left + int(columns[0]),
            layer.top + int(rows[0]),
            layer.left + int(columns[-1]) + 1,
            layer.top + int(rows[-1]) + 1,
        )
        pixels = int(np.count_nonzero(mask))
        visible = round(pixels / int(np.count_nonzero(layer.mask)), 4)
        toys.append(replace(toy, box_xyxy_px=box, pixels=pixels, visible=visible))
        over = np.bincount(window[layer.mask], minlength=len(scene.toys) + 1)
        hiding += [(n, k) for n in range(len(scene.toys)) if n != k and over[n + 1] > 0]
    return with_relations(replace(scene, toys=tuple(toys)), hiding)


def _assemble(scene: Scene, layers: list[_Layer], instances: np.ndarray) -> Rendered:
    canvas, labels = draw_backdrop(scene)
    _cast_shadows(scene, canvas)
    everything = scene.toys + scene.stones
    for k in _order(everything):
        layer = layers[k]
        part = canvas[layer.window]
        part *= (1.0 - layer.cover)[..., None]
        part += layer.colours
        value = LABEL_CLASSES.index(everything[k].shape) if k < len(scene.toys) else IGNORE_LABEL
        labels[layer.window][layer.mask] = value
    return Rendered(_develop(scene, canvas), instances, labels)


def _develop(scene: Scene, canvas: np.ndarray) -> UInt8[np.ndarray, "s s 3"]:
    """Add the camera's noise (triangular, from integers alone) and round."""
    if scene.noise:
        rng = np.random.Generator(np.random.Philox(key=np.array([scene.noise_key, 1], dtype=np.uint64)))
        size = canvas.size
        raw = np.frombuffer(rng.bytes(2 * size), dtype=np.uint8).astype(np.float32)
        noise = (raw[:size] + raw[size:] - 255.0) * np.float32(scene.noise / 255.0)
        canvas = canvas + noise.reshape(canvas.shape)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


Window = tuple[int, int, int, int]
"""Top, left, bottom, right of some pixels."""


def _windows(scene: Scene, toys: tuple[Toy, ...], shadows: bool = False) -> list[list[Window]]:
    """Where each part of each toy is seen, or its shadow on the ground."""
    camera, points = scene.camera.matrix, []
    sun_x, sun_y, sun_z = scene.sun.direction
    for toy in toys:
        cos, sin = math.cos(toy.turn_rad) * toy.scale_m, math.sin(toy.turn_rad) * toy.scale_m
        # The shadow of a box is the hull of its corners pushed along the light onto the ground.
        height = toy.scale_m
        up = (-height * sun_x / sun_z, -height * sun_y / sun_z, 0.0) if shadows else (0.0, 0.0, height)
        world_from_toy = np.array(
            [
                [cos, -sin, up[0], toy.x_m],
                [sin, cos, up[1], toy.y_m],
                [0.0, 0.0, up[2], 0.0],
                [0.0, 0.0, 0.0, 1.0],
            ]
        )
        points.append(shape(toy.shape).corners @ (camera @ world_from_toy).T)
    if not points:
        return []
    windows = iter(scene.camera.windows(np.concatenate(points).reshape(-1, 8, 3)))
    return [[next(windows) for _ in shape(toy.shape).parts] for toy in toys]


def _union(windows: list[Window]) -> Window:
    """The window around all of these."""
    tops, lefts, lows, rights = zip(*windows, strict=True)
    return min(tops), min(lefts), max(lows), max(rights)


def _turned(toy: Toy, vector: Triple) -> Triple:
    """A vector of the world in the toy's frame."""
    cos, sin = math.cos(toy.turn_rad), math.sin(toy.turn_rad)
    x, y, z = vector
    return cos * x + sin * y, cos * y - sin * x, z


def _layer(scene: Scene, toy: Toy, windows: list[Window]) -> _Layer:
    """Cast rays at a toy alone."""
    form, camera = shape(toy.shape), scene.camera
    top, left, low, right = _union(windows)
    across, ahead, up = camera.rays(SAMPLES)
    fine = slice(top * SAMPLES, low * SAMPLES), slice(left * SAMPLES, right * SAMPLES)
    inverse = 1.0 / toy.scale_m
    x, y, z = _turned(toy, (-toy.x_m * inverse, -toy.y_m * inverse, camera.height_m * inverse))
    eye = (float(x), float(y), float(z))
    dx, dy, dz = _turned(toy, (across[:, fine[1]] * inverse, ahead[fine[0]] * inverse, up[fine[0]] * inverse))
    nearest = np.full(dx.shape, FAR, dtype=np.float32)
    codes = np.zeros(dx.shape, dtype=np.uint8)
    for part, code, (first, start, last, end) in zip(form.parts, form.codes, windows, strict=False):
        rows = slice((first - top) * SAMPLES, (last - top) * SAMPLES)
        columns = slice((start - left) * SAMPLES, (end - left) * SAMPLES)
        t, faces = part.solid.hit(eye, (dx[rows, columns], dy[rows, columns], dz[rows]))
        view = nearest[rows, columns]
        found = t < view
        np.copyto(view, t, where=found)
        np.copyto(codes[rows, columns], code if faces is None else faces + np.uint8(code), where=found)
    hits = np.flatnonzero(codes)
    t, code_of = nearest.take(hits), codes.take(hits)
    point = (
        eye[0] + t * dx.take(hits),
        eye[1] + t * dy.take(hits),
        eye[2] + t * dz.ravel().take(hits // dx.shape[1]),
    )
    normals = form.face_normals.take(code_of, axis=1)
    for part, code in zip(form.parts, form.codes, strict=False):
        if not isinstance(part.solid, Polyhedron):
            of_part = np.flatnonzero(code_of == code)
            x, y, z = (p.take(of_part) for p in point)
            normals[:, of_part] = part.solid.normals((x, y, z))
    light = _turned(toy, scene.sun.direction)
    strength, shine = _shade(scene.sun, point, normals, light, eye)
    marked = None
    if toy.texture != "plain":
        marked = form.textured.take(code_of) & _marked(toy.texture, point, normals)
    fine_planes = np.zeros((4, codes.size), dtype=np.float32)
    fine_planes[3] = codes.ravel() > 0
    for channel in range(3):
        paint = form.paints(toy.rgb, channel).take(code_of)
        if marked is not None:
            np.copyto(paint, toy.pattern_rgb[channel], where=marked)
        fine_planes[channel, hits] = paint * strength + shine
    planes = _shrink(fine_planes.reshape(4, *codes.shape))
    cover = planes[3]
    haze = 0.0 if scene.place.wall_m else 0.5 * toy.y_m / (toy.y_m + 40.0)
    colours = np.empty((*cover.shape, 3), dtype=np.float32)
    for channel in range(3):
        colours[..., channel] = planes[channel] * (1.0 - haze) + cover * (
            haze * scene.place.haze_rgb[channel]
        )
    return _Layer(top, left, colours, cover)


def _shrink(planes: Float32[np.ndarray, "c fine_h fine_w"]) -> Float32[np.ndarray, "c h w"]:
    """Mean over the samples of each pixel."""
    total = planes[:, ::SAMPLES, ::SAMPLES].copy()
    for row in range(SAMPLES):
        for column in range(SAMPLES):
            if row or column:
                total += planes[:, row::SAMPLES, column::SAMPLES]
    return total * (1.0 / SAMPLES**2)


def _shade(
    sun: Sun, point: Triple, normals: Float32[np.ndarray, "3 n"], light: Triple, eye: Triple
) -> tuple[Float32[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """Light on points of a surface from the sun and from above, and the grey levels of a soft highlight."""
    nx, ny, nz = normals
    facing = nx * light[0] + ny * light[1] + nz * light[2]
    # Light from above falls off towards the ground, where the toy shades itself.
    low = np.minimum(point[2] * 0.7 + 0.72, 1)
    strength = 1.25 * sun.direct * np.maximum(facing, 0) + sun.ambient * (0.78 + 0.22 * nz) * low
    size = math.sqrt(sum(float(e) ** 2 for e in eye))
    half = [float(a) + float(b) / size for a, b in zip(light, eye, strict=True)]
    length = math.sqrt(sum(h * h for h in half))
    shine = np.maximum(nx * (half[0] / length) + ny * (half[1] / length) + nz * (half[2] / length), 0)
    for _ in range(5):
        shine = shine * shine
    return strength, shine * (90.0 * sun.direct)


def _marked(texture: str, point: Triple, normals: Float32[np.ndarray, "3 n"]) -> Bool[np.ndarray, " n"]:
    """Where the second colour of a texture is; patterns are about as fine on every shape."""
    x, y, z = point
    if texture == "stripes":
        band = z * np.float32(4.6)
        return band - np.floor(band) < 0.45
    if texture == "checks":
        # The shifts keep flat faces off the borders between checks.
        cells = np.floor(x * 3.6 + 0.27) + np.floor(y * 3.6 + 0.27) + np.floor(z * 3.6)
        return cells - 2.0 * np.floor(cells * 0.5) > 0.5
    ax, ay, az = np.abs(normals)
    flat, sideways = (az > ax) & (az > ay), ax > ay
    u = np.where(flat | ~sideways, x, y) * np.float32(4.2)
    v = np.where(flat, y, z) * np.float32(4.2)
    u, v = u - np.floor(u) - 0.5, v - np.floor(v) - 0.5
    return u * u + v * v < 0.085


_SHADOW = 0.52
"""What is left of the light of the ground in full shadow."""


def _cast_shadows(scene: Scene, canvas: np.ndarray) -> None:
    """Darken the ground where toys keep the sun off, with soft edges."""
    camera, place = scene.camera, scene.place
    edge = camera.project(0.0, place.wall_m, 0.0)[1] if place.wall_m else camera.horizon_px
    first = max(0, math.ceil(edge))
    across, ahead, up = camera.rays(1)
    side = camera.size_px
    dark = np.zeros((side, side), dtype=np.float32)
    toys = scene.toys + scene.stones
    for toy, windows in zip(toys, _windows(scene, toys, shadows=True), strict=True):
        top, left, bottom, right = _union(windows)
        top = max(top, first)
        if top >= bottom:
            continue
        inverse = 1.0 / toy.scale_m
        light = _turned(toy, scene.sun.direction)
        depth = camera.height_m / -up[top:bottom]
        ground_x, ground_y = across[:, left:right] * depth - toy.x_m, ahead[top:bottom] * depth - toy.y_m
        x, y, _ = _turned(toy, (ground_x * inverse, ground_y * inverse, 0.0))
        for part, window in zip(shape(toy.shape).parts, windows, strict=True):
            rows = slice(max(window[0], top), max(window[2], top))
            columns = slice(window[1], window[3])
            if part.flat or rows.start == rows.stop:
                continue
            here = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
            t, _ = part.solid.hit((x[here], y[here], 0.0), light)
            view = dark[rows, columns]
            np.maximum(view, t < FAR, out=view)
    for _ in range(1 + side // 96):
        dark = _blur(dark)
    canvas *= (1.0 - (1.0 - _SHADOW) * dark)[..., None]


def _blur(values: np.ndarray) -> np.ndarray:
    """Weights 1 2 1 along columns and rows."""
    out = values.copy()
    out[1:-1] = (values[:-2] + values[2:] + 2 * values[1:-1]) * np.float32(0.25)
    values = out.copy()
    out[:, 1:-1] = (values[:, :-2] + values[:, 2:] + 2 * values[:, 1:-1]) * np.float32(0.25)
    return out
