"""The vote of neighbours and the linear layer, against sums by hand."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from allsight.tasks.probes import Features, fit_linear, vote


def features(vectors, labels):
    return Features(torch.tensor(vectors, dtype=torch.float32), torch.tensor(labels))


def blobs(count=40, classes=3, width=4, seed=0):
    """Points around a centre for each class."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(count) % classes
    return Features(centers[labels] + 0.7 * torch.randn(count, width, generator=generator), labels)


def test_neighbours_vote_with_the_exponential_of_their_cosine():
    # Directions at 0, 60 and 90 degrees; lengths do not count.
    half = math.sqrt(3) / 2
    train = features([[2.0, 0.0], [0.5, half], [0.0, 9.0]], [0, 1, 1])
    scores = vote(train, torch.tensor([[3.0, 0.0]]), num_classes=3, neighbours=3, temperature=0.5)
    weights = [math.exp(s / 0.5) for s in (1.0, 0.5, 0.0)]
    expected = [weights[0], weights[1] + weights[2], 0.0]
    torch.testing.assert_close(scores[0].tolist(), [w / sum(weights) for w in expected])


def test_only_the_nearest_vote():
    train = features([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [-1.0, 0.0]], [0, 0, 1, 1])
    scores = vote(train, torch.tensor([[1.0, 0.05]]), num_classes=2, neighbours=2)
    assert scores.tolist() == [[1.0, 0.0]]


def test_many_neighbours_can_outvote_the_nearest():
    train = features([[1.0, 0.0], [1.0, 0.3], [1.0, -0.3]], [0, 1, 1])
    query = torch.tensor([[1.0, 0.0]])
    assert vote(train, query, num_classes=2, neighbours=1).argmax() == 0
    assert vote(train, query, num_classes=2, neighbours=3, temperature=10.0).argmax() == 1
    assert vote(train, query, num_classes=2, neighbours=3, temperature=0.01).argmax() == 0


def test_comparing_in_pieces_changes_nothing(monkeypatch):
    train, asked = blobs(101, seed=1), blobs(30, seed=2).vectors
    whole = vote(train, asked, num_classes=3, neighbours=7)
    monkeypatch.setattr("allsight.tasks.probes.neighbours._CHUNK", 2)
    torch.testing.assert_close(vote(train, asked, num_classes=3, neighbours=7), whole)


@pytest.mark.parametrize("decay", [1e-1, 1e-3])
def test_the_linear_layer_is_the_optimum_that_another_solver_finds(decay):
    train = blobs()
    probe = fit_linear(train, num_classes=3, weight_decays=(decay,))
    x = train.vectors.double().numpy()
    x = (x - x.mean(0)) / x.std(0)
    y = train.labels.numpy()

    def loss(flat):
        weight, bias = flat[:12].reshape(3, 4), flat[12:]
        logits = x @ weight.T + bias
        top = logits.max(1)
        log_sum = top + np.log(np.exp(logits - top[:, None]).sum(1))
        return (log_sum - logits[np.arange(len(y)), y]).mean() + decay / 2 * (weight**2).sum()

    best = minimize(loss, np.zeros(15), options={"gtol": 1e-9})
    own = np.concatenate([probe.weight.flatten().numpy(), probe.bias.numpy()])
    assert loss(own) == pytest.approx(best.fun, abs=1e-7)
    np.testing.assert_allclose(own[:12], best.x[:12], atol=5e-3)


def test_the_weight_decay_is_chosen_on_training_pictures_and_fitting_twice_gives_the_same():
    train = blobs(60)
    first, second = (fit_linear(train, num_classes=3) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    best = max(first.held_out.values())
    assert first.weight_decay == max(d for d, right in first.held_out.items() if right == best)
    alone = fit_linear(train, num_classes=3, weight_decays=(first.weight_decay,))
    torch.testing.assert_close(alone.weight, first.weight, atol=1e-3, rtol=1e-2)
    assert alone.held_out == {}


def test_a_linear_layer_tells_apart_what_neighbours_cannot():
    """The class is in one weak channel beside strong ones without meaning."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 2
    noise = 30 * torch.randn(200, 4, generator=generator)
    weak = labels[:, None] - 0.5 + 0.05 * torch.randn(200, 1, generator=generator)
    vectors = torch.cat([noise, weak], dim=1)
    train, val = Features(vectors[:150], labels[:150]), Features(vectors[150:], labels[150:])
    linear = fit_linear(train, num_classes=2)(val.vectors).argmax(1)
    assert (linear == val.labels).float().mean() == 1.0
    nearest = vote(train, val.vectors, num_classes=2).argmax(1)
    assert (nearest == val.labels).float().mean() < 0.9


def test_constant_channels_do_no_harm():
    train = Features(torch.cat([blobs().vectors, torch.full((40, 1), 7.0)], 1), blobs().labels)
    probe = fit_linear(train, num_classes=3, weight_decays=(0.01,))
    assert probe(train.vectors).isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: vote(f, f.vectors, num_classes=3), "20 are to vote, but there are 8 training pictures"),
        (lambda f: vote(f, f.vectors, num_classes=2, neighbours=2), "expected classes from 0 to 1"),
        (lambda f: fit_linear(f, num_classes=2), "expected classes from 0 to 1"),
        (lambda f: fit_linear(f, num_classes=3), "needs a class of 5 training pictures or more"),
        (lambda f: fit_linear(f, num_classes=3, weight_decays=(0.0,)), "expected numbers above 0"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(blobs(8))
