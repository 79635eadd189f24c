"""Clipping gradients by norm, by value and by the norm of each unit's weights."""

import pytest
import torch
from torch import nn

from allsight.config import ConfigError
from allsight.engine.clipping import Clipping
from allsight.engine.optim import SGD


def clipped(weights, gradients, **settings):
    """The gradients after clipping; both arguments are name -> list."""
    parameters = {}
    for name, weight in weights.items():
        parameters[name] = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        parameters[name].grad = torch.tensor(gradients[name], dtype=torch.float64)
    found = [p.grad for p in parameters.values()]
    Clipping(SGD.Config(**settings), parameters)(found, torch.nn.utils.get_total_norm(found))
    return {name: parameter.grad.tolist() for name, parameter in parameters.items()}


def test_by_norm_all_gradients_keep_their_direction():
    found = clipped({"a": [0.0], "b": [0.0]}, {"a": [3.0], "b": [-4.0]}, clip_norm=1.0)
    assert found == {"a": pytest.approx([0.6]), "b": pytest.approx([-0.8])}


def test_by_value_each_number_stands_for_itself():
    assert clipped({"a": [0.0] * 3}, {"a": [3.0, -4.0, 0.1]}, clip_value=0.5) == {"a": [0.5, -0.5, 0.1]}


def test_adaptively_each_row_is_bounded_by_its_own_weights():
    weights = {"a": [[3.0, 4.0], [3.0, 4.0]]}
    found = clipped(weights, {"a": [[0.3, 0.4], [6.0, 8.0]]}, clip_adaptive=0.2)
    torch.testing.assert_close(found["a"], [[0.3, 0.4], [0.6, 0.8]])


def test_adaptively_kernels_are_units_by_output_channel_and_vectors_as_a_whole():
    kernel, vector = [[[[2.0]], [[0.0]]], [[[4.0]], [[0.0]]]], [3.0, 4.0]
    found = clipped(
        {"k": kernel, "v": vector}, {"k": [[[[9.0]], [[0.0]]]] * 2, "v": [0.0, 9.0]}, clip_adaptive=0.5
    )
    torch.testing.assert_close(found["k"], [[[[1.0]], [[0.0]]], [[[2.0]], [[0.0]]]])
    torch.testing.assert_close(found["v"], [0.0, 2.5])


def test_adaptively_units_that_start_at_zero_can_still_move():
    found = clipped({"a": [[0.0, 0.0]]}, {"a": [[3.0, 4.0]]}, clip_adaptive=0.1)
    torch.testing.assert_close(found["a"], [[0.6e-4, 0.8e-4]])


def test_adaptively_heads_are_left_alone_unless_named_otherwise():
    weights, gradients = {"heads.a.weight": [[1.0]]}, {"heads.a.weight": [[9.0]]}
    assert clipped(weights, gradients, clip_adaptive=0.1) == gradients
    found = clipped(weights, gradients, clip_adaptive=0.1, clip_adaptive_spares=())
    torch.testing.assert_close(found["heads.a.weight"], [[0.1]])


@pytest.mark.parametrize("settings", [{}, {"clip_norm": 9.0}, {"clip_value": 9.0}, {"clip_adaptive": 9.0}])
def test_small_gradients_stay_as_they_are(settings):
    weights, gradients = {"a": [[1.0, 2.0]], "b": [1.0]}, {"a": [[0.0, 1.0]], "b": [2.0]}
    assert clipped(weights, gradients, **settings) == gradients


def test_two_ways_at_once_are_refused():
    with pytest.raises(ConfigError, match=r"clip_norm=1 and clip_value=0.5: .* keep one of them"):
        SGD.Config(clip_norm=1.0, clip_value=0.5)


def test_parameters_without_gradient_are_passed_over():
    for settings in ({"clip_norm": 1.0}, {"clip_value": 1.0}, {"clip_adaptive": 1.0}):
        used, idle = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        used.grad = torch.ones(2)
        clip = Clipping(SGD.Config(**settings), {"used": used, "idle": idle})
        clip([used.grad], torch.tensor(2.0) ** 0.5)
        assert idle.grad is None
