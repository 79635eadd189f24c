"""From the segments of a query to one sequence: <SPE>, the parts, and who may look at whom.

A causal segment that is read gets one more <SPE> a token, at the same positions: <SPE> i sees what comes
before word i and predicts it. Training in one pass is then the same as writing word by word.

Letters: b rows, t tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from allsight.types import Segment


@dataclass(frozen=True)
class Layout:
    """Where things are in a sequence.

    Args:
        segments: Parts of the sequence, copies of <SPE> included.
        lengths: Tokens of each, without the <SPE> in front.
        read: Tokens to read, first and the one after the last.
        mask: True where a token may look, [1 or b, 1 or t, t]; None: everywhere.
        is_open: Tokens that are no padding and seen by all [b, t]; None: all.
        real: Tokens that are no padding [b, t]; None: all.
    """

    segments: tuple[Segment, ...]
    lengths: tuple[int, ...]
    read: tuple[int, int]
    mask: Bool[Tensor, "rows q t"] | None
    is_open: Bool[Tensor, "b t"] | None
    real: Bool[Tensor, "b t"] | None


def lay_out(segments: Sequence[Segment], lengths: Sequence[int], read: int | None) -> Layout:
    """Lay out a sequence.

    Args:
        segments: Its parts; what is behind the <SPE> in front.
        lengths: Tokens of each.
        read: As in `Query`.
    """
    copied = read is not None and segments[read].causal
    parts, counts = list(segments), list(lengths)
    if copied:
        assert read is not None
        parts.append(segments[read])
        counts.append(lengths[read])
    starts = [0, *accumulate(counts)]  # of each part, not counting the first <SPE>
    if read is None:
        span = (0, 1)
    else:
        at = len(parts) - 1 if copied else read
        span = (1 + starts[at], 1 + starts[at] + counts[at])
    device = segments[0].content.device
    real = _real(parts, counts)
    if not any(segment.causal for segment in parts):
        mask = None if real is None else real[:, None]
        return Layout(tuple(parts), tuple(counts), span, mask, real, real)
    is_open = torch.ones(1 + starts[-1], dtype=torch.bool)
    is_copy = torch.zeros_like(is_open)
    order = torch.full((len(is_open),), -1)
    for number, (segment, count) in enumerate(zip(parts, counts, strict=True)):
        own = slice(1 + starts[number], 1 + starts[number] + count)
        if segment.causal:
            is_open[own] = False
            at = starts[read] if copied and number == len(parts) - 1 and read is not None else starts[number]
            order[own] = 1 + at + torch.arange(count)
            is_copy[own] = copied and number == len(parts) - 1
    before = order[None] < order[:, None]
    itself = (order[None] == order[:, None]) & ~is_copy[:, None]
    word = ~is_open & ~is_copy
    allowed = is_open[None] | (word[None] & (before | itself)) | (is_copy[None] & is_copy.diag())
    allowed, is_open = allowed.to(device)[None], is_open.to(device)[None]
    if real is not None:
        allowed, is_open = allowed & real[:, None], is_open & real
    is_open = is_open.expand(len(segments[0].content), -1)
    return Layout(tuple(parts), tuple(counts), span, allowed, is_open, real)


def first_positions(segments: Sequence[Segment]) -> list[int | Int64[Tensor, " b"]]:
    """Position of each segment's first token: texts go on where those before them end, padding left out.

    So two texts are as one, and which of them comes first shows. A text that is written starts anew.
    """
    firsts: list[int | Tensor] = []
    end: int | Tensor = 0
    for segment in segments:
        goes_on = segment.modality == "text" and not segment.causal
        firsts.append(end if goes_on else 0)
        if goes_on:
            end = end + (segment.content.shape[1] if segment.mask is None else segment.mask.sum(1))
    return firsts


def _real(segments: Sequence[Segment], lengths: Sequence[int]) -> Bool[Tensor, "b t"] | None:
    """Which tokens of <SPE> and parts are no padding; None: all are."""
    if all(segment.mask is None for segment in segments):
        return None
    content = segments[0].content
    parts = [torch.ones(len(content), 1, dtype=torch.bool, device=content.device)]
    for segment, length in zip(segments, lengths, strict=True):
        full = parts[0].expand(-1, length)
        parts.append(full if segment.mask is None else segment.mask)
    return torch.cat(parts, dim=1)
