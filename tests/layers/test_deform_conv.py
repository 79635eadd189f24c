"""Modulated deformable convolution against a plain loop, an ordinary convolution and finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F

from allsight.layers import DeformConv2d

PATTERNS = [
    dict(kernel_size=3, padding=1),
    dict(kernel_size=3, stride=2, padding=1, deform_groups=2),
    dict(kernel_size=(1, 3), stride=(1, 2), padding=(0, 2), dilation=(1, 2), groups=2, bias=False),
    dict(kernel_size=(3, 2), dilation=2, padding=2, groups=2, deform_groups=4),
    dict(kernel_size=1, deform_groups=2),
]


def moving(layer, seed=0):
    """Random weights everywhere, so that offsets are not at their start."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter) * 0.5
    return layer


def pixel(value, y, x):
    """Bilinear sample of [c, h, w] with zeros outside."""
    total = torch.zeros(value.shape[0], dtype=value.dtype)
    for j in (math.floor(y), math.floor(y) + 1):
        for i in (math.floor(x), math.floor(x) + 1):
            if 0 <= j < value.shape[1] and 0 <= i < value.shape[2]:
                total += (1 - abs(y - j)) * (1 - abs(x - i)) * value[:, j, i]
    return total


def plain_loop(layer, x):
    """One sample after the other, with the channel numbers of the official operator written out.

    Source: open-mmlab/mmcv:mmcv/ops/csrc/common/cuda/modulated_deform_conv_cuda_kernel.cuh.
    """
    predicted = layer.conv_offset(x)
    (kh, kw), (sh, sw) = layer.kernel_size, layer.stride
    (ph, pw), (dh, dw) = layer.padding, layer.dilation
    points, groups = kh * kw, layer.deform_groups
    batch, _, rows, columns = predicted.shape
    size, width = layer.in_channels // groups, layer.in_channels // layer.groups
    out = torch.zeros(batch, layer.out_channels, rows, columns, dtype=x.dtype)
    for b in range(batch):
        for oy in range(rows):
            for ox in range(columns):
                taps = torch.zeros(layer.in_channels, points, dtype=x.dtype)
                for g in range(groups):
                    for k in range(points):
                        first = 2 * (g * points + k)
                        dy, dx = (float(v) for v in predicted[b, first : first + 2, oy, ox])
                        amount = predicted[b, 2 * groups * points + g * points + k, oy, ox].sigmoid()
                        y = oy * sh - ph + (k // kw) * dh + dy
                        x_ = ox * sw - pw + (k % kw) * dw + dx
                        cut = slice(g * size, (g + 1) * size)
                        taps[cut, k] = amount * pixel(x[b, cut], y, x_)
                for o in range(layer.out_channels):
                    group = o // (layer.out_channels // layer.groups)
                    part = taps[group * width : (group + 1) * width]
                    out[b, o, oy, ox] = (layer.weight[o].flatten(1) * part).sum()
    return out if layer.bias is None else out + layer.bias[:, None, None]


@pytest.mark.parametrize("options", PATTERNS)
@torch.no_grad()
def test_matches_a_plain_loop(options):
    layer = moving(DeformConv2d(4, 6, **options).double())
    x = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(layer(x), plain_loop(layer, x), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("options", PATTERNS)
def test_is_an_ordinary_convolution_without_offsets_and_with_full_weights(options):
    layer = moving(DeformConv2d(4, 6, **options).double())
    points = math.prod(layer.kernel_size) * layer.deform_groups
    with torch.no_grad():
        layer.conv_offset.weight.zero_()
        layer.conv_offset.bias.zero_()
        layer.conv_offset.bias[2 * points :] = 100  # sigmoid is exactly 1
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    expected = F.conv2d(
        x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
    )
    torch.testing.assert_close(layer(x), expected)


def test_starts_as_half_an_ordinary_convolution():
    layer = DeformConv2d(4, 6, 3, padding=1)
    x = torch.randn(1, 4, 5, 6)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, padding=1) / 2)
    assert layer.weight.abs().max() <= 1 / 6
    assert not layer.bias.any()


@pytest.mark.parametrize("options", PATTERNS)
def test_gradients_are_those_of_finite_differences(options):
    layer = moving(DeformConv2d(4, 6, **options).double())
    x = torch.randn(1, 4, 4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def call(x, *tensors):
        return torch.func.functional_call(layer, dict(zip(names, tensors, strict=True)), (x,))

    inputs = (x.requires_grad_(), *(p.detach().requires_grad_() for p in parameters))
    assert torch.autograd.gradcheck(call, inputs, eps=1e-7, atol=1e-6, fast_mode=True)


def test_parameters_have_the_names_and_sizes_of_resnet_101_dcn():
    layer = DeformConv2d(256, 256, 3, padding=1, bias=False)
    assert {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()} == {
        "weight": (256, 256, 3, 3),
        "conv_offset.weight": (27, 256, 3, 3),
        "conv_offset.bias": (27,),
    }


def test_each_image_of_a_batch_is_computed_alone_and_layout_does_not_matter():
    layer = moving(DeformConv2d(4, 6, 3, padding=1, deform_groups=2).double())
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    output = layer(x)
    for i in range(3):
        torch.testing.assert_close(layer(x[i : i + 1]), output[i : i + 1])
    torch.testing.assert_close(layer(x.contiguous(memory_format=torch.channels_last)), output)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert layer(x[:0]).shape == (0, 6, 5, 6)


def test_places_stay_float32_under_autocast_and_in_models_of_16_bits():
    layer = moving(DeformConv2d(4, 6, 3, padding=1))
    x = torch.randn(1, 4, 5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        places = layer._predict(x)[0]
        output = layer(x)
    torch.testing.assert_close(places, layer._predict(x)[0], rtol=0, atol=0)
    torch.testing.assert_close(output.float(), layer(x), rtol=0.1, atol=0.2)
    layer = layer.bfloat16()
    assert layer._predict(x.bfloat16())[0].dtype == torch.float32
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_shapes_are_known_on_the_meta_device():
    with torch.device("meta"):
        layer = DeformConv2d(4, 6, 3, stride=2, padding=1)
    assert layer(torch.zeros(2, 4, 7, 8, device="meta")).shape == (2, 6, 4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(kernel_size=3, groups=4), "groups: expected a divisor of 6, got 4"),
        (dict(kernel_size=3, deform_groups=3), "deform_groups: expected a divisor of 4, got 3"),
        (dict(kernel_size=0), "kernel_size: expected integers >= 1, got 0"),
        (dict(kernel_size=3, padding=(1, -1)), r"padding: expected integers >= 0, got \(1, -1\)"),
    ],
)
def test_arguments_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=f"DeformConv2d: {message}"):
        DeformConv2d(4, 6, **options)
