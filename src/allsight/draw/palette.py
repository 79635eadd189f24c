"""Colours that are easily told apart, also by people who confuse red and green."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

Rgb = tuple[int, int, int]

_FIRST: tuple[Rgb, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
)
_LARGEST = 256

# Linear RGB as seen without the red-sensitive and without the green-sensitive cones (Vienot, Brettel and
# Mollon 1999).
_PROTANOPE = np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]])
_DEUTERANOPE = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])


@lru_cache(maxsize=8)
def palette(count: int) -> tuple[Rgb, ...]:
    """`count` colours; a longer palette starts with the shorter one, so that a class keeps its colour.

    The first seven are Okabe and Ito's colour-blind safe set; each further one is the colour farthest from
    all before it, for normal and for red-green blind eyes together. Beyond about 20 colours no palette is
    safe: label them too.

    Args:
        count: 0 to 256.
    Raises:
        ValueError: `count` is out of range.
    Source: Okabe and Ito, "Color Universal Design" (2008).
    """
    if not 0 <= count <= _LARGEST:
        raise ValueError(f"palette: expected 0 to {_LARGEST} colours, got {count}")
    if count <= len(_FIRST):
        return _FIRST[:count]
    return _all_colours()[:count]


@lru_cache(maxsize=1)
def _all_colours() -> tuple[Rgb, ...]:
    steps = np.linspace(30, 250, 12).round()
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    candidates = np.concatenate([np.array(_FIRST, dtype=np.float64), grid])
    seen = np.stack([_lab(candidates, eye) for eye in (np.eye(3), _PROTANOPE, _DEUTERANOPE)])
    chosen = list(range(len(_FIRST)))
    # Normal eyes count twice: two colours that only they tell apart are better than two that nobody does.
    nearest = np.full(len(candidates), np.inf)

    def approach(number: int) -> None:
        apart = np.sqrt(((seen - seen[:, number : number + 1]) ** 2).sum(axis=-1))
        np.minimum(nearest, (2 * apart[0] + apart[1] + apart[2]) / 4, out=nearest)

    for number in chosen:
        approach(number)
    while len(chosen) < _LARGEST:
        farthest = int(nearest.argmax())
        chosen.append(farthest)
        approach(farthest)
    return tuple((int(r), int(g), int(b)) for r, g, b in candidates[chosen])


def _lab(rgb: np.ndarray, eye: np.ndarray) -> np.ndarray:
    """OKLab coordinates of sRGB colours 0..255 seen by an eye (Ottosson 2020)."""
    linear = ((rgb / 255 + 0.055) / 1.055) ** 2.4 @ eye.T
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    opponent = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.cbrt(np.maximum(linear, 0) @ cones.T) @ opponent.T


def readable_on(color: Rgb) -> Rgb:
    """Black or white, whichever is easier to read on this colour."""
    r, g, b = color
    return (0, 0, 0) if 0.299 * r + 0.587 * g + 0.114 * b > 140 else (255, 255, 255)
