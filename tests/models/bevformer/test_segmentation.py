"""Heads that read a map of classes off the bird's-eye-view map."""

import pytest
import torch

from allsight.models.bevformer import MapConvHead, MapHead, MapQueryHead
from allsight.objectives import map_mask_losses
from allsight.types import BEVGrid, BEVSpec

RANGE = (-8.0, -4.0, -1.0, 8.0, 4.0, 1.0)
SPEC = BEVSpec(16, 1, BEVGrid(RANGE, (4, 8)))
FINE = BEVGrid(RANGE, (8, 16))
CONFIGS = {
    "queries": MapQueryHead.Config(layers=2, heads=4, hidden=16, upscale=2),
    "conv": MapConvHead.Config(hidden=8, upscale=2),
}


@pytest.mark.parametrize("kind", sorted(MapHead.family.table))
def test_every_head_answers_on_the_wanted_cells_and_learns(kind):
    torch.manual_seed(0)
    head = CONFIGS[kind].build(SPEC, 3, FINE)
    bev = torch.randn(2, 16, 4, 8)
    outputs = head(bev)
    assert outputs.map_logits.shape == (2, 3, 8, 16)
    truth = torch.rand(2, 3, 8, 16) > 0.7
    first = sum(map_mask_losses(outputs.layers, truth).values())
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = sum(map_mask_losses(head(bev).layers, truth).values())
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.7 * float(first.detach())
    assert all(p.grad is not None for p in head.parameters() if p.requires_grad) or kind == "queries"


def test_a_class_is_where_its_query_looks():
    """The mask is the attention's logits themselves: a key along a query lights up its own cell alone."""
    torch.manual_seed(0)
    head = MapQueryHead(MapQueryHead.Config(layers=1, heads=2, hidden=8, smooth=False), SPEC, 2, SPEC.grid)
    (layer,) = head.layers
    bev = 0.01 * torch.randn(1, 16, 4, 8)
    with torch.no_grad():
        query = head.queries[None]
        talked, _ = layer.self_attn(query, query, query, need_weights=False)
        asked = layer.asks(layer.norms[0](query + talked))[0, 1]
        layer.keys.weight.copy_(torch.eye(16))
        layer.keys.bias.zero_()
        bev[0, :, 2, 5] = 10 * asked
        mask = head(bev).map_logits[0, 1]
    assert int(mask.argmax()) == 2 * 8 + 5


def test_cells_that_are_asked_for_may_lie_elsewhere():
    """Each wanted cell reads the map at its own place: a ramp along x stays that ramp."""
    head = MapConvHead(MapConvHead.Config(hidden=4), SPEC, 1, BEVGrid((-4.0, -2.0, 0, 4.0, 2.0, 1), (5, 9)))
    wide = torch.zeros(())
    ramp = SPEC.grid.centers_m(wide)[:, 0].reshape(1, 1, 4, 8)
    wanted = BEVGrid((-4.0, -2.0, 0, 4.0, 2.0, 1), (5, 9)).centers_m(wide)[:, 0].reshape(1, 1, 5, 9)
    torch.testing.assert_close(head.at_cells(ramp), wanted)


def test_losses_know_when_all_is_right_and_weigh_rows_alike():
    truth = torch.zeros(2, 2, 3, 4, dtype=torch.bool)
    truth[0, 0, 1] = True
    right = (truth.float() * 40 - 20)[None]
    for focal in (False, True):
        losses = map_mask_losses(right, truth, focal=focal)
        assert all(float(loss) < 1e-4 for loss in losses.values())
    some = torch.randn(3, 2, 2, 3, 4)
    whole = map_mask_losses(some, truth)
    rows = [map_mask_losses(some[:, n : n + 1], truth[n : n + 1]) for n in range(2)]
    for name, loss in whole.items():
        torch.testing.assert_close(loss, (rows[0][name] + rows[1][name]) / 2)
