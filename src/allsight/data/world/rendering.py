"""A scene as a picture and its truth: layers of toys over a backdrop, nearer ones over farther ones.

Letters in shapes: s side of the picture, h w the window of one toy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, UInt8

from allsight.data.order import keyed_bits
from allsight.data.world.backdrop import draw_backdrop
from allsight.data.world.layers import Layer, look, windows_of
from allsight.data.world.options import World
from allsight.data.world.sampling import sample_scene
from allsight.data.world.scene import Scene, Toy, with_relations
from allsight.data.world.shadows import cast_shadows
from allsight.data.world.vocabulary import IGNORE_LABEL, LABEL_CLASSES

_VALUES = {name: value for value, name in enumerate(LABEL_CLASSES)}
"""Of the shapes that are classes; stones and shapes that only captions name are none."""


@dataclass(frozen=True)
class Rendered:
    """A picture and its truth.

    Args:
        picture: RGB.
        instances: 0 where no toy is seen, else 1 + position in `scene.toys`.
        labels: Values of `vocabulary.LABEL_CLASSES`, `IGNORE_LABEL` on what is no class.
    """

    picture: UInt8[np.ndarray, "s s 3"]
    instances: UInt8[np.ndarray, "s s"]
    labels: UInt8[np.ndarray, "s s"]


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


def describe(scene: Scene) -> tuple[Scene, Rendered]:
    """Render a scene with all of its toys, and say what is to be seen: boxes, visible parts, relations.

    Raises:
        ValueError: A toy is hidden whole.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        layers = _layers(scene)
        instances = _stack(scene, layers)
        hidden = sorted(set(range(1, len(scene.toys) + 1)) - set(np.unique(instances).tolist()))
        if hidden:
            raise ValueError(f"{scene.name}: toy {hidden[0] - 1} cannot be seen")
        return _describe(scene, layers, instances), _assemble(scene, layers, instances)


def render(scene: Scene) -> Rendered:
    """Render a scene as it stands."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        layers = _layers(scene)
        return _assemble(scene, layers, _stack(scene, layers))


def _layers(scene: Scene) -> list[Layer]:
    """Layers of the toys, then of the stones."""
    toys = scene.toys + scene.stones
    return [look(scene, toy, windows) for toy, windows in zip(toys, windows_of(scene, toys), strict=True)]


def _order(toys: tuple[Toy, ...]) -> list[int]:
    """Positions of toys from the farthest to the nearest."""
    return sorted(range(len(toys)), key=lambda k: (-math.hypot(toys[k].x_m, toys[k].y_m), k))


def _stack(scene: Scene, layers: list[Layer]) -> UInt8[np.ndarray, "s s"]:
    """Which toy is seen where; stones hide toys too, but count as nothing."""
    instances = np.zeros((scene.camera.size_px, scene.camera.size_px), dtype=np.uint8)
    for k in _order(scene.toys + scene.stones):
        instances[layers[k].window][layers[k].mask] = k + 1 if k < len(scene.toys) else 0
    return instances


def _settle(scene: Scene, layers: list[Layer], least_visible: float, least_px: int) -> list[int]:
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


def _describe(scene: Scene, layers: list[Layer], instances: np.ndarray) -> Scene:
    """The scene with what is seen of each toy, and the relations that follow."""
    toys, hiding = [], []
    for k, toy in enumerate(scene.toys):
        layer = layers[k]
        window = instances[layer.window]
        mask = window == k + 1
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
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


def _assemble(scene: Scene, layers: list[Layer], instances: np.ndarray) -> Rendered:
    canvas, labels = draw_backdrop(scene)
    cast_shadows(scene, canvas)
    everything = scene.toys + scene.stones
    for k in _order(everything):
        layer = layers[k]
        part = canvas[:, *layer.window]
        part *= 1.0 - layer.cover
        part += layer.colours
        value = _VALUES.get(everything[k].shape, IGNORE_LABEL)
        labels[layer.window][layer.mask] = value
    return Rendered(_develop(scene, canvas), instances, labels)


def _develop(scene: Scene, canvas: Float32[np.ndarray, "3 s s"]) -> UInt8[np.ndarray, "s s 3"]:
    """Add the camera's noise (triangular, from integers alone) and round; writes into the canvas."""
    if scene.noise:
        draws = keyed_bits(1 << 64 | scene.noise_key)
        raw = draws.random_raw(-(-canvas.size // 4)).astype("<u8", copy=False).view(np.uint8)
        noise = np.add(*raw[: 2 * canvas.size].reshape(2, *canvas.shape), dtype=np.uint16).astype(np.float32)
        noise -= 255
        noise *= scene.noise / 255.0
        canvas += noise
    canvas += 0.5
    np.minimum(np.maximum(canvas, 0, out=canvas), 255, out=canvas)
    return np.stack([*canvas.astype(np.uint8)], axis=-1)
