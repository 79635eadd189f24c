"""One of two processes whose rows are each other's negatives: `python gathering_rank.py OUT`."""

import sys
from pathlib import Path

import torch
from rank_processes import save_half

from allsight.objectives import boltzmann_logits, boltzmann_loss, encode_shared, group_candidates, num_ranks

ROWS, NAMES, WIDTH = 6, 7, 5


def draws():
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return draw(ROWS, WIDTH), draw(ROWS, WIDTH), draw(NAMES, WIDTH), draw(WIDTH, WIDTH)


def outcome(rows, share, *, group_ranks=1):
    """Losses, scaled as the engine does, and gradients of what every rank has and of its own rows."""
    queries, targets, names, weight = draws()
    queries, targets = (x[rows].clone().requires_grad_() for x in (queries, targets))
    weight = weight.requires_grad_()
    labels = torch.arange(ROWS)[rows] % NAMES
    candidates, own = group_candidates(targets @ weight, group_size=ROWS, group_ranks=group_ranks)
    retrieved = boltzmann_loss(boltzmann_logits(queries, candidates[0], 4.0), own, label_smoothing=0.1)
    features = encode_shared(lambda indices: names[indices] @ weight, NAMES)
    named = boltzmann_loss(boltzmann_logits(queries, features, 4.0), labels)
    ((retrieved + named) * share * num_ranks()).backward()
    return {
        "loss": (retrieved + named).detach(),
        "queries": queries.grad,
        "targets": targets.grad,
        "weight": weight.grad,
    }


if __name__ == "__main__":
    save_half(outcome, ROWS, Path(sys.argv[1]))
