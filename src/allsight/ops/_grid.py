"""What the references of all sampling operators share."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

# Any normalised coordinate beyond +-2 lies outside maps of every size, so the point contributes nothing.
_OUTSIDE = 3.0


def near_the_map(grid: Float[Tensor, "*points xy=2"]) -> Float[Tensor, "*points xy=2"]:
    """Bring points of a grid for `F.grid_sample` that are not finite or far outside to a place just outside.

    There they contribute zero and pass no gradient, as they should; left alone, coordinates near the largest
    number of their type overflow inside `F.grid_sample` and turn into NaN.
    """
    return grid.clamp(-_OUTSIDE, _OUTSIDE).nan_to_num(nan=_OUTSIDE)
