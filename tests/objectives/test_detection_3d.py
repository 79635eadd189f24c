"""Codes of boxes, matching and losses of set prediction, heatmaps of middles."""

import math

import pytest
import torch

from allsight.objectives import (
    boxes_from_bevformer,
    boxes_to_bevformer,
    center_loss,
    center_targets,
    decode_boxes,
    detection_3d_losses,
    encode_boxes,
    match_boxes,
)
from allsight.types import BEVGrid, Boxes3D


def boxes_of(number, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return Boxes3D(
        draw(number, 3) * 40 - 20,
        draw(number, 3) * 4 + 0.3,
        draw(number) * 2 * math.pi - math.pi,
        draw(number, 2) * 8 - 4,
        torch.randint(0, 10, (number,), generator=generator),
    )


def same(a, b, atol=1e-12):
    turn = (a.yaw_rad - b.yaw_rad + math.pi).remainder(2 * math.pi) - math.pi
    pairs = (
        (a.centers_ref_m, b.centers_ref_m),
        (a.sizes_m, b.sizes_m),
        (turn, torch.zeros_like(turn)),
        (a.velocities_ref_mps, b.velocities_ref_mps),
    )
    return torch.equal(a.labels, b.labels) and all(torch.allclose(x, y, atol=atol) for x, y in pairs)


def test_codes_and_official_rows_give_the_boxes_back():
    boxes = boxes_of(20)
    assert same(decode_boxes(encode_boxes(boxes), boxes.labels), boxes)
    for bottom in (True, False):
        rows = boxes_to_bevformer(boxes, bottom=bottom)
        assert same(boxes_from_bevformer(rows, boxes.labels, bottom=bottom), boxes)


def test_official_rows_have_their_own_conventions():
    """A car of 4 x 2 x 1.5 m that drives along +y: r is -pi, width comes before length, z is the bottom's."""
    car = Boxes3D(
        torch.tensor([[1.0, 2, 3]]),
        torch.tensor([[4.0, 2, 1.5]]),
        torch.tensor([math.pi / 2]),
        torch.tensor([[0.0, 5]]),
        torch.tensor([0]),
    )
    row = boxes_to_bevformer(car)[0].tolist()
    assert row[:6] == [1, 2, 2.25, 2, 4, 1.5] and row[7:] == [0, 5]
    assert abs(row[6]) == pytest.approx(math.pi)
    code = encode_boxes(car)[0]
    assert code[:2].tolist() == [1, 2] and code[4].item() == 3
    assert torch.allclose(code[[2, 3, 5]].exp(), torch.tensor([2.0, 4, 1.5]))
    # Sine and cosine of r.
    assert torch.allclose(code[6:8], torch.tensor([math.sin(-math.pi), math.cos(-math.pi)]), atol=1e-6)


def perfect(truth, queries=12, classes=10, layers=2, seed=1):
    """Predictions that hold the truth at shuffled queries, sure of themselves."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.full((layers, len(truth), queries, classes), -12.0, dtype=torch.float64)
    codes = torch.randn(layers, len(truth), queries, 10, generator=generator, dtype=torch.float64) * 50
    places = []
    for row, boxes in enumerate(truth):
        order = torch.randperm(queries, generator=generator)[: len(boxes.labels)]
        places.append(order)
        codes[:, row, order] = encode_boxes(boxes)
        logits[:, row, order, boxes.labels] = 12.0
    return logits, codes, places


def test_truth_among_the_predictions_is_found_and_costs_nothing():
    truth = [boxes_of(4), boxes_of(7, seed=2)]
    logits, codes, places = perfect(truth)
    assigned = match_boxes(logits, codes, truth)
    for row, order in enumerate(places):
        assert assigned[0, row, order].tolist() == list(range(len(order)))
        assert int((assigned[0, row] >= 0).sum()) == len(order)
    losses = detection_3d_losses(logits, codes, truth)
    assert float(losses["boxes"].abs().max()) < 1e-12
    assert float(losses["classes"].max()) < 1e-4


def test_order_of_the_queries_does_not_matter():
    truth = [boxes_of(4), boxes_of(0)]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 9, 10, generator=generator, dtype=torch.float64)
    codes = torch.randn(2, 2, 9, 10, generator=generator, dtype=torch.float64)
    order = torch.randperm(9, generator=generator)
    a = detection_3d_losses(logits, codes, truth)
    b = detection_3d_losses(logits[:, :, order], codes[:, :, order], truth)
    assert all(torch.allclose(a[name], b[name]) for name in a)
    # Rows add up: the sum over rows with one divisor is the batch's.
    parts = [
        detection_3d_losses(
            logits[:, row : row + 1], codes[:, row : row + 1], truth[row : row + 1], num_boxes=4
        )
        for row in range(2)
    ]
    assert all(torch.allclose(a[name], parts[0][name] + parts[1][name]) for name in a)


def test_a_frame_without_boxes_trains():
    logits = torch.zeros(1, 1, 5, 10, requires_grad=True)
    codes = torch.zeros(1, 1, 5, 10, requires_grad=True)
    losses = detection_3d_losses(logits, codes, [boxes_of(0)])
    (losses["classes"] + losses["boxes"]).sum().backward()
    assert losses["boxes"].item() == 0 and losses["classes"].item() > 0
    assert bool(logits.grad.isfinite().all()) and not bool(codes.grad.any())


@pytest.mark.parametrize("in_part", [True, False])
def test_unknown_velocity_is_not_learnt(in_part):
    truth = boxes_of(3)
    truth.velocities_ref_mps[1] = float("nan")
    logits, codes, (order,) = perfect([truth], layers=1)
    codes[:, 0, order] = encode_boxes(boxes_of(3)) + 0.25
    codes.requires_grad_()
    losses = detection_3d_losses(logits, codes, [truth], keep_boxes_in_part=in_part)
    losses["boxes"].sum().backward()
    gradient = codes.grad[0, 0, order[1]]
    assert not bool(gradient[8:].any())
    assert bool(gradient[:8].any()) == in_part
    assert bool(codes.grad[0, 0, order[0]].all())


def test_predictions_that_are_not_finite_show_in_the_loss_and_stop_nobody():
    logits, codes, _ = perfect([boxes_of(3)])
    codes[0, 0, 2] = float("nan")
    logits[1, 0, 4] = float("inf")
    match_boxes(logits, codes, [boxes_of(3)])


GRID = BEVGrid((-20.0, -10.0, -3.0, 20.0, 10.0, 3.0), (20, 20))


def test_middles_are_drawn_where_they_are_and_learnt():
    boxes = boxes_of(3)
    boxes.centers_ref_m[:] = torch.tensor([[-19.0, -9.5, 0], [7.0, 2.5, 0], [30.0, 0, 0]])
    boxes.labels[:] = torch.tensor([1, 0, 2])
    target = center_targets([boxes, boxes_of(0)], GRID, 3, torch.zeros(()), sigma_m=1.6)
    assert target.shape == (2, 3, 20, 20)
    assert target[0, 1, 0, 0] == 1 and target[0, 0, 12, 13] == 1
    assert int((target == 1).sum()) == 2  # the third lies outside
    assert float(target[0, 0, 12, 14]) == pytest.approx(math.exp(-4 / (2 * 1.6**2)))
    sure = torch.where(target == 1, 12.0, -12.0)
    assert float(center_loss(sure, target)) < 1e-6 < 1 < float(center_loss(-sure, target))
