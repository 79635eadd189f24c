"""The Boltzmann posterior, whatever its candidates come from."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from gathering_rank import ROWS, outcome
from rank_processes import run_ranks

from allsight.objectives import (
    FeatureQueue,
    boltzmann_count,
    boltzmann_logits,
    boltzmann_loss,
    equal_rows,
    false_negatives,
    group_candidates,
)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    "excluded", [None, torch.zeros(2, 5, 7, dtype=torch.bool)], ids=["all", "none left out"]
)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_loss_is_pytorchs_cross_entropy(label_smoothing, excluded):
    logits, labels = draw(2, 5, 7), torch.tensor([[0, 6, -100, 3, 3], [-100, 1, 2, 0, 0]])
    expected = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=-100, label_smoothing=label_smoothing
    )
    found = boltzmann_loss(logits, labels, label_smoothing=label_smoothing, excluded=excluded)
    torch.testing.assert_close(found, expected)
    assert boltzmann_count(labels) == 8


def test_soft_labels_are_mixed_hard_ones():
    logits, soft = draw(2, 4), torch.tensor([[0.3, 0.7, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    first, second = (boltzmann_loss(logits[:1], torch.tensor([k])) for k in (0, 1))
    torch.testing.assert_close(boltzmann_loss(logits, soft), 0.3 * first + 0.7 * second)
    assert boltzmann_count(soft, is_soft=True) == 1


def test_no_row_that_counts_gives_a_zero_with_a_graph():
    logits = draw(3, 4).requires_grad_()
    loss = boltzmann_loss(logits, torch.full((3,), -100))
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros(3, 4, dtype=torch.float64))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_false_negatives_leave_the_set(label_smoothing):
    texts = torch.tensor([[5, 2, 0], [5, 2, 0], [5, 3, 0], [4, 0, 0]])
    excluded = false_negatives(equal_rows(texts, texts), torch.arange(4))
    assert excluded.nonzero().tolist() == [[0, 1], [1, 0]]
    logits = draw(4, 4).requires_grad_()
    loss = boltzmann_loss(
        logits[:1], torch.tensor([0]), excluded=excluded[:1], label_smoothing=label_smoothing
    )
    without = boltzmann_loss(logits[:1, [0, 2, 3]], torch.tensor([0]), label_smoothing=label_smoothing)
    torch.testing.assert_close(loss, without)
    loss.backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 1] == 0


def test_logits_are_cosines_over_the_temperature():
    x, y = draw(3, 5), draw(4, 5, seed=1)
    expected = F.cosine_similarity(x[:, None], y[None], dim=-1) / 0.07
    torch.testing.assert_close(boltzmann_logits(x, y, 1 / 0.07), expected)


def test_groups_see_only_themselves():
    candidates, own = group_candidates(torch.arange(6), group_size=3)
    assert candidates.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert own.tolist() == [0, 1, 2, 0, 1, 2]
    with pytest.raises(ValueError, match="6 rows do not make whole groups of 4"):
        group_candidates(torch.arange(6), group_size=4)


def test_queue_keeps_the_newest_and_only_after_a_step():
    queue = FeatureQueue(3, 1)
    queue.offer(torch.tensor([[1.0], [2.0]]))
    assert len(queue.negatives()) == 0
    queue.advance()
    queue.offer(torch.tensor([[3.0], [4.0]]))
    queue.advance()
    assert queue.negatives().flatten().tolist() == [4, 3, 2]
    queue.offer(torch.tensor([[9.0]]))
    queue.forget_offers()
    queue.advance()
    assert queue.negatives().flatten().tolist() == [4, 3, 2]


@pytest.mark.dist
def test_two_ranks_equal_one(tmp_path):
    run_ranks(Path(__file__).with_name("gathering_rank.py"), tmp_path, timeout_s=120)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    expected = outcome(slice(None), 1.0)
    torch.testing.assert_close((parts[0]["loss"] + parts[1]["loss"]) / 2, expected["loss"])
    # Gradients of own rows carry the factor that averaging over ranks takes away again.
    for name in ("queries", "targets"):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]) / 2, expected[name])
    torch.testing.assert_close((parts[0]["weight"] + parts[1]["weight"]) / 2, expected["weight"])
    assert len(expected["queries"]) == ROWS
