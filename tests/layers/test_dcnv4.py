"""The DCNv4 layer: the official layout of its parameters, its start, its strides and its precision."""

import pytest
import torch

from allsight.layers import DCNv4
from allsight.ops import dcnv4


def moving(layer, seed=0):
    """Random weights everywhere, so that offsets and gates are not at their start."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter) * 0.3
    return layer


def as_the_official_kernel_reads(packed, groups, points):
    """Offsets and weights from the one tensor of the official operator, element by element.

    Source: OpenGVLab/DCNv4:DCNv4_op/src/cuda/dcnv4_im2col_cuda.cuh (p_offset_ptr, p_mask_shm).
    """
    offset = torch.stack(
        [packed[..., g * points * 3 + i] for g in range(groups) for i in range(2 * points)], -1
    )
    mask = torch.stack(
        [packed[..., g * points * 3 + 2 * points + i] for g in range(groups) for i in range(points)], -1
    )
    return offset, mask


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(dw_kernel_size=3),
        dict(remove_center=True, offset_scale=0.5),
        dict(kernel_size=5, padding=2, dilation=1, output_bias=False),
        dict(dw_kernel_size=5, center_feature_scale=True),
    ],
)
def test_layer_computes_what_the_official_module_does(options):
    layer = moving(DCNv4(6, 3, **options).double())
    x = torch.randn(2, 7, 5, 6, dtype=torch.float64)
    context, points = x, layer.geometry.points
    if layer.offset_mask_dw is not None:
        context = layer.offset_mask_dw(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    offset, mask = as_the_official_kernel_reads(layer.offset_mask(context), 3, points)
    value = layer.value_proj(x)
    names = ("kernel_size", "padding", "dilation", "offset_scale", "remove_center")
    sampling = {k: v for k, v in options.items() if k in names}
    mixed = dcnv4(value, offset, mask, groups=3, **sampling)
    if layer.center_feature_scale is not None:
        gate = layer.center_feature_scale(mixed).sigmoid()[..., None].expand(-1, -1, -1, -1, 2).flatten(-2)
        mixed = mixed * (1 - gate) + value * gate
    torch.testing.assert_close(layer(x), layer.output_proj(mixed))


def test_parameters_have_the_official_names_and_sizes():
    # FlashInternImage-T, first stage: 4 groups of 9 points need 108 rows, which are 112 with the padding.
    layer = DCNv4(64, 4, output_bias=False)
    sizes = {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
    assert sizes == {
        "offset_mask.weight": (112, 64),
        "offset_mask.bias": (112,),
        "value_proj.weight": (64, 64),
        "value_proj.bias": (64,),
        "output_proj.weight": (64, 64),
    }
    assert DCNv4(8, 2, dw_kernel_size=3).state_dict()["offset_mask_dw.weight"].shape == (8, 1, 3, 3)
    assert DCNv4(8, 8, kernel_size=1, padding=0).offset_mask.out_features == 24


def test_starts_as_the_bias_of_its_last_layer():
    layer = DCNv4(8, 2)
    torch.nn.init.normal_(layer.output_proj.bias)
    x = torch.randn(1, 4, 5, 8)
    torch.testing.assert_close(layer(x), layer.output_proj.bias.expand(1, 4, 5, 8))


def test_center_feature_scale_starts_half_open():
    layer = DCNv4(8, 2, center_feature_scale=True)
    x = torch.randn(1, 4, 5, 8)
    torch.testing.assert_close(layer(x), layer.output_proj(layer.value_proj(x) / 2))


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(dw_kernel_size=3),
        dict(kernel_size=5, padding=2, dw_kernel_size=3),
        dict(dilation=2, padding=2),
        dict(center_feature_scale=True),
        dict(padding=0),
        dict(padding=3),
        dict(padding=0, dw_kernel_size=1),
    ],
)
@pytest.mark.parametrize("size", [(8, 10), (7, 9)])
def test_stride_takes_every_second_pixel_of_the_dense_result(options, size):
    dense = moving(DCNv4(6, 3, **options).double())
    strided = DCNv4(6, 3, stride=2, **options).double()
    strided.load_state_dict(dense.state_dict())
    x = torch.randn(2, *size, 6, dtype=torch.float64)
    torch.testing.assert_close(strided(x), dense(x)[:, ::2, ::2])


@pytest.mark.parametrize("dw_kernel_size", [None, 3])
@pytest.mark.parametrize(
    "options",
    [
        dict(kernel_size=2, padding=1),
        dict(kernel_size=4, padding=1, stride=2),
        dict(kernel_size=5, padding=0),
        dict(kernel_size=3, padding=3, dilation=2, stride=3),
    ],
)
def test_output_has_the_size_of_an_ordinary_convolution(options, dw_kernel_size):
    x = torch.randn(1, 11, 8, 4)
    expected = torch.nn.Conv2d(4, 4, **options)(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).shape
    assert moving(DCNv4(4, 2, **options, dw_kernel_size=dw_kernel_size))(x).shape == expected


def test_offsets_stay_float32_under_autocast():
    layer = moving(DCNv4(8, 2, dw_kernel_size=3))
    x = torch.randn(1, 5, 6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        context = layer._context(x)
        assert context.dtype == torch.bfloat16
        offset, mask = layer._offset_and_mask(context)
        assert offset.dtype == mask.dtype == torch.float32
        output = layer(x)
    torch.testing.assert_close(output.float(), layer(x), rtol=0.1, atol=0.1)


def test_gradients_reach_every_row_but_the_padding():
    layer = moving(DCNv4(8, 2, dw_kernel_size=3, center_feature_scale=True).double())
    layer(torch.randn(2, 5, 6, 8, dtype=torch.float64)).square().sum().backward()
    assert [n for n, p in layer.named_parameters() if p.grad is None or not p.grad.any()] == []
    rows = layer.offset_mask.weight.grad.abs().amax(1)
    assert rows[:54].all()
    assert not rows[54:].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(channels=8, groups=3), "groups: expected a divisor of channels=8, got 3"),
        (dict(channels=8, groups=2, dw_kernel_size=4), "dw_kernel_size: expected an odd size, got 4"),
        (dict(channels=8, groups=2, kernel_size=0), "kernel_size: expected an integer >= 1"),
        (
            dict(channels=8, groups=2, kernel_size=2, remove_center=True),
            "remove_center: needs a square odd kernel_size",
        ),
        (
            dict(channels=8, groups=2, padding=0, center_feature_scale=True),
            "center_feature_scale: .* padding 1",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=f"^DCNv4: {message}"):
        DCNv4(**options)
