"""Further negatives of pairs: those of earlier steps; and which of all say the same as a row's own target.

Letters: b rows, g rows of a group, q entries of the queue, t tokens, c channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from allsight.objectives import boltzmann_logits, equal_rows, false_negatives, group_candidates
from allsight.types import Segment


def same_texts(text: Segment, own: Tensor, group_size: int, group_ranks: int) -> Bool[Tensor, "b g"]:
    """Other rows of the group whose target says the same."""
    ids = text.content if text.mask is None else text.content.masked_fill(~text.mask, -1)
    candidates, _ = group_candidates(ids, group_size=group_size, group_ranks=group_ranks)
    same = equal_rows(ids.unflatten(0, (len(candidates), -1)), candidates, fill=-1).flatten(0, 1)
    return false_negatives(same, own)


def keys_of(text: Segment) -> Int64[Tensor, " b"]:
    """A number for each text, the same for the same ids; two different ones share it once in 2^63 or so."""
    ids = text.content + 1 if text.mask is None else (text.content + 1) * text.mask
    draw = np.random.Generator(np.random.Philox(0))
    factors = torch.from_numpy(draw.integers(-(2**63), 2**63 - 1, size=ids.shape[1], dtype=np.int64))
    # Products and sums go round at 2^64, which is what spreads them.
    return (ids * factors.to(ids.device)).sum(1)


def with_queue(
    outputs: Mapping[str, Tensor],
    queries: Float[Tensor, "b c"],
    targets: Float[Tensor, "b c"],
    keys: Int64[Tensor, " b"],
    scale: Tensor,
    queues: Any,
) -> dict[str, Tensor]:
    """Logits of a batch of pairs with the queue's behind them, and these pairs offered to the queue.

    Args:
        outputs: `logits`, `logits_back` [b, g] and `excluded` [b, g] without the queue.
        queries, targets: Features.
        keys: Of the rows' texts.
        scale: 1 / temperature.
        queues: `targets` and `queries`, each a `FeatureQueue` with keys.
    """
    old_targets, old_queries = (queues[side].negatives().to(queries) for side in ("targets", "queries"))
    there = boltzmann_logits(queries, old_targets, scale)
    back = boltzmann_logits(targets, old_queries, scale)
    # Both queues hold the same pairs in the same order.
    same = keys[:, None] == queues["targets"].negative_keys()[None]
    queues["targets"].offer(targets, keys)
    queues["queries"].offer(queries, keys)
    parts = {"logits": there, "logits_back": back, "excluded": same}
    return {name: torch.cat([outputs[name], part], dim=1) for name, part in parts.items()}
