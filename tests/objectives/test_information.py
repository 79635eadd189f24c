"""Losses of vectors, what keeps them spread, and the bounds on information they stand for."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from allsight.objectives import (
    Centre,
    bernoulli_loss,
    boltzmann_information,
    counted_mean,
    covariance_penalty,
    covariance_term,
    cross_correlation_loss,
    effective_rank,
    gaussian_information,
    gaussian_nll,
    laplace_nll,
    prototype_nll,
    second_moment,
    top_share,
    unit_std,
    variance_hinge,
    von_mises_fisher_nll,
)

RHO, CHANNELS = 0.95, 4
TRUTH = -0.5 * CHANNELS * math.log(1 - RHO**2)


@pytest.fixture(scope="module")
def pairs():
    """20,000 pairs of Gaussian vectors whose information is known."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(20_480, CHANNELS, generator=rng, dtype=torch.float64)
    noise = torch.randn(20_480, CHANNELS, generator=rng, dtype=torch.float64)
    return x, RHO * x + math.sqrt(1 - RHO**2) * noise


def test_the_information_of_the_pairs_is_what_the_formula_says():
    assert pytest.approx(4.656, abs=1e-3) == TRUTH


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 4.650), (0.5, 4.03), (4.0, 3.38)])
def test_the_gaussian_bound_is_tight_for_the_right_variance_and_loose_for_others(pairs, factor, expected):
    x, y = pairs
    variance = factor * (1 - RHO**2)
    # Entropy of the target less the cross-entropy of the prediction with this variance.
    entropy = 0.5 * CHANNELS * math.log(2 * math.pi * math.e)
    squares = (y - RHO * x).square().sum(-1).mean() / (2 * variance)
    cross_entropy = squares + 0.5 * CHANNELS * math.log(2 * math.pi * variance)
    assert float(entropy - cross_entropy) == pytest.approx(expected, rel=0.02)
    nll = gaussian_nll(RHO * x, y, variance=variance).mean()
    torch.testing.assert_close(nll * CHANNELS, squares)


def test_the_gaussian_bound_of_the_monitors_is_the_tight_one(pairs):
    x, y = pairs
    found = gaussian_information(y.var(0), (y - RHO * x).square().mean(0))
    assert float(found) == pytest.approx(TRUTH, rel=0.01)


# Candidates; the bound by Monte Carlo in NumPy from 20 (1024) to 100,000 (4) batches, with standard errors of
# 0.0004 (4), 0.0015, 0.004, 0.010 and 0.011; what a quick estimate from one batch of so many rows gave.
BOUNDS = [
    (4, 1.3407, 1.384),
    (16, 2.5730, 2.526),
    (64, 3.5441, 3.557),
    (256, 4.1613, 4.181),
    (1024, 4.4703, 4.454),
]


@pytest.mark.parametrize(("candidates", "expected", "of_one_batch"), BOUNDS)
def test_the_contrastive_bound_saturates_at_the_logarithm_of_its_candidates(
    pairs, candidates, expected, of_one_batch
):
    x, y = (side.unflatten(0, (-1, candidates)) for side in pairs)
    variance = 1 - RHO**2
    # log p(y | x) / p(y), up to a constant: the critic that no other beats.
    critic = -(y[:, None] - RHO * x[:, :, None]).square().sum(-1) / (2 * variance)
    critic = critic + y.square().sum(-1)[:, None] / 2
    labels = torch.arange(candidates).expand(len(x), -1)
    losses = F.cross_entropy(critic.transpose(1, 2), labels, reduction="none").mean(1)
    bound = float(boltzmann_information(losses.mean(), candidates))
    error = float(losses.std()) / math.sqrt(len(x))
    assert bound == pytest.approx(expected, abs=3 * math.hypot(error, 0.011))
    assert bound <= math.log(candidates)
    # Batches of few rows scatter: by 0.14 nats at 4.
    assert abs(of_one_batch - bound) < float(losses.std())


def test_vector_losses_are_the_known_ones():
    p, t = torch.randn(2, 5, 8, dtype=torch.float64)
    assert torch.allclose(gaussian_nll(p, t).mean(), F.mse_loss(p, t))
    assert torch.allclose(laplace_nll(p, t).mean(), F.l1_loss(p, t))
    cosine = (F.normalize(p, dim=-1) * F.normalize(t, dim=-1)).sum(-1)
    assert torch.allclose(von_mises_fisher_nll(p, t, concentration=2), -2 * cosine)


def test_a_mean_over_nothing_is_a_zero_with_a_graph():
    values = torch.randn(3, 2, requires_grad=True)
    nothing = counted_mean(values, torch.zeros(3, dtype=torch.bool))
    nothing.backward()
    assert nothing == 0 and torch.equal(values.grad, torch.zeros(3, 2))
    some = counted_mean(values.detach(), torch.tensor([True, False, True]))
    assert torch.allclose(some, values.detach()[[0, 2]].mean())


