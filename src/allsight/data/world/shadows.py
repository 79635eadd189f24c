"""Shadows on the ground, with soft edges.

Letters in shapes: s side of the picture, h w a window of it.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float32

from allsight.data.world.layers import rays_at, windows_of
from allsight.data.world.scene import Scene
from allsight.data.world.shapes import shape
from allsight.data.world.solids import Torus

_LEFT = 0.52
"""What is left of the light of the ground in full shadow."""


def cast_shadows(scene: Scene, canvas: Float32[np.ndarray, "3 s s"]) -> None:
    """Darken the ground where toys keep the sun off."""
    camera, place = scene.camera, scene.place
    edge = camera.project(0.0, place.wall_m, 0.0)[1] if place.wall_m else camera.horizon_px
    first, side = max(0, math.ceil(edge)), camera.size_px
    dark = np.zeros((side, side), dtype=np.float32)
    edges: list[tuple[int, int, int, int]] = []
    toys = scene.toys + scene.stones
    for toy, windows in zip(toys, windows_of(scene, toys, shadows=True), strict=True):
        form, rays = shape(toy.shape), rays_at(scene, toy, 1)
        light = rays.stand.turned(scene.sun.direction)
        borders = rays.stand.borders(*form.hulls.borders(light))
        for number, span in form.shading:
            top, left, bottom, right = windows[number]
            top = max(top, first)
            if top >= bottom:
                continue
            near = rays.window(top, left, bottom, right)
            shade = near.inside(borders[:, span])
            solid = form.parts[number].solid
            if isinstance(solid, Torus):
                shade &= solid.stops((*near.ground(), 0.0), light)
            view = dark[top:bottom, left:right]
            np.maximum(view, shade, out=view)
            edges.append((top, left, side - bottom, side - right))
    if not edges:
        return
    times = 1 + side // 96
    # Nothing is dark farther away than the soft edge reaches.
    top, left, below, beside = (max(0, min(edge) - times - 1) for edge in zip(*edges, strict=True))
    window = slice(top, side - below), slice(left, side - beside)
    dark = dark[window]
    for _ in range(times):
        dark = _blur(dark)
    dark *= _LEFT - 1.0
    dark += 1.0
    canvas[:, *window] *= dark


def _blur(values: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """Weights 1 2 1 along columns and rows; the border stays as it is."""
    out = values.copy()
    for first, middle, last in (
        (np.s_[:-2], np.s_[1:-1], np.s_[2:]),
        (np.s_[:, :-2], np.s_[:, 1:-1], np.s_[:, 2:]),
    ):
        values = out.copy()
        inner = out[middle]
        inner *= 2
        inner += values[first]
        inner += values[last]
        inner *= 0.25
    return out
