"""What must hold exactly: mixing, separation, places, slow copies, the dense loss."""

import copy
import math

import pytest
import torch
from tiny_m3i import CONV, VIT, batch_of, losses_of, model_of
from torch.nn import functional as F

from allsight.config import ConfigError, Mixture, replace
from allsight.models import M3I
from allsight.models.m3i import Mixer, MomentumSchedule, cases
from allsight.models.m3i.encoder import Encoder
from allsight.models.m3i.mixing import (
    count_random,
    draw_hidden,
    draw_hidden_rectangles,
    draw_owners,
    mix,
    places_of,
    split_counts,
    to_cells,
)
from allsight.models.m3i.views import encode_places, relative_places

DECODER = {"channels": 16, "heads": 2, "projector_blocks": 1, "predictor_blocks": 1, "norm": "layer"}


def m3i(backbone=VIT, **others):
    return cases.m3i(backbone, block_px=8 if backbone is CONV else 4, decoder=DECODER, **others)


def seeds(rows=7):
    return torch.arange(rows) * 1_000_003


# 1. Mixing


@pytest.mark.parametrize("pictures", [1, 2, 3, 4])
def test_unmixing_gives_the_pixels_back_bit_by_bit(pictures):
    images = [torch.randn(7, 3, 24, 16) for _ in range(pictures)]
    owners = draw_owners(seeds(), (6, 4), (1.0,) * pictures)
    mixed = mix(images, owners, (6, 4))
    pixels = to_cells(owners, (6, 4), 4).view(7, 1, 24, 16).expand(-1, 3, -1, -1)
    for number, image in enumerate(images):
        assert torch.equal(mixed[pixels == number], image[pixels == number])
        assert (owners == number).sum(1).tolist() == [split_counts(24, (1.0,) * pictures)[number]] * 7


def test_two_pictures_get_exactly_half_each_and_rows_differ():
    owners = draw_owners(seeds(50), (14, 14), (0.5, 0.5))
    assert (owners == 0).sum(1).eq(98).all()
    assert len({tuple(row.tolist()) for row in owners}) == 50
    # Each block is taken by either about as often.
    assert owners.float().mean(0).sub(0.5).abs().max() < 0.3
    assert owners.float().mean(0).std() < 0.12


def test_draws_belong_to_the_sample_and_not_to_its_batch():
    whole = draw_owners(seeds(), (4, 4), (0.5, 0.5))
    assert torch.equal(whole[3:5], draw_owners(seeds()[3:5], (4, 4), (0.5, 0.5)))
    whole = draw_hidden_rectangles(seeds(), (14, 14), 0.6)
    assert torch.equal(whole[3:5], draw_hidden_rectangles(seeds()[3:5], (14, 14), 0.6))


def test_shares_other_than_halves_are_exact_and_nothing_is_no_share():
    assert split_counts(16, (0.75, 0.25)) == (12, 4)
    assert split_counts(64, (1, 1, 1)) == (21, 22, 21)
    with pytest.raises(ValueError, match="2 blocks do not give each of 3 pictures one"):
        split_counts(2, (1, 1, 1))


def test_hidden_counts_are_exact_and_rectangles_hang_together():
    assert draw_hidden(seeds(), (14, 14), 0.75).sum(1).eq(147).all() and count_random(196, 0.75) == 147
    hidden = draw_hidden_rectangles(seeds(), (14, 14), 118 / 196)
    assert hidden.sum(1).eq(118).all()

    def neighbours(mask):
        grid = mask.view(-1, 14, 14).float()
        return (grid[:, 1:] * grid[:, :-1]).mean() + (grid[:, :, 1:] * grid[:, :, :-1]).mean()

    assert neighbours(hidden) > 1.2 * neighbours(draw_hidden(seeds(), (14, 14), 118 / 196))


def test_one_mask_serves_every_stage():
    owners = draw_owners(seeds(2), (2, 2), (0.5, 0.5))
    fine, coarse = to_cells(owners, (2, 2), 8).view(2, 16, 16), to_cells(owners, (2, 2), 4).view(2, 8, 8)
    assert torch.equal(fine[:, ::2, ::2], coarse)
    assert places_of(owners == 0, 2).shape == (2, 2)


# 2. Separation


