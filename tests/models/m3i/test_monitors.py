"""Monitors and alarms: collapse is seen, health is not taken for it; balancing; one batch's numbers."""

import math

import pytest
import torch
from tiny_m3i import VIT, batch_of, losses_of, model_of
from torch import nn

from allsight.backbones import Backbone
from allsight.config import Mixture, replace
from allsight.models import M3I
from allsight.models.m3i import (
    Boltzmann,
    Covariance,
    Gaussian,
    GradientMatching,
    Head,
    Homoscedastic,
    Momentum,
    MomentumSchedule,
    Online,
    Pooled,
    Target,
    VonMisesFisher,
    Watch,
    cases,
)
from allsight.models.m3i.encoder import Seen
from allsight.models.m3i.monitors import place_share, target_numbers
from allsight.models.m3i.nets import Truth
from allsight.models.m3i.scene import Groups
from allsight.models.m3i.target import Looked, Term
from allsight.types import Batch, FeatureSpec

DECODER = {"channels": 16, "heads": 2, "projector_blocks": 1, "predictor_blocks": 1}


def watched(config, **settings):
    return replace(config, {"watch": Watch.Config(**{"every_steps": 1, **settings})})


def test_a_step_tells_all_monitors_of_the_page():
    config = watched(cases.m3i(VIT, block_px=4, decoder=DECODER, captions=True))
    config = replace(config, {"targets.text.net.encoder.channels": 8, "targets.text.net.encoder.heads": 2})
    model = model_of(replace(config, {"targets.text.net.encoder.depth": 1}))
    losses = losses_of(model, batch_of(rows=6))
    sum(losses.values()).backward()
    model.after_step(0)
    values = model.monitors(0)
    assert all(math.isfinite(v) for v in values.values())
    for name in ("intra", "inter", "category", "text"):
        assert {f"{name}/loss", f"{name}/gradient", f"{name}/gradient_share"} <= set(values)
    for key in (
        "intra/target_std",
        "inter/target_rank",
        "intra/top_share",
        "intra/information",
        "text/information",
        "text/scale",
        "intra~inter/cosine",
        "category~text/cosine",
        "features/std",
        "features/place_share",
        "features/rank",
        "momentum/distance",
        "supervised/label",
        "supervised/caption",
    ):
        assert key in values, key
    assert sum(
        values[f"{n}/gradient_share"] for n in ("intra", "inter", "category", "text")
    ) == pytest.approx(1)
    assert values["supervised/caption"] == 1
    weight = config.targets.category.weight
    assert values["category/loss"] * weight == pytest.approx(losses["label"].item(), rel=1e-5)


@pytest.mark.parametrize("among", ["set", "group"])
def test_information_is_that_of_the_true_labels_however_they_are_smoothed(among):
    torch.manual_seed(0)
    prediction, values, labels = torch.randn(6, 4), torch.randn(6, 4), torch.arange(6)
    of_set = Truth(labels=labels, candidates=values)
    truth = of_set if among == "set" else Truth(values=values)
    numbers = {}
    for smoothing in (0.0, 0.3):
        settings = Boltzmann.Config(among=among, symmetric=among == "group", label_smoothing=smoothing)
        scored = Boltzmann(settings, 4)(prediction, truth, Groups(6))
        looked = Looked(prediction, None, scored)
        numbers[smoothing] = target_numbers("a", Term(scored.loss, (looked,)))
    assert numbers[0.3]["a/information"] == pytest.approx(float(numbers[0.0]["a/information"]), rel=1e-6)
    assert numbers[0.3]["a/loss"] != numbers[0.0]["a/loss"]


def test_monitors_change_no_gradient_and_stay_away_between_watched_steps():
    config = cases.m3i(VIT, block_px=4, decoder=DECODER)
    plain, seen = model_of(watched(config, every_steps=None)), model_of(watched(config, every_steps=2))
    for model in (plain, seen):
        sum(losses_of(model, batch_of()).values()).backward()
    for a, b in zip(plain.parameters(), seen.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None) and (a.grad is None or torch.equal(a.grad, b.grad))
    for model in (plain, seen):
        model.after_step(0)
    assert plain.monitors(0) is None and seen.monitors(0) is not None
    losses_of(seen, batch_of())
    seen.after_step(1)
    assert seen.monitors(1) is None


def test_a_rank_without_rows_of_a_watched_step_still_answers():
    model = model_of(watched(cases.m3i(VIT, block_px=4, decoder=DECODER)))
    model.after_step(0)
    assert model.monitors(0) is not None


