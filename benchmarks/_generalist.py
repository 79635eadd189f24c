"""Uni-Perceivers on random data, for benchmarks: a model, what it is asked, and a step of training.

Weights and data are random, so that data costs nothing; what a step costs does not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from allsight.models import UniPerceiver
from allsight.objectives import boltzmann_loss
from allsight.types import Closed, Query, Segment, Vocabulary

VOCAB = 512
TASK = "task"


def model_of(config: UniPerceiver.Config) -> UniPerceiver:
    """A model in training; all with the same settings have the same weights."""
    torch.manual_seed(0)
    return UniPerceiver(config).train()


def settings(**changes: object) -> UniPerceiver.Config:
    """`micro` with these changes."""
    given = {"vocab_size": VOCAB, "temperatures": (TASK,), **changes}
    return UniPerceiver.Config.variant("micro", **given)


def pictures(rows: int, size_px: int) -> Segment:
    return Segment("image", torch.randn(rows, 3, size_px, size_px))


def words(rows: int, length: int, *, causal: bool = False) -> Segment:
    return Segment("text", torch.randint(VOCAB - 1, (rows, length)), causal=causal)


def naming(rows: int, size_px: int, *, names: int, length: int) -> Query:
    """Which of the names is it: pictures against names of so many words."""
    among = Closed(f"{names} names", (words(names, length),))
    return Query((pictures(rows, size_px),), among, labels=torch.randint(names, (rows,)))


def captioning(rows: int, size_px: int, *, length: int) -> Query:
    """Captions of so many words in one pass."""
    text = words(rows, length, causal=True)
    return Query((pictures(rows, size_px), text), Vocabulary(), read=1, labels=text.content)


def tokens_of(model: UniPerceiver, query: Query) -> int:
    """Tokens of the query, that of the candidates not counted."""
    with torch.no_grad():
        x, _ = model.encoder.embed(query.inputs, query.read)
    return x.shape[0] * x.shape[1]


def loss_of(model: UniPerceiver, query: Query) -> Tensor:
    outputs = model.answer(query, task=TASK)
    return boltzmann_loss(outputs["logits"], outputs["labels"])


def pass_of(model: UniPerceiver, query: Query) -> Callable[[], None]:
    """Forward and backward."""

    def both() -> None:
        model.zero_grad(set_to_none=True)
        loss_of(model, query).backward()

    return both
