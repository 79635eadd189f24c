"""Transforms of camera rigs: pictures with the matrices that follow them, the world with all that is in it.

Each is a picklable callable (sample, generator) -> sample and works on the input `rig` and on that of each
view (earlier frames of a clip). What moves a picture by an affine map A of its pixels multiplies its matrix
from the left; what moves the world by B multiplies it by the inverse of B from the right.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from allsight.data.transforms.carry import FILL, Window, crop_and_resize, flip_horizontally
from allsight.data.transforms.colour import ColorJitter
from allsight.data.transforms.compose import Fresh, Transform
from allsight.types import DataError, Image, Rig, Sample


def rig_of(sample: Sample) -> Rig:
    """The input `rig`.

    Raises:
        DataError: There is none.
    """
    rig = sample.inputs.get("rig")
    if not isinstance(rig, Rig):
        raise DataError(f"{sample.id}: no input 'rig'; it has {sorted(sample.inputs)}", sample.id)
    return rig


def on_rigs(sample: Sample, change: Callable[[Rig], Rig]) -> Sample:
    """The sample with the rigs of all its frames changed, the earlier frames first, then its own."""
    views = []
    for view in sample.views:
        rig = view.get("rig")
        views.append({**view, "rig": change(rig)} if isinstance(rig, Rig) else view)
    return replace(sample, views=tuple(views), inputs={**sample.inputs, "rig": change(rig_of(sample))})


def with_picture_map(rig: Rig, images: tuple[Image, ...], new_from_img: Float[Tensor, "n 3 3"]) -> Rig:
    """The rig with other pictures, whose pixels lie at `new_from_img` of the old ones."""
    matrices = (new_from_img.double() @ rig.img_from_ref.double()).to(rig.img_from_ref)
    return replace(rig, images=images, img_from_ref=matrices)


@dataclass(frozen=True)
class ResizeRig:
    """Bring every picture to a size, whatever its own.

    Args:
        hw_px: Height and width.
        how: `exact`: aspect not kept. `bottom`: brought to the width; then rows at the top (the sky) are cut
            off, or rows of the mean colour added below where the picture is too low.
    """

    hw_px: tuple[int, int]
    how: str = "bottom"

    def __post_init__(self) -> None:
        if self.how not in ("exact", "bottom") or min(self.hw_px) < 1:
            raise ValueError(f"ResizeRig: expected exact or bottom and a size above 0, got {self}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        def change(rig: Rig) -> Rig:
            cuts = [self._cut(image.hw_px) for image in rig.images]
            rig = _cropped(rig, [window for window, _ in cuts], [size for _, size in cuts])
            whole = Window(0, 0, self.hw_px[1], self.hw_px[0])
            return _cropped(rig, [whole] * len(cuts), [self.hw_px] * len(cuts))

        return on_rigs(sample, change)

    def least_hw_px(self, height: int, width: int, fresh: Fresh) -> tuple[int, int]:
        """The size to which a whole picture is brought, of which a part may be cut off."""
        window, size = self._cut((height, width))
        return math.ceil(height * size[0] / window.height), math.ceil(width * size[1] / window.width)

    def _cut(self, hw_px: tuple[int, int]) -> tuple[Window, tuple[int, int]]:
        """What is shown of a picture, and the size it gets before rows are added below."""
        (height, width), (most, across) = hw_px, self.hw_px
        if self.how == "exact":
            return Window(0, 0, width, height), self.hw_px
        rows = max(1, round(most * width / across))
        if rows <= height:
            return Window(0, height - rows, width, rows), self.hw_px
        return Window(0, 0, width, height), (min(most, max(1, round(height * across / width))), across)


@dataclass(frozen=True)
class RandomCropRig:
    """Enlarge every picture by a random factor and cut its own size out at a random place.

    Args:
        most: The factor is drawn between 1 and this.
        flip: Probability of mirroring a picture; its matrix follows, the world stays.
    """

    most: float = 1.2
    flip: float = 0.0

    def __post_init__(self) -> None:
        if self.most < 1 or not 0 <= self.flip <= 1:
            raise ValueError(f"RandomCropRig: expected most >= 1 and 0 <= flip <= 1, got {self}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        def change(rig: Rig) -> Rig:
            draws = rng.random((len(rig.images), 4))
            windows = [self._window(image, draw) for image, draw in zip(rig.images, draws, strict=True)]
            rig = _cropped(rig, windows, [image.hw_px for image in rig.images])
            return _flipped(rig, (draws[:, 3] < self.flip).tolist())

        return on_rigs(sample, change)

    def _window(self, image: Image, draws: np.ndarray) -> Window:
        height, width = image.hw_px
        scale = 1 + (self.most - 1) * draws[0]
        rows, columns = max(1, round(height / scale)), max(1, round(width / scale))
        top, left = int(draws[1] * (height - rows + 1)), int(draws[2] * (width - columns + 1))
        return Window(left, top, columns, rows)


@dataclass(frozen=True)
class JitterRig:
    """Change the colours of every picture for itself.

    Args:
        jitter: Changes the colours of one picture, such as `ColorJitter` or `PhotometricDistortion`.
    """

    jitter: Transform = field(default_factory=ColorJitter)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        def change(rig: Rig) -> Rig:
            images = [self.jitter(Sample(sample.id, {"image": image}), rng).image for image in rig.images]
            return replace(rig, images=tuple(images))

        return on_rigs(sample, change)


@dataclass(frozen=True)
class GridMask:
    """Wipe out squares on a grid, the same in all pictures of a moment; earlier frames of a clip stay whole.

    Of each period of the grid, the half that is neither a kept row nor a kept column goes: about a quarter of
    the picture. It becomes the mean colour, which is 0 once pictures are normalised.

    Args:
        probability: Of wiping anything out.

    Source: GridMask, arXiv:2001.04086; fundamentalvision/BEVFormer:projects/mmdet3d_plugin/models/utils/
    grid_mask.py (periods from 2 to the height, no turn).
    """

    probability: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"GridMask: expected a probability from 0 to 1, got {self.probability}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        draws = rng.random(4)
        rig = rig_of(sample)
        if draws[0] >= self.probability:
            return sample
        images = tuple(self._masked(image, draws[1:]) for image in rig.images)
        return replace(sample, inputs={**sample.inputs, "rig": replace(rig, images=images)})

    def _masked(self, image: Image, draws: np.ndarray) -> Image:
        height, width = image.hw_px
        period = 2 + int(draws[0] * max(height - 2, 1))
        kept = min(max((period + 1) // 2, 1), period - 1)
        rows, columns = (
            (np.arange(side) + int(draw * period)) % period >= kept
            for side, draw in zip((height, width), draws[1:], strict=True)
        )
        pixels = image.pixels.permute(1, 2, 0).clone(memory_format=torch.contiguous_format)
        lines = pixels.numpy().reshape(height, 3 * width)
        fill = np.tile(np.array((0, 0, 0) if pixels.is_floating_point() else FILL, lines.dtype), width)
        wiped = np.repeat(columns, 3)
        for row in np.flatnonzero(rows):  # line by line: many times quicker than to index both axes
            np.copyto(lines[row], fill, where=wiped)
        return replace(image, pixels=pixels.permute(2, 0, 1))


@dataclass(frozen=True)
class NoisyExtrinsics:
    """Turn and shift every camera a little without moving its picture: what a bad calibration says.

    Args:
        turn_rad: Standard deviation of the turn about each axis, around the camera.
        shift_m: Standard deviation of the shift along each axis.
    """

    turn_rad: float = 0.01
    shift_m: float = 0.05

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        def change(rig: Rig) -> Rig:
            noise = rng.standard_normal((len(rig.images), 6))
            matrices = rig.img_from_ref.double().numpy()
            return replace(
                rig, img_from_ref=torch.from_numpy(self._moved(matrices, noise)).to(rig.img_from_ref)
            )

        return on_rigs(sample, change)

    def _moved(self, matrices: np.ndarray, noise: np.ndarray) -> np.ndarray:
        from scipy.spatial.transform import Rotation

        moved = []
        for matrix, values in zip(matrices, noise, strict=True):
            place = -np.linalg.solve(matrix[:, :3], matrix[:, 3])
            turn = Rotation.from_rotvec(values[:3] * self.turn_rad).as_matrix()
            # A point as the wrong calibration sees it: turned around the camera, and shifted.
            shift = place - turn @ place + values[3:] * self.shift_m
            moved.append(
                np.concatenate([matrix[:, :3] @ turn, (matrix[:, :3] @ shift + matrix[:, 3])[:, None]], 1)
            )
        return np.array(moved).reshape(-1, 3, 4)


@dataclass(frozen=True)
class DropCameras:
    """Leave cameras out, as if they had delivered nothing; one at least stays.

    Args:
        probability: Of each camera.
        names: Only these can fail; default all.
    """

    probability: float = 0.1
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"DropCameras: expected a probability from 0 to 1, got {self.probability}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        def change(rig: Rig) -> Rig:
            draws = rng.random(len(rig.images))
            can_fail = np.array([not self.names or name in self.names for name in names_of(rig)], dtype=bool)
            keep = np.flatnonzero((draws >= self.probability) | ~can_fail)
            return picked(rig, (keep if len(keep) else [int(draws.argmax())]))

        return on_rigs(sample, change)


@dataclass(frozen=True)
class PermuteCameras:
    """Put the cameras into a random order, matrices along, names not: a model must not learn them by place.

    Args:
        matrices: False leaves the matrices where they are, which breaks the calibration: a model that still
            finds anything does not use it.
    """

    matrices: bool = True

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        order = rng.permutation(len(rig_of(sample).images))

        def change(rig: Rig) -> Rig:
            if len(rig.images) != len(order):
                return rig
            images = tuple(rig.images[n] for n in order.tolist())
            matrices = rig.img_from_ref[torch.from_numpy(order)] if self.matrices else rig.img_from_ref
            return replace(rig, images=images, img_from_ref=matrices)

        return on_rigs(sample, change)


def names_of(rig: Rig) -> tuple[str, ...]:
    """Names of the cameras; numbers where there are none."""
    return rig.camera_names or tuple(str(n) for n in range(len(rig.images)))


def picked(rig: Rig, places: list[int] | np.ndarray) -> Rig:
    """The rig with these of its cameras, in this order."""
    order = [int(place) for place in places]
    return replace(
        rig,
        images=tuple(rig.images[n] for n in order),
        img_from_ref=rig.img_from_ref[order],
        camera_names=tuple(names_of(rig)[n] for n in order),
    )


def mirrored(rig: Rig) -> Rig:
    """Every picture mirrored, matrices along."""
    return _flipped(rig, [True] * len(rig.images))


def _cropped(rig: Rig, windows: list[Window], sizes: list[tuple[int, int]]) -> Rig:
    """Each picture's window, brought to its size."""
    images, maps = [], []
    for image, window, size in zip(rig.images, windows, sizes, strict=True):
        changed = crop_and_resize(Sample("", {"image": image}), window, size, fill=FILL)
        images.append(changed.image)
        x, y = size[1] / window.width, size[0] / window.height
        maps.append([[x, 0, -x * window.left], [0, y, -y * window.top], [0, 0, 1]])
    return with_picture_map(rig, tuple(images), torch.tensor(maps, dtype=torch.float64).reshape(-1, 3, 3))


def _flipped(rig: Rig, which: list[bool]) -> Rig:
    images, maps = [], []
    for image, is_flipped in zip(rig.images, which, strict=True):
        images.append(flip_horizontally(Sample("", {"image": image})).image if is_flipped else image)
        width = (image.valid_hw_px or image.hw_px)[1]
        maps.append([[-1, 0, width], [0, 1, 0], [0, 0, 1]] if is_flipped else np.eye(3).tolist())
    return with_picture_map(rig, tuple(images), torch.tensor(maps, dtype=torch.float64).reshape(-1, 3, 3))