def test_a_loss_of_one_picture_has_no_gradient_at_the_other():
    config = m3i()
    model = model_of(config)
    batch = batch_of(rows=2)
    images = batch.inputs["views"][0].requires_grad_()
    # Input 0 mixes sample 0 as first and 1 as second; input 1 the other way round. With fixed roles there is
    # only the former.
    fixed = replace(config, {"mixer.roles": "fixed"})
    model = model_of(fixed)
    losses = losses_of(model, batch)
    (gradient,) = torch.autograd.grad(losses["intra"], images, retain_graph=True)
    assert gradient[0].abs().sum() > 0 and torch.equal(gradient[1], torch.zeros_like(gradient[1]))
    (gradient,) = torch.autograd.grad(losses["inter"], images)
    assert gradient[1].abs().sum() > 0 and torch.equal(gradient[0], torch.zeros_like(gradient[0]))
    joint = model_of(replace(fixed, {"mixer.attention": "joint"}))
    (gradient,) = torch.autograd.grad(losses_of(joint, batch)["intra"], images)
    assert gradient[1].abs().sum() > 0


@pytest.mark.parametrize("pictures", [2, 3, 4])
def test_a_mixed_pass_equals_masked_passes(pictures):
    torch.manual_seed(0)
    encoder = Encoder(VIT)
    images = list(torch.randn(pictures, 3, 3, 16, 16))
    owners = draw_owners(seeds(3), (4, 4), (1.0,) * pictures)
    counts = split_counts(16, (1.0,) * pictures)
    together = encoder.mixed(images, owners, (4, 4), counts, separate=True)
    for role, image in enumerate(images):
        alone = encoder.masked(image, owners != role, 16 - counts[role], drop=True)
        assert torch.equal(alone.cells, together[role].cells)
        assert torch.equal(alone.hidden, together[role].hidden)
        torch.testing.assert_close(alone.tokens, together[role].tokens, rtol=0, atol=1e-5)
        torch.testing.assert_close(alone.summary, together[role].summary, rtol=0, atol=1e-5)


# 3. Places