# The collapse toy: 10 clusters in 32 dimensions, two noisy views, a small network.


class Points(Backbone):
    """32 numbers to a map of one cell, by an MLP; the toy in place of pictures."""

    class Config(Backbone.Config):
        norm: bool = False

    def __init__(self, config):
        super().__init__(config)
        layers = [nn.Linear(33, 64), nn.BatchNorm1d(64) if config.norm else nn.Identity(), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(64, 16))
        self.feature_specs = (FeatureSpec(16, 1),)

    def forward(self, images):
        return (self.layers(images.flatten(1))[..., None, None],)


def toy_batch(step, rows=64):
    """Views of [rows, 3, 11, 1]: 33 numbers, of which 32 are used."""
    centres = torch.randn(10, 33, generator=torch.Generator().manual_seed(1)) * 1.0
    rng = torch.Generator().manual_seed(1000 + step)
    labels = torch.randint(10, (rows,), generator=rng)
    views = []
    for _ in range(2):
        noisy = centres[labels] + 0.5 * torch.randn(rows, 33, generator=rng)
        noisy[:, 32] = 0
        views.append(noisy.view(rows, 3, 11, 1))
    inputs = {
        "views": tuple(views),
        "geometry": tuple(torch.ones(rows, 6) for _ in range(2)),
        "seed": torch.arange(rows),
    }
    return Batch("t", tuple(map(str, range(rows))), inputs, {}, group_size=rows)


def toy(net, posterior, *, predictor=None, norm=False, regularisers=()):
    target = Target.Config(
        net=net,
        decoder=Pooled.Config(predictor=predictor or Head.Config()),
        posterior=posterior,
        regularisers=regularisers,
        pairs=((0, 1), (1, 0)),
    )
    return M3I.Config(
        backbone=Points.Config(norm=norm),
        targets=Mixture(view=target),
        momentum=MomentumSchedule(start=0.99),
        watch=Watch.Config(every_steps=25, reference_step=10_000),
    )


COSINE, FREE = VonMisesFisher.Config(), Online.Config(stop_gradient=False)
MLP = Head.Config(widths=(32, 16))
NORMED = Head.Config(widths=(32, 16), norm="batch")
# The encoder moves under the patched forward below, whose grid is one cell whatever the picture.
RECIPES = {
    "cosine positives only": (toy(FREE, COSINE), True),
    "squared positives only": (toy(FREE, Gaussian.Config()), True),
    "stop-gradient without predictor": (toy(Online.Config(), COSINE), True),
    "stop-gradient, predictor and norm": (toy(Online.Config(), COSINE, predictor=NORMED, norm=True), False),
    "slow copy and predictor": (toy(Momentum.Config(), COSINE, predictor=NORMED, norm=True), False),
    "slow copy and covariance": (
        toy(
            Momentum.Config(normalise=True), Gaussian.Config(), regularisers=(Covariance.Config(weight=0.5),)
        ),
        False,
    ),
    "negatives": (toy(FREE, Boltzmann.Config(temperature=0.2)), False),
}


@pytest.fixture
def one_cell(monkeypatch):
    from allsight.models.m3i.encoder import Encoder

    monkeypatch.setattr(Encoder, "grid_of", lambda self, images: (1, 1))


