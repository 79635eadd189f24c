"""Every operator refuses arguments of the wrong kind, by name, even one that equals a right one."""

import inspect

import pytest
import torch

from allsight import ops
from allsight.ops.dcnv3 import Geometry
from allsight.ops.resample import resample_window

_DCN = dict(
    value=torch.zeros(1, 4, 4, 4), offset=torch.zeros(1, 4, 4, 72), mask=torch.zeros(1, 4, 4, 36), groups=4
)
_ROWS = dict(
    residual=torch.zeros(2, 3),
    branch=torch.zeros(2, 3),
    norm_weight=torch.ones(3),
    norm_bias=torch.zeros(3),
    scale=torch.ones(3),
)
CALLS = {
    "dcnv3": _DCN,
    "dcnv4": _DCN,
    "ms_deform_attn": dict(
        value=torch.zeros(1, 4, 1, 2),
        spatial_shapes=((2, 2),),
        sampling_locations=torch.zeros(1, 3, 1, 1, 2, 2),
        attention_weights=torch.zeros(1, 3, 1, 1, 2),
    ),
    "depthwise_norm_act": dict(
        x=torch.zeros(1, 2, 2, 3),
        weight=torch.zeros(3, 1, 3, 3),
        bias=torch.zeros(3),
        norm_weight=torch.ones(3),
        norm_bias=torch.zeros(3),
    ),
    "add_layer_norm": _ROWS,
    "layer_norm_add": _ROWS,
    "expert_dispatch": dict(
        x=torch.zeros(2, 3),
        weight=torch.zeros(2, 4, 3),
        bias=torch.zeros(2, 4),
        experts=torch.zeros(2, 1, dtype=torch.int64),
        gates=torch.ones(2, 1),
    ),
}
_PAIRS = (3.0, "3", None, (3.0, 3), [3, 3.0], True)
WRONG = {
    "groups": (4.0, "4", None, True),
    "kernel_size": _PAIRS,
    "stride": (1.0, True, (1, 1.0)),
    "padding": (1.0, False, (True, 1)),
    "dilation": (1.0, None, (1, 1.0)),
    "offset_scale": ("1", None, True),
    "remove_center": (0, "no", None),
    "softmax": (0, "no", None),
    "eps": ("1e-6", None, True),
    "spatial_shapes": (((2.0, 2),), ((2, True),), 4, torch.full((1, 2), 2.0), torch.ones(1, 2).bool(), None),
}
NO_KINDS = ("act", "backend")
"""Words, of which the wrong ones are no matter of kind."""


def _options(name):
    given = inspect.signature(getattr(ops, name)).parameters
    tensors = {key for key, value in CALLS[name].items() if isinstance(value, torch.Tensor)}
    return [option for option in given if option not in tensors and option not in NO_KINDS]


def test_every_operator_is_called_here():
    assert CALLS.keys() == ops.status().keys()


@pytest.mark.parametrize(("name", "option"), [(name, option) for name in CALLS for option in _options(name)])
def test_numbers_of_the_wrong_kind_are_named(name, option, without_shape_checks):
    operator, call = getattr(ops, name), CALLS[name]
    # Known by then: what equals a right one must not be taken for it.
    operator(**call)
    for wrong in WRONG[option]:
        with pytest.raises(TypeError, match=rf"^{name}: {option}: expected .*") as caught:
            operator(**call | {option: wrong})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [(name, key) for name, call in CALLS.items() for key, t in call.items() if isinstance(t, torch.Tensor)],
)
def test_what_is_no_tensor_of_the_right_numbers_is_named(name, tensor, without_shape_checks):
    right = CALLS[name][tensor]
    other = right.float() if right.dtype == torch.int64 else right.int()
    for wrong in (right.numpy(), other, "x"):
        with pytest.raises(TypeError, match=f"^{name}: {tensor}: expected a"):
            getattr(ops, name)(**CALLS[name] | {tensor: wrong})


@pytest.mark.parametrize("place", range(6))
def test_sides_of_a_window_are_integers(place, without_shape_checks):
    sides = [0, 0, 4, 4, 2, 2]
    for wrong in (float(sides[place]), bool(sides[place])):
        given = [*sides[:place], wrong, *sides[place + 1 :]]
        with pytest.raises(TypeError, match=r"^resample_window: window, hw_px: expected integers"):
            resample_window(torch.zeros(3, 4, 4, dtype=torch.uint8), tuple(given[:4]), tuple(given[4:]))


def test_one_pattern_is_one_object_however_it_is_written(without_shape_checks):
    written = [
        Geometry.of(4, kernel, 1, 1, (1, 1), scale, False)
        for kernel in (3, (3, 3), [3, 3])
        for scale in (1, 1.0)
    ]
    assert all(geometry is written[0] for geometry in written)
