"""Negatives beyond the batch: the queue, what is no negative in it, and sets that are split over ranks."""

import sys
from pathlib import Path

import pytest
import torch
from pairs_rank import ROWS, made, outcome, pairs
from rank_processes import run_ranks

from allsight.models.uniperceiver.negatives import keys_of
from allsight.objectives import boltzmann_loss
from allsight.types import Segment


def test_pairs_of_earlier_steps_are_negatives_and_those_alike_are_not():
    model = made(queue=8)
    first, second = pairs(0, 4), pairs(4, 8)
    outputs, _ = model(first)
    assert outputs["logits"].shape == (4, 4)
    model.after_step(0)
    outputs, _ = model(second)
    assert outputs["logits"].shape == outputs["logits_back"].shape == (4, 8)
    assert not outputs["excluded"][:, 4:].any()
    model.after_step(1)
    # Both earlier batches are there, the newest first; a text that was there before is no negative.
    outputs, _ = model(first)
    assert outputs["logits"].shape == (4, 12)
    alike = outputs["excluded"][:, 4:].nonzero().tolist()
    assert alike == [[row, 7 - row] for row in range(4)]
    # The own earlier features are as similar as can be, and do not count all the same.
    without = boltzmann_loss(outputs["logits"], outputs["labels"])
    with_exclusion = boltzmann_loss(outputs["logits"], outputs["labels"], excluded=outputs["excluded"])
    assert with_exclusion < without


def test_a_queue_forgets_its_oldest_and_a_skipped_step():
    model = made(queue=6)
    for step, (begin, end) in enumerate([(0, 4), (4, 8)]):
        model(pairs(begin, end))
        model.after_step(step)
    queue = model.queues["pairs"]["targets"]
    texts = pairs(0, 8).targets
    keys = keys_of(Segment("text", texts["words"], texts["is_word"]))
    assert torch.equal(queue.negative_keys(), keys.flip(0)[:6])
    model(pairs(0, 4))
    model.after_skip()
    model.after_step(2)
    assert torch.equal(queue.negative_keys(), keys.flip(0)[:6])


def test_keys_tell_texts_apart_by_their_words_alone():
    ids = torch.tensor([[3, 4, 0], [3, 4, 7], [4, 3, 0], [3, 4, 0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 1, 1]]).bool()
    a, b, c, d = keys_of(Segment("text", ids, mask)).tolist()
    assert a == b and len({a, c, d}) == 3


@pytest.mark.dist
def test_two_ranks_are_as_one(tmp_path):
    """Losses and gradients with a queue, groups over ranks and names in slices, of which one is padded."""
    run_ranks(Path(sys.modules["pairs_rank"].__file__), tmp_path)
    whole = outcome(slice(0, ROWS), 1.0)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for rank, part in enumerate(parts):
        assert part["encoded"] == 4, "each rank encodes half of seven names"
        torch.testing.assert_close(part["queue"], whole["queue"], rtol=1e-12, atol=1e-12)
        assert rank == 0 or torch.equal(part["queue"], parts[0]["queue"])
    torch.testing.assert_close(sum(p["loss"] for p in parts) / 2, whole["loss"], rtol=1e-12, atol=1e-12)
    for name, gradient in whole["gradients"].items():
        mean = (parts[0]["gradients"][name] + parts[1]["gradients"][name]) / 2
        torch.testing.assert_close(mean, gradient, rtol=1e-9, atol=1e-12, msg=name)