def test_the_sigmoid_loss_counts_every_pair_once():
    logits = torch.randn(1, 3, 3, dtype=torch.float64)
    signs = 2 * torch.eye(3, dtype=torch.float64) - 1
    own = torch.arange(3)[None]
    assert torch.allclose(bernoulli_loss(logits, own), -F.logsigmoid(signs * logits).sum() / 3)
    twice = torch.zeros(1, 3, 3, dtype=torch.bool)
    twice[0, 0, 1] = True
    less = bernoulli_loss(logits, own, excluded=twice)
    assert torch.allclose(bernoulli_loss(logits, own) - less, -F.logsigmoid(-logits[0, 0, 1]) / 3)
    rows = torch.tensor([[True, False, False]])
    assert torch.allclose(bernoulli_loss(logits, own, rows=rows), -F.logsigmoid(signs * logits)[0, 0].sum())


def test_the_covariance_term_is_the_diagonal_of_the_large_matrix():
    p, t = torch.randn(2, 12, 5, dtype=torch.float64)
    moment = second_moment(t)
    explicit = (p @ (t.T @ t / 12) @ p.T).diagonal().mean() / 5
    assert torch.allclose(covariance_term(p, moment), explicit, rtol=0, atol=1e-12)
    assert torch.allclose(moment.trace(), t.square().sum(-1).mean())


class Sizes(TorchDispatchMode):
    """Notes how many numbers every result of an operator has."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        outs = found if isinstance(found, tuple | list) else (found,)
        self.sizes += [out.numel() for out in outs if isinstance(out, torch.Tensor)]
        return found


def sizes_of_the_dense_loss(rows, channels=8):
    p, t = torch.randn(2, rows, channels)
    p.requires_grad_()
    with Sizes() as seen:
        (gaussian_nll(p, t).mean() + 0.02 * covariance_term(p, second_moment(t))).backward()
    return seen.sizes


def test_the_dense_loss_never_forms_a_matrix_of_rows_times_rows():
    assert max(sizes_of_the_dense_loss(1000)) == 1000 * 8


def test_memory_of_the_dense_loss_is_linear_in_tokens():
    once, twice = (sum(sizes_of_the_dense_loss(rows)) for rows in (2000, 4000))
    assert twice <= 2 * once


def test_the_minimiser_of_the_dense_loss_shrinks_as_derived():
    t = torch.randn(40, 3, dtype=torch.float64)
    moment, p = second_moment(t), torch.zeros(40, 3, dtype=torch.float64, requires_grad=True)
    solution = torch.linalg.solve(torch.eye(3, dtype=torch.float64) + 0.02 * moment, t.T).T
    loss = lambda x: gaussian_nll(x, t).mean() + 0.02 * covariance_term(x, moment)  # noqa: E731
    at = solution.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(at), at)
    assert gradient.abs().max() < 1e-12
    assert loss(p) > loss(at)


def test_decorrelation_terms_are_the_published_ones():
    x, y = torch.randn(2, 16, 4, dtype=torch.float64)
    covariance = torch.cov(x.T)
    others = covariance[~torch.eye(4, dtype=torch.bool)]
    assert torch.allclose(covariance_penalty(x), others.square().sum() / 4)
    assert torch.allclose(variance_hinge(x), F.relu(1 - (x.var(0) + 1e-4).sqrt()).mean())
    norm = torch.nn.BatchNorm1d(4, affine=False).double()
    c = norm(x).T @ norm(y) / 16
    on = (c.diagonal() - 1).square().sum()
    off = c[~torch.eye(4, dtype=torch.bool)].square().sum()
    assert torch.allclose(cross_correlation_loss(x, y, redundancy=0.1), on + 0.1 * off)


def test_prototypes_are_centred_and_sharpened():
    s, t, c = torch.randn(4, 6), torch.randn(4, 6), torch.randn(6)
    expected = -(((t - c) / 0.04).softmax(-1) * (s / 0.1).log_softmax(-1)).sum(-1)
    assert torch.allclose(prototype_nll(s, t, c), expected)
    centre = Centre(6, momentum=0.5)
    centre.offer(t)
    assert centre.mean.abs().sum() == 0
    centre.advance()
    assert torch.allclose(centre.mean, t.mean(0) / 2)
    centre.offer(t)
    centre.forget_offers()
    centre.advance()
    assert torch.allclose(centre.mean, t.mean(0) / 2)


def test_spread_is_seen_by_the_std_and_not_by_the_rank():
    rng = torch.Generator().manual_seed(0)
    sphere = torch.randn(2000, 16, generator=rng)
    collapsed = torch.ones(16) + 0.01 * sphere
    assert float(unit_std(sphere)) == pytest.approx(1, abs=0.02)
    assert float(unit_std(collapsed)) < 0.02
    assert float(effective_rank(collapsed)) == pytest.approx(16, abs=0.2)
    assert float(effective_rank(sphere * torch.tensor([1.0] + [0.0] * 15))) == pytest.approx(1, abs=1e-3)
    assert float(top_share(second_moment(collapsed))) > 0.99
    assert float(top_share(second_moment(sphere))) < 0.1
