"""Features of the candidates: sets that all rows share are encoded once a step, or once if nothing changes.

Letters: s candidates, c channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from allsight.models.uniperceiver.conditions import Purpose
from allsight.models.uniperceiver.encoder import Encoder
from allsight.objectives import encode_shared, num_ranks
from allsight.types import Closed, Segment, Vocabulary


@dataclass(frozen=True)
class _Kept:
    """Features, and the state of the weights and the texts that they belong to."""

    stamp: tuple[object, ...]
    contents: tuple[Tensor, ...]
    features: Tensor


class Candidates:
    """Encodes and remembers candidate sets. Holds no weights.

    Args:
        shard_above: Larger sets are split over ranks.
    """

    def __init__(self, shard_above: int) -> None:
        self._shard_above = shard_above
        self._kept: dict[tuple[str, bool], _Kept] = {}

    def __deepcopy__(self, memo: object) -> Candidates:
        return Candidates(self._shard_above)

    def features(
        self, encoder: Encoder, among: Closed | Vocabulary, purpose: Purpose
    ) -> Float[Tensor, "s c"]:
        """Projected features of a set, one a candidate, normalised to length 1.

        They are kept while the weights stay what they are: in evaluation, and in training where targets
        learn nothing (then they are those of evaluation mode).
        """
        segments, key = self._segments(encoder, among)
        target = replace(purpose, is_target=True)
        frozen = not any(p.requires_grad for p in encoder.target_parameters())
        if encoder.training and not frozen:
            return self._encode(encoder, segments, target)
        slot = (
            f"{key}/{purpose.task}" if _depends_on_task(encoder) else key,
            torch.is_inference_mode_enabled(),
        )
        stamp = _stamp(encoder, target)
        contents = tuple(segment.content for segment in segments)
        kept = self._kept.get(slot)
        if kept is None or kept.stamp != stamp or not _equal(kept.contents, contents):
            # One by one: parts may be in another mode than the whole (`train_quietly`).
            training = [module for module in encoder.modules() if module.training]
            encoder.eval()
            try:
                with torch.no_grad():
                    kept = _Kept(stamp, contents, self._encode(encoder, segments, target))
            finally:
                for module in training:
                    module.training = True
            self._kept[slot] = kept
        return kept.features

    def _segments(self, encoder: Encoder, among: Closed | Vocabulary) -> tuple[tuple[Segment, ...], str]:
        if isinstance(among, Closed):
            return among.candidates, f"closed/{among.key}"
        words = torch.arange(encoder.text.words.num_embeddings, device=encoder.mean.device)
        ids = words[:, None]
        if encoder.word_end is not None:
            ids = torch.cat([ids, torch.full_like(ids, encoder.word_end)], dim=1)
        return (Segment("text", ids),), "vocabulary"

    def _encode(
        self, encoder: Encoder, segments: Sequence[Segment], purpose: Purpose
    ) -> Float[Tensor, "s c"]:
        def encode(indices: Int64[Tensor, " part"]) -> Float[Tensor, "part c"]:
            # Normalised here, so that ranks do their slice alone, and what is kept needs nothing each step.
            return F.normalize(encoder([_rows(s, indices) for s in segments], purpose), dim=-1)

        count, device = len(segments[0].content), segments[0].content.device
        if num_ranks() > 1 and count > self._shard_above:
            return encode_shared(encode, count, device=device)
        return encode(torch.arange(count, device=device))


def _rows(segment: Segment, indices: Int64[Tensor, " part"]) -> Segment:
    mask = None if segment.mask is None else segment.mask[indices]
    return replace(segment, content=segment.content[indices], mask=mask)


def _depends_on_task(encoder: Encoder) -> bool:
    return any(router.settings.routing == "task" for router in encoder.trunk.routers().values())


def _stamp(encoder: Encoder, purpose: Purpose) -> tuple[object, ...]:
    """Changes whenever a weight does: PyTorch counts writes to a tensor."""
    parameters = encoder.target_parameters()
    written = sum(p._version for p in parameters)
    like = parameters[0]
    autocast = torch.is_autocast_enabled(like.device.type)
    return written, like.device, like.dtype, autocast, purpose.attributes("text", causal=False)


def _equal(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return len(a) == len(b) and all(
        x is y or (x.shape == y.shape and x.device == y.device and torch.equal(x, y))
        for x, y in zip(a, b, strict=True)
    )
