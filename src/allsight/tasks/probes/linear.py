"""A linear layer on features that stay as they are: multinomial logistic regression.

Letters: n pictures, c channels, k classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from allsight.tasks.probes.features import Features

WEIGHT_DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""What `fit_linear` chooses from: factors of half the squared weights, beside the mean cross-entropy."""

_HELD_OUT_EVERY = 5
_MOST_ITERATIONS = 200


@dataclass(frozen=True)
class LinearProbe:
    """A fitted layer with the standardisation before it.

    Args:
        weight, bias: Of the standardised features.
        mean, deviation: Of the training features, per channel.
        weight_decay: The one that was chosen.
        held_out: Weight decay -> share of right answers on the held-out training pictures; empty where there
            was nothing to choose.
    """

    weight: Float64[Tensor, "k c"]
    bias: Float64[Tensor, " k"]
    mean: Float64[Tensor, " c"]
    deviation: Float64[Tensor, " c"]
    weight_decay: float
    held_out: dict[float, float]

    def __call__(self, vectors: Float[Tensor, "n c"]) -> Float64[Tensor, "n k"]:
        """Logits of features."""
        return F.linear((vectors.to(torch.float64) - self.mean) / self.deviation, self.weight, self.bias)


def fit_linear(
    train: Features, *, num_classes: int, weight_decays: Sequence[float] = WEIGHT_DECAYS
) -> LinearProbe:
    """Fit a linear layer by L-BFGS in float64 until it moves no more; no random numbers are involved.

    Channels are standardised with the training pictures' mean and deviation. Of several weight decays the
    best on every fifth training picture of each class is taken, from large to small until one is worse than
    the best before it (of equals the largest is kept); then all training pictures are used.

    Args:
        train: Features of training pictures with their classes.
        weight_decays: Candidates, all above 0.
    Raises:
        ValueError: Labels outside the classes, no candidate, one that is not above 0, or several where no
            class has five pictures to hold one out.
    """
    if not 0 <= int(train.labels.min()) <= int(train.labels.max()) < num_classes:
        raise ValueError(f"labels: expected classes from 0 to {num_classes - 1}")
    if min(weight_decays, default=0.0) <= 0:
        raise ValueError(f"weight_decays: expected numbers above 0, got {tuple(weight_decays)}")
    candidates = sorted(set(weight_decays), reverse=True)
    held_out: dict[float, float] = {}
    chosen, start = candidates[0], None
    if len(candidates) > 1:
        rows = _every_fifth_of_each_class(train)
        if not rows.any():
            raise ValueError(
                f"weight_decays: choosing among {len(candidates)} needs a class of {_HELD_OUT_EVERY} "
                "training pictures or more; give one candidate"
            )
        judges, others = train.take(rows), train.take(~rows)
        last = None
        for decay in candidates:
            last = _fitted(others, num_classes, decay, last)
            right = last(judges.vectors).argmax(dim=1) == judges.labels
            held_out[decay] = float(right.double().mean())
            if held_out[decay] < max(held_out.values()):
                break
            if start is None or held_out[decay] > held_out[chosen]:
                chosen, start = decay, last
    fitted = _fitted(train, num_classes, chosen, start)
    return replace(fitted, held_out=held_out)


def _fitted(train: Features, num_classes: int, decay: float, start: LinearProbe | None) -> LinearProbe:
    """The probe for one weight decay; `start`, that of a similar problem, saves iterations."""
    vectors = train.vectors.to(torch.float64)
    mean, deviation = vectors.mean(dim=0), vectors.std(dim=0, correction=0)
    deviation = torch.where(deviation > 1e-12, deviation, 1.0)
    weight = vectors.new_zeros((num_classes, vectors.shape[1])) if start is None else start.weight
    bias = vectors.new_zeros(num_classes) if start is None else start.bias
    weight, bias = _solved((vectors - mean) / deviation, train.labels, weight, bias, decay)
    return LinearProbe(weight, bias, mean, deviation, decay, {})


def _solved(
    vectors: Float64[Tensor, "n c"], labels: Tensor, weight: Tensor, bias: Tensor, decay: float
) -> tuple[Float64[Tensor, "k c"], Float64[Tensor, " k"]]:
    with torch.enable_grad():
        weight, bias = (tensor.clone().requires_grad_() for tensor in (weight, bias))
        solver = torch.optim.LBFGS(
            [weight, bias],
            max_iter=_MOST_ITERATIONS,
            history_size=20,
            tolerance_grad=1e-5,
            tolerance_change=1e-10,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Tensor:
            solver.zero_grad()
            value = F.cross_entropy(F.linear(vectors, weight, bias), labels)
            value = value + 0.5 * decay * weight.square().sum()
            value.backward()
            return value

        solver.step(loss)
    return weight.detach(), bias.detach()


def _every_fifth_of_each_class(train: Features) -> Bool[Tensor, " n"]:
    """True for the 5th, 10th ... picture of each class, in the order of the pictures."""
    held = torch.zeros_like(train.labels, dtype=torch.bool)
    for label in train.labels.unique():
        rows = (train.labels == label).nonzero().flatten()
        held[rows[_HELD_OUT_EVERY - 1 :: _HELD_OUT_EVERY]] = True
    return held
