"""How likely a target is, given what a network predicts: the likelihoods that all objectives share.

`Boltzmann` is that of discrete sets: P(y | x) = exp(s(x, y) / temperature) / sum over the set. Where the set
comes from (groups of rows, gathered rows, a queue, a closed set in slices): `gathering` and `FeatureQueue`.

Letters: b rows, s candidates, d features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

IGNORED_LABEL = -100
"""Label of rows that do not count."""


def boltzmann_logits(
    queries: Float[Tensor, "*lead b d"],
    candidates: Float[Tensor, "*sets s d"],
    scale: Float[Tensor, ""] | float,
    *,
    is_unit: bool = False,
) -> Float[Tensor, "*lead b s"]:
    """Cosine similarity over the temperature: the logarithm of P up to a constant of the row.

    Args:
        queries: What asks; need not be normalised.
        candidates: What it is compared with; one set for all, or one for each leading index.
        scale: 1 / temperature.
        is_unit: Candidates are normalised already, such as large sets that are kept.
    Source: Uni-Perceiver, arXiv:2112.01522, eq. 1.
    """
    candidates = candidates if is_unit else F.normalize(candidates, dim=-1)
    return scale * (F.normalize(queries, dim=-1) @ candidates.transpose(-2, -1))


def boltzmann_loss(
    logits: Float[Tensor, "*lead s"],
    labels: Shaped[Tensor, "*labels"],
    *,
    label_smoothing: float = 0.0,
    excluded: Bool[Tensor, "*lead s"] | None = None,
) -> Float[Tensor, ""]:
    """-log P(label | row), as a mean over `boltzmann_count(labels)`.

    Args:
        logits: As `boltzmann_logits` gives them.
        labels: Index of the right candidate [*lead], -100 where the row does not count; or weights over the
            set [*lead, s] that sum to 1 (soft labels; a row of zeros does not count).
        label_smoothing: Share of each label that is spread evenly over the candidates, 0..1.
        excluded: Candidates that are no negatives for a row (another name of the right one); they leave the
            set. A candidate with weight of the row's own label stays.
    Returns:
        A scalar; a zero that keeps its graph where no row counts.
    """
    if excluded is None and labels.ndim < logits.ndim:
        # Vocabularies are wide: the general form below goes over rows times candidates a dozen times.
        rows, wanted = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
        total = F.cross_entropy(
            rows, wanted, ignore_index=IGNORED_LABEL, label_smoothing=label_smoothing, reduction="sum"
        )
        return total / (wanted != IGNORED_LABEL).sum().clamp_min(1)
    weights = _weights(labels, logits)
    counts = weights.sum(-1) > 0
    allowed = torch.ones_like(weights, dtype=torch.bool)
    if excluded is not None:
        allowed = ~excluded | (weights > 0)
        logits = logits.masked_fill(~allowed, float("-inf"))
    log_p = logits.log_softmax(-1).masked_fill(~allowed, 0.0)
    even = allowed.to(logits) / allowed.sum(-1, keepdim=True)
    wanted = weights * (1 - label_smoothing) + label_smoothing * even * counts[..., None]
    return -(wanted * log_p).sum() / counts.sum().clamp_min(1)


def boltzmann_count(labels: Shaped[Tensor, "*labels"], *, is_soft: bool = False) -> float:
    """Over how many rows `boltzmann_loss` takes its mean; `is_soft`: the last dimension is the set."""
    counts = labels.sum(-1) > 0 if is_soft else labels != IGNORED_LABEL
    return float(counts.sum())


def false_negatives(
    is_same: Bool[Tensor, "*lead b s"], own: Shaped[Tensor, "*lead b"]
) -> Bool[Tensor, "*lead b s"]:
    """Candidates to exclude: the same as the row's own target, but not it.

    Args:
        is_same: Whether a candidate says what the row's own target says (see `equal_rows`).
        own: Place of the row's own target.
    """
    return is_same & ~F.one_hot(own, is_same.shape[-1]).bool()


def _weights(labels: Tensor, logits: Tensor) -> Tensor:
    if labels.ndim == logits.ndim:
        return labels.to(logits)
    is_real = labels != IGNORED_LABEL
    hot = F.one_hot(labels.clamp_min(0), logits.shape[-1])
    return (hot * is_real[..., None]).to(logits)
