"""What one forward pass knows, each thing computed once: views, supervision, features of whole views."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        momentum_rows: View -> the samples of which a target of the slow copy is wanted; all where not named.
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
        momentum_rows: Mapping[int, Int64[Tensor, " r"]] | None = None,
    ) -> None:
        self.views, self.labels, self.captions, self.groups = views, labels, captions, groups
        self._online, self._momentum, self._is_whole = online, momentum, is_whole
        self._momentum_rows = momentum_rows or {}
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
        """Features of all cells of a view, by the slow copy, of the samples that are wanted; no gradient."""
        assert self._momentum is not None
        with torch.no_grad():
            return self._once("momentum", view, self._momentum.whole, self._momentum_rows.get(view))

    def momentum_places(self, view: int, rows: Int64[Tensor, " b"]) -> Int64[Tensor, " b"]:
        """Where samples that are wanted lie among the rows of `momentum(view)`."""
        wanted = self._momentum_rows.get(view)
        if wanted is None:
            return rows
        places = torch.zeros(len(self.views[view]), dtype=torch.int64, device=rows.device)
        places[wanted] = torch.arange(len(wanted), device=rows.device)
        return places[rows]

    def _once(
        self, who: str, view: int, encode: Callable[[Tensor], Seen], rows: Tensor | None = None
    ) -> Seen:
        key = (who, view)
        if key not in self._known:
            images = self.views[view].images
            self._known[key] = encode(images if rows is None else images[rows])
        return self._known[key]