def geometry(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_a_view_of_itself_lies_where_it_lies():
    crop = geometry([5.0, 7.0, 30.0, 40.0, 90.0, 1.0])
    cells = torch.arange(14 * 14)[None]
    places = relative_places(crop, crop, cells, target_grid=(14, 14), input_grid=(14, 14))
    torch.testing.assert_close(places[0, :, 0], (cells[0] // 14).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(places[0, :, 1], (cells[0] % 14).double(), rtol=0, atol=1e-12)
    assert places[..., 2:].abs().max() == 0


def in_picture(crop, row, column, grid):
    """Where a point, in cells of a view, is in the picture that was never mirrored."""
    top, left, height, width, picture, flipped = crop
    y = top + height * (row + 0.5) / grid
    x = left + width * (column + 0.5) / grid
    return y, picture - x if flipped else x


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_same_point_of_the_picture_has_the_same_place(dtype):
    rng = torch.Generator().manual_seed(0)
    count = 2000
    width = 100 + 400 * torch.rand(count, generator=rng, dtype=torch.float64)
    crops = []
    for _ in range(2):
        sides = (0.2 + 0.8 * torch.rand(count, 2, generator=rng, dtype=torch.float64)) * width[:, None]
        corner = (width[:, None] - sides) * torch.rand(count, 2, generator=rng, dtype=torch.float64)
        flips = torch.randint(2, (count,), generator=rng).double()
        crops.append(torch.cat([corner, sides, width[:, None], flips[:, None]], 1).to(dtype))
    target, own = crops
    cells = torch.randint(49, (count, 3), generator=rng)
    places = relative_places(target, own, cells, target_grid=(7, 7), input_grid=(14, 14)).double()
    for i in range(0, count, 7):
        for k in range(3):
            truth = in_picture(target[i].double(), cells[i, k] // 7, cells[i, k] % 7, 7)
            found = in_picture(own[i].double(), places[i, k, 0], places[i, k, 1], 14)
            tolerance = 1e-9 if dtype is torch.float64 else 1e-6 * 500
            assert abs(truth[0] - found[0]) < tolerance and abs(truth[1] - found[1]) < tolerance


def test_mirroring_both_views_changes_nothing():
    batch = batch_of(rows=6)
    target, own = batch.inputs["geometry"]
    cells = torch.arange(16).expand(6, -1)
    before = relative_places(target, own, cells, target_grid=(4, 4), input_grid=(4, 4))
    flipped = [torch.cat([g[:, :5], 1 - g[:, 5:]], 1) for g in (target, own)]
    after = relative_places(*flipped, cells, target_grid=(4, 4), input_grid=(4, 4))
    assert torch.equal(before, after)
    one = relative_places(flipped[0], own, cells, target_grid=(4, 4), input_grid=(4, 4))
    assert not torch.allclose(one, before)
    assert encode_places(before, 8).shape == (6, 16, 16)


# 4. Slow copies


def test_slow_copies_get_no_gradient_and_move_once_a_step():
    model = model_of(replace(m3i(), {"momentum": MomentumSchedule(start=0.9, end=1.0, steps=10)}))
    start = copy.deepcopy(model.momentum_encoder.state_dict())
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for seed in (0, 1):  # Two micro-batches.
        sum(losses_of(model, batch_of(seed=seed)).values()).backward()
    assert all(p.grad is None for p in model.momentum_encoder.parameters())
    for name in ("intra", "inter"):
        assert all(p.grad is None for p in model.targets[name].net.parameters())
    optimiser.step()
    model.after_step(0)
    for name, slow in model.momentum_encoder.named_parameters():
        online = model.encoder.get_parameter(name)
        torch.testing.assert_close(slow, 0.9 * start[name] + 0.1 * online, rtol=0, atol=1e-12)
    assert not torch.equal(start["backbone.norm.weight"], model.momentum_encoder.backbone.norm.weight)


def test_centred_targets_lose_what_all_pictures_have_in_common_at_a_cell():
    """A constant added at each place of the slow copy's features, however large, changes no target."""
    targets = []
    places = torch.randn(16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for added in (0.0 * places, 5.0 * places):
        model = model_of(replace(m3i(centre=True), {"targets.intra.net.normalise": False}))
        projector = model.targets["intra"].net.projector
        project = projector.forward
        projector.forward = lambda seen, project=project, added=added: project(seen) + added
        (looked,) = model.explain(batch_of(rows=6)).terms["intra"].looked
        targets.append(looked.target.unflatten(0, (3, 16)))
    torch.testing.assert_close(targets[0], targets[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(targets[0].mean(0), torch.zeros(16, 16).double(), rtol=0, atol=1e-12)
    assert targets[0].std(0).min() > 0


def test_one_picture_cannot_be_centred():
    with pytest.raises(ConfigError, match="centre=true needs two pictures or more"):
        model_of(m3i(centre=True))(batch_of(rows=2))
    model_of(m3i(centre=True)).eval()(batch_of(rows=1))


def test_the_decay_rises_along_half_a_cosine():
    schedule = MomentumSchedule(start=0.995, end=1.0, steps=100)
    assert schedule.decay(0) == pytest.approx(0.995)
    assert schedule.decay(50) == pytest.approx(0.9975)
    assert schedule.decay(100) == schedule.decay(200) == 1.0
    assert MomentumSchedule(start=0.9).decay(7) == 0.9


def test_a_saved_model_goes_on_as_it_was():
    model = model_of(m3i())
    other = model_of(m3i(), seed=1)
    losses_of(model, batch_of())
    model.after_step(0)
    other.load_state_dict(model.state_dict())
    for name, loss in losses_of(model, batch_of(seed=1)).items():
        assert torch.equal(loss, losses_of(other, batch_of(seed=1))[name])
    assert other._number() == 1


# 5. Losses of all: N inputs, M targets, both kinds of networks


@pytest.mark.parametrize("backbone", [VIT, CONV], ids=["vit", "conv"])
@pytest.mark.parametrize("pictures", [1, 2, 3, 4])
@pytest.mark.parametrize(("count", "roles"), [(1, "fixed"), (4, "rotate")])
def test_any_number_of_pictures_and_targets(backbone, pictures, count, roles):
    block = 4 if backbone is VIT else 8
    config = M3I.Config(
        backbone=backbone,
        mixer=Mixer(pictures=pictures, block_px=block, roles=roles),
        targets=Mixture(
            {
                f"t{k}": cases.dense_target(((0, k % 2),), roles=(k % pictures,), decoder=DECODER)
                for k in range(count)
            }
        ),
    )
    model = model_of(config)
    losses = losses_of(model, batch_of(rows=12, size=32))
    assert len(losses) == count
    sum(losses.values()).backward()
    used = [p.grad is not None for name, p in model.encoder.named_parameters() if "cls_token" not in name]
    assert all(used)


def test_the_loss_of_a_batch_is_the_mean_of_its_groups():
    """Groups do not see each other, so splitting a batch into micro-batches changes nothing."""
    config = replace(m3i(), {f"targets.{t}.regularisers": () for t in ("intra", "inter")})
    model = model_of(config)
    batch = batch_of(rows=8, group_size=2)
    whole = losses_of(model, batch)

    def part(rows):
        inputs = {
            name: tuple(v[rows] for v in value) if isinstance(value, tuple) else value[rows]
            for name, value in batch.inputs.items()
        }
        targets = {name: value[rows] for name, value in batch.targets.items()}
        return losses_of(model, type(batch)("t", batch.ids[rows], inputs, targets, group_size=2))

    halves = part(slice(0, 4)), part(slice(4, 8))
    for name, loss in whole.items():
        mean = (halves[0][name] + halves[1][name]) / 2
        torch.testing.assert_close(loss, mean, rtol=0, atol=1e-12)


# 8. Missing supervision


def test_rows_without_supervision_count_for_nothing_and_leave_no_trace():
    config = cases.m3i(VIT, block_px=4, decoder=DECODER, captions=True)
    config = replace(config, {"targets.text.net.encoder.channels": 8, "targets.text.net.encoder.heads": 2})
    config = replace(config, {"targets.text.net.encoder.depth": 1})
    model = model_of(config)
    batch = batch_of(rows=4)
    batch.targets["captioned"][:] = False
    batch.targets["is_token"][:] = False
    batch.targets["label"][:] = -100
    losses = losses_of(model, batch)
    assert losses["caption"] == losses["label"] == 0
    sum(losses.values()).backward()
    text = model.targets["text"].net
    assert all(p.grad is None or p.grad.abs().sum() == 0 for p in text.parameters())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_some_captions_are_scored_among_themselves():
    config = replace(cases.clip(VIT, channels=8), {"targets.caption.net.encoder.channels": 8})
    config = replace(config, {"targets.caption.net.encoder.heads": 2, "targets.caption.net.encoder.depth": 1})
    model = model_of(config)
    batch = batch_of(rows=6)
    batch.targets["captioned"][3:] = False
    some = losses_of(model, batch)["caption"]
    rows = slice(0, 3)
    inputs = {
        n: tuple(x[rows] for x in v) if isinstance(v, tuple) else v[rows] for n, v in batch.inputs.items()
    }
    targets = {n: v[rows] for n, v in batch.targets.items()}
    alone = losses_of(model, type(batch)("t", batch.ids[rows], inputs, targets, group_size=3))["caption"]
    torch.testing.assert_close(some, alone, rtol=0, atol=1e-12)


def test_captions_that_are_all_equal_are_no_negatives():
    config = replace(cases.clip(VIT, channels=8), {"targets.caption.net.encoder.channels": 8})
    config = replace(config, {"targets.caption.net.encoder.heads": 2, "targets.caption.net.encoder.depth": 1})
    model = model_of(config)
    batch = batch_of(rows=4)
    for name in ("tokens", "is_token"):
        batch.targets[name][:] = batch.targets[name][:1]
    assert losses_of(model, batch)["caption"] == 0


def test_captions_that_are_all_equal_tell_nothing():
    config = watched_text()
    model = model_of(config)
    batch = batch_of(rows=4)
    for name in ("tokens", "is_token"):
        batch.targets[name][:] = batch.targets[name][:1]
    losses_of(model, batch)
    model.after_step(0)
    values = model.monitors(0)
    assert values["caption/information"] == values["caption/information_share"] == 0
    # Two that say the same among four: each of them chooses among three, the others among four.
    batch = batch_of(rows=4)
    batch.targets["tokens"][1], batch.targets["is_token"][1] = (
        batch.targets["tokens"][0],
        batch.targets["is_token"][0],
    )
    losses_of(model, batch)
    model.after_step(1)
    values = model.monitors(1)
    candidates = values["caption/information"] / values["caption/information_share"]
    assert candidates == pytest.approx((2 * math.log(3) + 2 * math.log(4)) / 4)


def test_captions_of_all_roles_are_negatives_of_each_other():
    """With two pictures in an input, a group of four rows has four candidates, as with one."""
    config = replace(cases.m3i(VIT, block_px=4, decoder=DECODER, captions=True), {"watch.every_steps": 1})
    config = replace(config, {"targets.text.net.encoder": {"channels": 8, "depth": 1, "heads": 2}})
    for group_size in (4, 8):
        model = model_of(config)
        losses_of(model, batch_of(rows=8, group_size=group_size))
        model.after_step(0)
        values = model.monitors(0)
        candidates = values["text/information"] / values["text/information_share"]
        assert candidates == pytest.approx(math.log(group_size))


def watched_text():
    config = replace(cases.clip(VIT, channels=8), {"targets.caption.net.encoder.channels": 8})
    text = {"targets.caption.net.encoder.heads": 2, "targets.caption.net.encoder.depth": 1}
    return replace(config, {**text, "watch.every_steps": 1})


def test_a_batch_of_two_trains_and_its_monitors_are_finite():
    for backbone in (VIT, CONV):
        config = replace(m3i(backbone), {"watch.every_steps": 1, "targets.intra.decoder.norm": "batch"})
        model = model_of(config)
        losses = losses_of(model, batch_of(rows=2))
        sum(losses.values()).backward()
        model.after_step(0)
        assert all(loss.isfinite() for loss in losses.values())
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        assert all(math.isfinite(value) for value in model.monitors(0).values())


def test_only_what_targets_want_passes_through_the_slow_copy():
    """With fixed roles half of each view; the losses are those of the whole."""
    config = m3i()
    model, whole = model_of(config), model_of(config)
    seen = []
    encode = model.momentum_encoder.whole
    model.momentum_encoder.whole = lambda images: seen.append(len(images)) or encode(images)
    whole._momentum_rows = lambda players, count: {}
    batch = batch_of(rows=6)
    for name, loss in losses_of(model, batch).items():
        torch.testing.assert_close(loss, losses_of(whole, batch)[name], rtol=0, atol=1e-12)
    assert seen == [3, 3]
    rotated = model_of(replace(config, {"mixer.roles": "rotate"}))
    assert rotated._momentum_rows(rotated._players(batch), 6) == {}


def test_a_batch_without_any_supervision_is_refused():
    with pytest.raises(ValueError, match="no label and no caption; give the task one"):
        model_of(cases.supervised(VIT))(batch_of(labels=False, captions=False))


# Settings that do not fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixer.block_px": 6}, "block_px: 6 px must be whole cells of 4"),
        ({"targets.intra.cells": "hidden", "targets.intra.pairs": ((0, 1),)}, "cells='hidden' needs"),
        ({"targets.intra.roles": (2,)}, "mixer.pictures=2"),
        ({"mask.ratio": 0.5}, "mixed of several pictures hides enough"),
        ({"targets.category.decoder.pool": "summary", "backbone": CONV, "mixer.block_px": 8}, "class token"),
        ({"targets.intra.decoder.places": "absolute", "targets.intra.pairs": ((0, 1),)}, "places='relative'"),
        ({"neck": "shuffle"}, "needs two maps"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_a_line(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        model_of(replace(m3i(), changes))(batch_of())
    assert "\n" not in str(caught.value)


def test_an_odd_batch_is_refused_in_training_and_judged_in_evaluation():
    model = model_of(m3i())
    batch = batch_of(rows=3)
    with pytest.raises(ConfigError, match="group_size to a multiple of 2"):
        model(batch)
    with torch.no_grad():
        outputs, _ = model.eval()(batch)
    assert outputs["logits"].shape == (3, 3) and all(v.isfinite() for v in outputs["losses"].values())


def test_masked_convolutions_need_a_token():
    config = replace(cases.mae(CONV, decoder_channels=16, blocks=1), {"mask.block_px": 8})
    with pytest.raises(ConfigError, match="'drop' needs a transformer"):
        model_of(replace(config, {"targets.pixels.decoder.heads": 2}))


def test_the_neck_of_the_large_network_gives_the_grid_of_a_transformer():
    from allsight.backbones import InternImage

    net = InternImage.Config(channels=8, depths=(1, 1, 1, 1), groups=(1, 1, 1, 1), out_stages=(2, 3))
    encoder = Encoder(net, neck="shuffle")
    seen = encoder.whole(torch.zeros(1, 3, 224, 224))
    assert seen.grid == (14, 14) and seen.tokens.shape == (1, 196, 1024) and encoder.stride == 16
    assert F.pixel_shuffle(torch.zeros(1, 4096, 7, 7), 2).shape[1] == 1024
