"""Cross entropies, and over how much weight each is a mean.

A weighted mean over a batch is sum(w l) / sum(w). Split into micro-batches it stays the same number only if
each part is scaled by its own sum(w) over the whole one; hence every loss here has its weight as a function
beside it (`Task.counts` returns that), and both must be called with the same arguments.

Letters: b batch, k classes, h w pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Integer, Shaped
from torch import Tensor

IGNORED = 255
"""Value of pixels that nobody labelled."""

Weights = Sequence[float] | None


def soft_cross_entropy(
    logits: Float[Tensor, "b k"],
    labels: Shaped[Tensor, "b ..."],
    *,
    label_smoothing: float = 0.0,
    class_weights: Weights = None,
) -> Float[Tensor, ""]:
    """Cross entropy with hard or soft labels, as a mean over `label_weight(labels)`.

    For hard labels it equals `torch.nn.CrossEntropyLoss(weight, label_smoothing=...)`, whose mean is the
    weighted one. For soft labels the mean is weighted too (PyTorch divides by the rows there), so that a soft
    label that is one-hot and the hard label give the same loss.

    Args:
        logits: Unnormalised log-probabilities.
        labels: Class indices [b], or weights over the classes [b, k] that sum to 1.
        label_smoothing: Share of the label that is spread evenly over all classes, 0..1.
        class_weights: Factor on each class's part of the loss; None is 1 for all.
    Returns:
        A scalar; a zero that keeps its graph where the batch has no weight.
    Source: Szegedy et al., arXiv:1512.00567, section 7 (smoothing).
    """
    targets = _soft(labels, logits.shape[1]).to(logits)
    log_p = logits.log_softmax(dim=1)
    smooth = targets * (1 - label_smoothing) + label_smoothing / logits.shape[1]
    if class_weights is None:
        return -(smooth * log_p).sum() / max(len(logits), 1)
    weights = logits.new_tensor(class_weights)
    total = (targets * weights).sum()
    return -(smooth * weights * log_p).sum() / torch.where(total > 0, total, torch.ones_like(total))


def label_weight(labels: Shaped[Tensor, "b ..."], *, class_weights: Weights = None) -> float:
    """Weight of a batch in `soft_cross_entropy`: its rows, or the sum of their labels' class weights."""
    if class_weights is None:
        return float(len(labels))
    weights = torch.tensor(class_weights, dtype=torch.float64, device=labels.device)
    return float((_soft(labels, len(class_weights)).double() * weights).sum())


def pixel_cross_entropy(
    logits: Float[Tensor, "b k h w"],
    labels: Integer[Tensor, "b h w"],
    *,
    class_weights: Weights = None,
    ignore: int = IGNORED,
) -> Float[Tensor, ""]:
    """Cross entropy per pixel, as a mean over `pixel_weight(labels)`: all labelled pixels of the batch.

    Args:
        logits: Unnormalised log-probabilities.
        labels: Class indices; `ignore` marks pixels that do not count.
        class_weights: Factor on the pixels of each class; None is 1 for all.
    Returns:
        A scalar; a zero that keeps its graph where no pixel counts.
    """
    weights = None if class_weights is None else logits.new_tensor(class_weights)
    # One row per pixel: on GPUs PyTorch's loss on maps is refused in deterministic mode, the one on rows not.
    rows = logits.permute(0, 2, 3, 1).flatten(0, 2)
    total = F.cross_entropy(
        rows, labels.flatten().long(), weight=weights, ignore_index=ignore, reduction="sum"
    )
    weight = pixel_weight(labels, class_weights=class_weights, ignore=ignore)
    return total / (weight if weight > 0 else 1.0)


def pixel_weight(
    labels: Integer[Tensor, "b h w"], *, class_weights: Weights = None, ignore: int = IGNORED
) -> float:
    """Weight of a batch in `pixel_cross_entropy`: its labelled pixels, or the sum of their class weights."""
    is_labelled = labels != ignore
    if class_weights is None:
        return float(is_labelled.sum())
    weights = torch.tensor(class_weights, dtype=torch.float64, device=labels.device)
    return float(weights[labels[is_labelled].long()].sum())


def _soft(labels: Shaped[Tensor, "b ..."], num_classes: int) -> Shaped[Tensor, "b k"]:
    return labels if labels.ndim == 2 else F.one_hot(labels, num_classes)