@pytest.mark.parametrize("recipe", RECIPES)
def test_collapse_is_noticed_and_health_is_left_alone(recipe, one_cell):
    config, collapses = RECIPES[recipe]
    model = model_of(config).float()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 3e-3, weight_decay=1e-4)
    alarms, values = [], {}
    for step in range(201):
        loss = sum(losses_of(model, toy_batch(step)).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.after_step(step)
        found = model.monitors(step)
        if found is not None:
            values = found
            alarms += model.alarms(step, found)
    stds = values["features/std"]
    if collapses:
        assert stds < 0.1, values
        assert any("collapses" in text or "shrinks" in text for text in alarms)
    else:
        assert stds > 0.5, values
        assert not any("collapses" in text or "shrinks" in text for text in alarms), alarms


# Rules of the alarms


def alarms_of(watch, name, values):
    """Steps at which an alarm is given for a series of one monitor."""
    return [step for step, value in enumerate(values) if watch.alarms(step, {name: value})]


def test_an_alarm_waits_for_its_patience_is_given_once_and_again_after_recovery():
    watch = Watch(Watch.Config(patience_steps=3), ["a", "b"], {"a": 100.0})
    series = [0.5, 0.99, 0.99, 0.99, 0.99, 0.99, 0.5, 0.99, 0.99, 0.99, 0.99]
    assert alarms_of(watch, "a/gradient_share", series) == [4, 10]


@pytest.mark.parametrize(
    ("monitor", "good", "bad", "text"),
    [
        ("a/target_std", 1.0, 0.04, "collapses"),
        ("a/target_rank", 20.0, 1.5, "effective rank"),
        ("a/top_share", 0.5, 0.9, "one direction"),
        ("a/information_share", 0.4, 0.001, "guessing"),
        ("a/scale", 20.0, 100.0, "limit of 100"),
        ("a/gradient_share", 0.5, 0.97, "makes 97%"),
        ("features/std", 0.8, 0.3, "the representation shrinks"),
        ("features/rank", 30.0, 2.0, "its rank is 2"),
    ],
)
def test_each_rule_fires_on_its_monitor_only(monitor, good, bad, text):
    settings = Watch.Config(patience_steps=0, spread_patience_steps=0)
    watch = Watch(settings, ["a", "b"], {"a": 100.0})
    assert watch.alarms(0, {monitor: good}) == ()
    (found,) = watch.alarms(1, {monitor: bad})
    assert text in found and found.startswith("step 1: ")
    again = Watch(settings, ["a", "b"], {"a": 100.0})
    again.load_state_dict(watch.state_dict())
    assert again.alarms(2, {monitor: bad}) == ()


def test_supervision_that_never_comes_is_told():
    watch = Watch(Watch.Config(patience_steps=3), ["a"], {}, ["caption"])
    assert alarms_of(watch, "supervised/caption", [0.5, 0, 0, 0, 0, 0, 0.1, 0]) == [4]
    assert alarms_of(watch, "supervised/label", [0, 0, 0, 0, 0, 0]) == []


def test_spread_is_compared_with_the_reference_step_once_it_is_reached():
    watch = Watch(Watch.Config(reference_step=2, least_std=0.5), ["a"], {})
    assert alarms_of(watch, "a/target_std", [1.0, 0.6, 0.3, 0.2, 0.16, 0.14]) == [5]


# Balancing


def test_learnt_variances_find_the_size_of_each_loss():
    balancer = Homoscedastic(Homoscedastic.Config(), ["a", "b"], [False, True])
    optimiser = torch.optim.SGD(balancer.parameters(), 0.1)
    for _ in range(300):
        optimiser.zero_grad()
        balancer("a", torch.tensor(0.2)).backward()
        optimiser.step()
        balancer.advance(0)
    # exp(-s) L + s / 2 is least at s = log(2 L).
    assert float(balancer.log_variance.detach()[0]) == pytest.approx(math.log(0.4), abs=1e-3)
    assert balancer("b", torch.tensor(0.7)) == torch.tensor(0.7)


def test_gradient_matching_pulls_norms_together():
    config = cases.m3i(VIT, block_px=4, decoder=DECODER)
    config = replace(config, {"momentum": MomentumSchedule(start=1.0)})
    matching = GradientMatching.Config(every_steps=1, measure_every=1, memory=0.0, strength=1.0)
    model = model_of(watched(replace(config, {"balancer": matching, "targets.intra.weight": 50.0})))
    norms = []
    for step in range(3):
        losses_of(model, batch_of(rows=4))
        model.after_step(step)
        values = model.monitors(step)
        norms.append([values[f"{name}/gradient"] for name in model.targets])
    assert max(norms[0]) / min(norms[0]) > 10
    assert max(norms[1]) / min(norms[1]) == pytest.approx(1, abs=1e-3)


def seen_of(content, place, rows=400, shown=8):
    """Cells whose variance is `content` by picture and `place` by place; every row shows others."""
    rng = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    grid, channels = (4, 4), 200
    cells = torch.stack([torch.randperm(16, generator=rng)[:shown] for _ in range(rows)])
    of_place = place**0.5 * normal(16, channels)
    tokens = of_place[cells] + content**0.5 * normal(rows, shown, channels) + 3.0
    return Seen(tokens, cells, grid)


@pytest.mark.parametrize(("content", "place"), [(1.0, 0.0), (1.0, 1.0), (1.0, 9.0), (0.0, 1.0)])
@pytest.mark.parametrize("rows", [6, 400])
def test_place_share_is_what_the_place_explains(content, place, rows):
    found = place_share(seen_of(content, place, rows))
    assert float(found) == pytest.approx(place / (place + content), abs=0.02 if rows > 6 else 0.05)


def test_place_share_of_one_picture_is_a_number():
    assert 0 <= float(place_share(seen_of(1.0, 1.0, rows=1))) <= 1
