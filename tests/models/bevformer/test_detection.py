"""The detection head: references, gradients, answers, peaks."""

import pytest
import torch

from allsight.config import ConfigError
from allsight.models.bevformer.detection import DetectionHead, PeakQueries, answers
from allsight.types import BEVGrid, BEVSpec

GRID = BEVGrid((-30.0, -20.0, -3.0, 60.0, 25.0, 5.0), (9, 18))
SPEC = BEVSpec(16, 1, GRID)


def head_of(**changes):
    torch.manual_seed(0)
    settings = dict(queries=5, layers=3, heads=2, hidden=24, drop=0.0, num_answers=6)
    return DetectionHead(DetectionHead.Config(**{**settings, **changes}), SPEC).double()


def test_nothing_to_correct_leaves_the_references_where_they_are():
    head = head_of()
    with torch.no_grad():
        for regress in head.regress:
            regress[-1].weight.zero_()
            regress[-1].bias.zero_()
    outputs = head(torch.randn(2, 16, 9, 18, dtype=torch.float64))
    start = GRID.to_metres(head.reference(head.queries[:, :16]).sigmoid())
    for layer in range(3):
        found = outputs.codes[layer][..., [0, 1, 4]]
        assert torch.allclose(found, start.expand(2, -1, -1), atol=1e-3)


def test_boxes_of_a_layer_teach_no_earlier_box():
    head = head_of()
    outputs = head(torch.randn(1, 16, 9, 18, dtype=torch.float64))
    outputs.codes[2].sum().backward()
    taught = [bool(regress[-1].weight.grad.any()) for regress in head.regress]
    assert taught == [False, False, True]


def test_places_stay_inside_the_range_and_answers_are_sorted():
    head = head_of().eval()
    outputs = head(torch.randn(2, 16, 9, 18, dtype=torch.float64) * 10)
    low, high = torch.tensor(GRID.range_m).double().chunk(2)
    places = outputs.codes[..., [0, 1, 4]]
    assert bool(((places >= low) & (places <= high)).all())
    scores = outputs.boxes.scores
    assert torch.equal(scores, scores.sort(-1, descending=True).values)
    rows = answers(outputs.boxes, range_m=(0.0, -20, -3, 60, 25, 5))
    assert len(rows) == 2 and all(bool((row.centers_ref_m[:, 0] >= 0).all()) for row in rows)
    assert head_of().train()(torch.randn(1, 16, 9, 18, dtype=torch.float64)).boxes is None


def test_queries_start_at_the_peaks_of_the_heatmap():
    peaks = PeakQueries(2, 3, SPEC)
    with torch.no_grad():
        for conv in (peaks.heat[0], peaks.heat[2]):
            conv.weight.zero_()
            conv.bias.zero_()
        peaks.heat[0].weight[0, 0, 1, 1] = 1
        peaks.heat[2].weight[1, 0] = 1
    bev = torch.zeros(1, 16, 9, 18)
    bev[0, 0, 2, 3], bev[0, 0, 2, 4], bev[0, 0, 7, 10] = 5.0, 4.0, 3.0
    heatmap, places, _, _ = peaks(bev)
    assert heatmap[0, 1, 2, 3].item() == 5
    expected = GRID.centers(bev).unflatten(0, (9, 18))
    # The neighbour of the highest cell is no peak, although it is the second highest.
    assert torch.allclose(places[0, :, :2], torch.stack([expected[2, 3], expected[7, 10]]))


def test_a_head_that_asks_nothing_is_refused():
    with pytest.raises(ConfigError, match="at least one query"):
        DetectionHead.Config(queries=0)


def test_peaks_alone_are_enough():
    head = head_of(queries=0, peaks=4).eval()
    assert head(torch.randn(1, 16, 9, 18, dtype=torch.float64)).codes.shape == (3, 1, 4, 10)
