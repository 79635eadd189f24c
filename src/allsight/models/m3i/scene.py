"""What one forward pass knows, each thing computed once: views, supervision, features of whole views."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from allsight.models.m3i.encoder import Encoder, Seen
from allsight.models.m3i.views import View


@dataclass(frozen=True)
class Captions:
    """One caption a row.

    Args:
        tokens: Ids, filled up behind.
        is_token: What is not filling.
        present: Rows that have a caption.
    """

    tokens: Int64[Tensor, "b t"]
    is_token: Bool[Tensor, "b t"]
    present: Bool[Tensor, " b"]


@dataclass(frozen=True)
class Groups:
    """Which rows see each other: consecutive ones, perhaps over neighbouring ranks (see `Batch`)."""

    size: int
    ranks: int = 1


class Scene:
    """A batch while it passes through the model.

    Args:
        views: The views of its samples.
        labels: Classes, -100 where nobody labelled; None: the task has none.
        captions: Captions; None: the task has none.
        groups: Which rows see each other.
        online: The encoder that learns.
        momentum: Its slow copy, where some target needs it.
        seen: Input view -> what the encoder made of it, role by role.
        is_whole: Whether inputs are whole views of one picture, so that they need not be encoded again.
    """

    def __init__(
        self,
        views: list[View],
        labels: Int64[Tensor, " b"] | None,
        captions: Captions | None,
        groups: Groups,
        *,
        online: Encoder,
        momentum: Encoder | None,
        is_whole: bool,
    ) -> None:
        self.views, self.labels, self.captions, self.groups = views, labels, captions, groups
        self._online, self._momentum, self._is_whole = online, momentum, is_whole
        self.stride = online.stride
        self.seen: dict[int, list[Seen]] = {}
        self._known: dict[tuple[str, int], Seen] = {}

    def pixels(self, view: int) -> Float[Tensor, "b 3 h w"]:
        """The pixels of a view, normalised."""
        return self._online.backbone.normalise(self.views[view].images)

    def online(self, view: int, *, gradient: bool) -> Seen:
        """Features of all cells of a view, by the encoder that learns."""
        if self._is_whole and view in self.seen:
            seen = self.seen[view][0]
            return seen if gradient else seen.detach()
        with nullcontext() if gradient else torch.no_grad():
            return self._once(f"online {gradient}", view, self._online.whole)

    def momentum(self, view: int) -> Seen:
        """Features of all cells of a view, by the slow copy; no gradient."""
        assert self._momentum is not None
        with torch.no_grad():
            return self._once("momentum", view, self._momentum.whole)

    def _once(self, who: str, view: int, encode: Callable[[Tensor], Seen]) -> Seen:
        key = (who, view)
        if key not in self._known:
            self._known[key] = encode(self.views[view].images)
        return self._known[key]
