"""Classes by the vote of the nearest training pictures.

Letters: n queries, c channels, k classes.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from allsight.tasks.probes.features import Features

_CHUNK = 1024
"""Queries, and sixteenth of training pictures, that are compared at once."""


def vote(
    train: Features,
    queries: Float[Tensor, "n c"],
    *,
    num_classes: int,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> Float64[Tensor, "n k"]:
    """Share of each class in the vote of the nearest training pictures, by cosine similarity.

    A neighbour of similarity s votes with exp(s / temperature). Vectors of length 0 are similar to nothing.

    Args:
        train: Features of training pictures with their classes.
        queries: Features of the pictures that are asked about.
        neighbours: How many vote.
        temperature: Small ones let the nearest decide alone.
    Raises:
        ValueError: Fewer training pictures than neighbours, or labels outside the classes.

    Source: weighted k-NN of Wu et al., arXiv:1805.01978, section 3.4, with k = 20 and temperature 0.07 as in
    DINO (arXiv:2104.14294).
    """
    if len(train) < neighbours:
        raise ValueError(
            f"neighbours: {neighbours} are to vote, but there are {len(train)} training pictures"
        )
    if not 0 <= int(train.labels.min()) <= int(train.labels.max()) < num_classes:
        raise ValueError(f"labels: expected classes from 0 to {num_classes - 1}")
    return torch.cat(
        [_votes(train, part, num_classes, neighbours, temperature) for part in queries.split(_CHUNK)]
    )


def _votes(
    train: Features, queries: Float[Tensor, "n c"], num_classes: int, neighbours: int, temperature: float
) -> Float64[Tensor, "n k"]:
    asked = _unit(queries)
    best = asked.new_empty((len(asked), 0))
    classes = train.labels.new_empty((len(asked), 0))
    # Only some of the training pictures are ever there in float64.
    for vectors, labels in zip(
        train.vectors.split(16 * _CHUNK), train.labels.split(16 * _CHUNK), strict=True
    ):
        similarity = torch.cat([best, asked @ _unit(vectors).T], dim=1)
        known = torch.cat([classes, labels.expand(len(asked), -1)], dim=1)
        best, places = similarity.topk(min(neighbours, similarity.shape[1]), dim=1)
        classes = known.gather(1, places)
    weights = (best / temperature).softmax(dim=1)
    return best.new_zeros((len(asked), num_classes)).scatter_add_(1, classes, weights)


def _unit(vectors: Float[Tensor, "n c"]) -> Float64[Tensor, "n c"]:
    return torch.nn.functional.normalize(vectors.to(torch.float64), dim=1)
