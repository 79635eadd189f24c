"""Known methods as settings of M3I equal their direct implementations, which live here only."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tiny_m3i import CONV, VIT, batch_of, losses_of, model_of

from allsight.config import Mixture, build, dump, replace
from allsight.models import M3I
from allsight.models.m3i import cases

SMALL_TEXT = {"channels": 8, "depth": 1, "heads": 2, "max_tokens": 8}
SMALL_DECODER = {"channels": 16, "heads": 2, "projector_blocks": 1, "predictor_blocks": 1}


def config_of(name):
    """The settings of a method at tiny widths."""
    text = {"targets.caption.net.encoder": SMALL_TEXT}
    if name in ("clip", "siglip"):
        return replace(cases.CASES[name](VIT, channels=8), text)
    if name == "mae":
        config = cases.mae(VIT, decoder_channels=16, blocks=1)
        return replace(config, {"mask.block_px": 4, "targets.pixels.decoder.heads": 2})
    if name == "simmim":
        return cases.simmim(VIT, block_px=8)
    if name == "simsiam":
        return cases.simsiam(VIT, channels=8, hidden=4)
    if name == "byol":
        return cases.byol(VIT, channels=8, hidden=12)
    if name == "moco":
        config = cases.moco(VIT, channels=8, hidden=12)
        return replace(config, {"targets.view.posterior.queue": 6, "momentum.start": 0.9})
    if name in ("barlow_twins", "vicreg"):
        return cases.CASES[name](VIT, channels=8)
    if name == "dino":
        return cases.dino(VIT, prototypes=10, channels=6, hidden=8)
    if name == "siameseim":
        return replace(cases.siameseim(VIT, decoder=SMALL_DECODER), {"mask.block_px": 4})
    if name == "feature_distillation":
        return cases.feature_distillation(VIT, teacher=VIT.model_copy(update={"channels": 24}))
    if name == "m3i":
        return cases.m3i(VIT, block_px=8, decoder=SMALL_DECODER)
    return cases.CASES[name](VIT)


# Direct implementations: from the model's own leaf modules (networks, linear layers), the loss as the paper
# or its code writes it. None goes through the decomposition.


def features(net, images):
    return net(images)[0].mean((2, 3))


def run_head(head, x):
    """Linear layers and norms one after the other."""
    for layer in head.layers:
        if type(layer).__name__ == "_RowBatchNorm":
            mean, variance = x.mean(0), x.var(0, unbiased=False)
            x = (x - mean) / (variance + 1e-5).sqrt()
            if layer.weight is not None:
                x = x * layer.weight + layer.bias
        elif isinstance(layer, torch.nn.Linear):
            x = x @ layer.weight.T + (0 if layer.bias is None else layer.bias)
        else:
            x = layer(x)
    return x


def parts(model, name="view"):
    target = model.targets[name]
    return target, target.decoder, model.encoder.backbone


def direct_supervised(model, batch):
    target, _, net = parts(model, "category")
    logits = features(net, batch.inputs["views"][0]) @ target.net.table.weight.T + target.net.table.bias
    return F.cross_entropy(logits, batch.targets["label"])


def embeddings(model, batch):
    target, decoder, net = parts(model, "caption")
    image = features(net, batch.inputs["views"][0]) @ decoder.projector.head.layers[0].weight.T
    text = target.net
    x = text.encoder.words(batch.targets["tokens"]) + text.encoder.places[:6]
    count = batch.targets["is_token"].sum(1)
    rows = []
    for i, row in enumerate(x):
        words = row[None, : count[i]]
        causal = torch.ones(count[i], count[i], dtype=torch.bool).tril()[None]
        for block in text.encoder.blocks:
            words = block(words, causal)
        rows.append(text.encoder.norm(words)[0, -1])
    text_features = torch.stack(rows) @ text.projection.weight.T
    return F.normalize(image, dim=-1), F.normalize(text_features, dim=-1), target.posterior


def direct_clip(model, batch):
    image, text, posterior = embeddings(model, batch)
    logits = posterior.log_scale.exp() * image @ text.T
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def direct_siglip(model, batch):
    image, text, posterior = embeddings(model, batch)
    logits = image @ text.T * posterior.log_scale.exp() + posterior.bias
    signs = 2 * torch.eye(len(logits), dtype=torch.float64) - 1
    return -F.logsigmoid(signs * logits).sum() / len(logits)


def hidden_cells(model, batch, view=0):
    """The drawn mask as the encoder is given it, [b, p]."""
    seen = {}
    encoder = model.encoder
    original = encoder.masked

    def spy(images, hidden, count, *, drop):
        seen["hidden"] = hidden
        return original(images, hidden, count, drop=drop)

    encoder.masked = spy
    try:
        with torch.no_grad():
            model(batch)
    finally:
        del encoder.masked
    return seen["hidden"]


def patches(images, side=4):
    b, _, h, w = images.shape
    x = images.reshape(b, 3, h // side, side, w // side, side)
    return torch.einsum("nchpwq->nhwpqc", x).reshape(b, -1, side * side * 3)


def direct_mae(model, batch):
    """facebookresearch/mae: random masking, decoder over the whole sequence in its order."""
    _, decoder, net = parts(model, "pixels")
    images, hidden = batch.inputs["views"][0], hidden_cells(model, batch)
    count = int((~hidden[0]).sum())
    keep = (~hidden).nonzero()[:, 1].view(len(images), count)
    x = net.encode(images, visible=keep)
    tokens = decoder.projector.embed(torch.cat([x.summary, x.cells], 1))
    full = decoder.mask_token.expand(len(images), hidden.shape[1], -1).clone()
    full = full.scatter(1, keep[..., None].expand(-1, -1, full.shape[-1]), tokens[:, 1:])
    from allsight.layers import grid_places, sincos_2d

    full = full + sincos_2d(*grid_places(4, 4, dtype=torch.float64), full.shape[-1])
    sequence = torch.cat([tokens[:, :1], full], 1)
    for block in decoder.blocks:
        sequence = block(sequence)
    predicted = decoder.last(decoder.norm(sequence))[:, 1:]
    target = patches(images)
    mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
    loss = (predicted - (target - mean) / (variance + 1.0e-6) ** 0.5).pow(2).mean(-1)
    return (loss * hidden).sum() / hidden.sum()


def direct_simmim(model, batch):
    """microsoft/SimMIM: mask tokens in the input, one linear layer, absolute error of hidden pixels."""
    _, decoder, net = parts(model, "pixels")
    images, hidden = batch.inputs["views"][0], hidden_cells(model, batch)
    found = net.encode(images, hidden=hidden, token=model.encoder.mask_token)
    predicted = decoder.last(found.cells)
    loss = (predicted - patches(images)).abs().mean(-1)
    return (loss * hidden).sum() / hidden.sum()


def direct_simsiam(model, batch):
    _, decoder, net = parts(model)
    z = [run_head(decoder.projector.head, features(net, view)) for view in batch.inputs["views"]]
    p = [run_head(decoder.predictor, each) for each in z]
    return (
        -(F.cosine_similarity(p[0], z[1].detach()).mean() + F.cosine_similarity(p[1], z[0].detach()).mean())
        / 2
    )


def direct_byol(model, batch):
    """2 - 2 cos each way, without its constant 4."""
    target, decoder, net = parts(model)
    slow = model.momentum_encoder.backbone
    loss = 0
    for a, b in ((0, 1), (1, 0)):
        views = batch.inputs["views"]
        p = run_head(decoder.predictor, run_head(decoder.projector.head, features(net, views[a])))
        with torch.no_grad():
            z = run_head(target.net.projector.head, features(slow, views[b]))
        loss = loss + (2 - 2 * F.cosine_similarity(p, z)).mean()
    return loss - 4


def direct_moco(model, batch):
    target, decoder, net = parts(model)
    q = F.normalize(run_head(decoder.projector.head, features(net, batch.inputs["views"][0])), dim=1)
    with torch.no_grad():
        slow = features(model.momentum_encoder.backbone, batch.inputs["views"][1])
        k = F.normalize(run_head(target.net.projector.head, slow), dim=1)
    positive = torch.einsum("nc,nc->n", [q, k])[:, None]
    negative = torch.einsum("nc,kc->nk", [q, target.posterior.queue.negatives()])
    logits = torch.cat([positive, negative], 1) / 0.2
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


def direct_barlow_twins(model, batch):
    _, decoder, net = parts(model)
    a, b = (run_head(decoder.projector.head, features(net, view)) for view in batch.inputs["views"])
    norm = torch.nn.BatchNorm1d(a.shape[1], affine=False).double()
    c = norm(a).T @ norm(b) / len(a)
    on = (torch.diagonal(c) - 1).pow(2).sum()
    off = c.flatten()[:-1].view(len(c) - 1, len(c) + 1)[:, 1:].pow(2).sum()
    return on + 0.0051 * off


def direct_vicreg(model, batch):
    _, decoder, net = parts(model)
    x, y = (run_head(decoder.projector.head, features(net, view)) for view in batch.inputs["views"])
    loss = 25 * F.mse_loss(x, y)
    for z in (x, y):
        centred = z - z.mean(0)
        std = torch.sqrt(centred.var(dim=0) + 0.0001)
        loss = loss + 25 * torch.mean(F.relu(1 - std)) / 2
        covariance = centred.T @ centred / (len(z) - 1)
        loss = loss + (covariance - torch.diag(torch.diagonal(covariance))).pow(2).sum() / z.shape[1]
    return loss


def direct_dino(model, batch):
    target, decoder, net = parts(model)

    def logits(head, x):
        x = F.normalize(run_head(head, x), dim=-1)
        return F.linear(x, F.normalize(head.prototypes, dim=-1))

    views, slow = batch.inputs["views"], model.momentum_encoder.backbone
    student = [logits(decoder.projector.head, features(net, view)) / 0.1 for view in views]
    loss = 0
    for teacher_view in range(2):
        with torch.no_grad():
            out = logits(target.net.projector.head, features(slow, views[teacher_view]))
            q = F.softmax((out - target.posterior.centre.mean) / 0.04, dim=-1)
        for view in range(len(student)):
            if view != teacher_view:
                loss = loss + torch.sum(-q * F.log_softmax(student[view], dim=-1), dim=-1).mean() / 2
    return loss


def direct_siameseim(model, batch):
    """Positions, blocks and loss spelled out; the covariance through the P x P matrix."""
    target, decoder, net = parts(model)
    views, hidden = batch.inputs["views"], hidden_cells(model, batch)
    width = decoder.width
    keep = (~hidden).nonzero()[:, 1].view(len(views[0]), -1)

    def rates(channels):
        return 10000 ** (-torch.arange(channels // 2, dtype=torch.float64) / (channels // 2))

    def waves(numbers, channels):
        angles = numbers[..., None] * rates(channels)
        return torch.cat([angles.sin(), angles.cos()], -1)

    def place(row, column):
        return torch.cat([waves(column, width // 2), waves(row, width // 2)], -1)

    def norm(layer, x):
        rows = x.flatten(0, 1)
        rows = (rows - rows.mean(0)) / (rows.var(0, unbiased=False) + 1e-5).sqrt()
        return (rows * layer.weight + layer.bias).view(x.shape)

    def block(layer, x):
        x = x + layer.attn(norm(layer.norm1, x))
        return x + layer.mlp(norm(layer.norm2, x))

    found = net.encode(views[0], visible=keep)
    x = decoder.projector.embed(torch.cat([found.summary, found.cells], 1))
    for layer in decoder.projector.blocks:
        x = block(layer, x)
    cells = x[:, 1:] + place((keep // 4).double(), (keep % 4).double())
    i1, j1, h1, w1, picture, f1 = batch.inputs["geometry"][0].unbind(1)
    i2, j2, h2, w2, _, f2 = batch.inputs["geometry"][1].unbind(1)
    everything = []
    for sample in range(len(views[0])):
        for cell in range(16):
            r, c, s = cell // 4, cell % 4, sample
            row = h2[s] / h1[s] * (r + 0.5) + (i2[s] - i1[s]) / h1[s] * 4 - 0.5
            if bool(f1[s]) != bool(f2[s]):
                column = -w2[s] / w1[s] * (c + 0.5) + (picture[s] - j1[s] - j2[s]) / w1[s] * 4 - 0.5
            else:
                column = w2[s] / w1[s] * (c + 0.5) + (j2[s] - j1[s]) / w1[s] * 4 - 0.5
            sizes = 10 * torch.log(h2[s] / h1[s]), 10 * torch.log(w2[s] / w1[s])
            everything.append(torch.cat([waves(n, width // 2) for n in (row, column, *sizes)]))
    queries = decoder.mask_token + decoder.place(torch.stack(everything)).view(len(views[0]), 16, width)
    sequence = torch.cat([x[:, :1], cells, queries], 1)
    for layer in decoder.blocks:
        sequence = block(layer, sequence)
    p = decoder.last(norm(decoder.norm, sequence)[:, -16:]).flatten(0, 1)
    with torch.no_grad():
        slow = model.momentum_encoder.backbone.encode(views[1]).cells
        t = target.net.projector.embed(slow)
        # The slow copy's projector sees the class token too.
        whole = model.momentum_encoder.backbone.encode(views[1])
        t = target.net.projector.embed(torch.cat([whole.summary, whole.cells], 1))
        for layer in target.net.projector.blocks:
            t = block(layer, t)
        t = F.layer_norm(t[:, 1:], (width,), eps=1e-6).flatten(0, 1)
    positive = (p - t).square().sum(1).mean()
    moment = t.T @ t / len(t)
    negative = torch.diagonal(p @ moment @ p.T).mean()
    return (positive + 0.02 * negative) / width


def direct_feature_distillation(model, batch):
    target, decoder, net = parts(model)
    images = batch.inputs["views"][0]
    with torch.no_grad():
        teacher = target.net.teacher.backbone.encode(images).cells
        wanted = F.layer_norm(teacher, teacher.shape[-1:], eps=1e-6)
    return F.mse_loss(decoder.last(net.encode(images).cells), wanted)


DIRECT = {
    name.removeprefix("direct_"): function
    for name, function in list(globals().items())
    if name.startswith("direct_")
}


def total(model, batch):
    return sum(losses_of(model, batch).values())


@pytest.mark.parametrize("name", sorted(DIRECT))
def test_a_method_as_settings_is_the_method_step_for_step(name):
    """Losses and weights over three optimiser steps, in float64."""
    configured = model_of(config_of(name))
    direct = copy.deepcopy(configured)
    optimisers = [
        torch.optim.SGD([p for p in m.parameters() if p.requires_grad], 0.1) for m in (configured, direct)
    ]
    for step in range(3):
        batch = batch_of(rows=6, seed=step)
        losses = []
        for model, loss_of, optimiser in zip(
            (configured, direct), (total, DIRECT[name]), optimisers, strict=True
        ):
            optimiser.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            losses.append(float(loss.detach()))
            if model is direct:
                # Queues and centres are offered their features by the configured model's forward alone.
                for target in model.targets.values():
                    _take_offers(
                        target.posterior,
                        configured.targets["view"].posterior if "view" in configured.targets else None,
                    )
            optimiser.step()
        assert losses[0] == pytest.approx(losses[1], abs=1e-9)
        for model in (configured, direct):
            model.after_step(step)
    trained = 0
    for (key, a), b in zip(configured.named_parameters(), direct.parameters(), strict=True):
        trained += a.grad is not None
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9, msg=key)
    assert trained > 5


def _take_offers(posterior, other):
    for part in ("queue", "centre"):
        if getattr(posterior, part, None) is not None:
            getattr(posterior, part)._offered = list(getattr(other, part)._offered)


def test_every_method_is_tried():
    assert set(DIRECT) == set(cases.CASES) - {"m3i"}


@pytest.mark.parametrize("name", sorted(cases.CASES))
def test_settings_survive_being_written_down(name):
    config = config_of(name)
    assert build(M3I.Config, dump(config)) == config


@pytest.mark.parametrize("name", sorted(set(cases.CASES) - {"mae", "siameseim"}))
def test_all_but_those_that_drop_tokens_take_a_convolutional_backbone(name):
    config = replace(config_of(name), {"backbone": CONV})
    if name == "feature_distillation":
        config = replace(config, {"targets.view.net.backbone": CONV})
    if name in ("simmim", "m3i"):
        config = replace(config, {("mask" if name == "simmim" else "mixer") + ".block_px": 8})
    size = 32
    model = model_of(config)
    loss = total(model, batch_of(rows=4, size=size))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in model.encoder.backbone.parameters())


def test_mixtures_are_ordered_and_named():
    assert isinstance(config_of("m3i").targets, Mixture)
    assert list(config_of("m3i").targets) == ["intra", "inter", "category"]
