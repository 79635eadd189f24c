"""The DCNv3 layer against official numbers, its start, its strides and its precision."""

import pytest
import torch
import torch.nn.functional as F

from allsight.layers import DCNv3, prepare_for_inference

OFFICIAL = {
    "dw_conv.0.": "dw_conv.",
    "dw_conv.1.0.": "dw_norm.",
    "dw_conv.1.1.": "dw_norm.",
    "center_feature_scale_proj_": "center_feature_scale.",
}


def our_name(official):
    for theirs, ours in OFFICIAL.items():
        if official.startswith(theirs):
            return official.replace(theirs, ours)
    return official


def layer_of(constructor):
    names = {"group": "groups", "pad": "padding", "act_layer": "act", "norm_layer": "norm"}
    values = {"LN": "layer", "BN": "batch", "GELU": "gelu", "SiLU": "silu", "ReLU": "relu"}
    return DCNv3(
        **{names.get(k, k): values.get(v, v) if isinstance(v, str) else v for k, v in constructor.items()}
    )


def relative(actual, expected):
    return float((actual - expected).detach().norm() / expected.norm())


def moving(layer, seed=0):
    """Random weights everywhere, so that offsets and gates are not at their start."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter) * 0.3
    return layer


@pytest.mark.parametrize(("dtype", "forward", "gradient"), [("f64", 1e-12, 1e-11), ("f32", 1e-5, 1e-4)])
def test_layer_matches_the_official_module(parity, dtype, forward, gradient):
    """dcnv3/module: output and every gradient."""
    about, tensors = parity("dcnv3/module")
    to = torch.float64 if dtype == "f64" else torch.float32
    for name, case in about["cases"].items():
        layer = layer_of(case["constructor"]).to(to).train(case.get("mode") == "train")
        prefix = f"{name}.state_dict."
        state = {our_name(k.removeprefix(prefix)): v for k, v in tensors.items() if k.startswith(prefix)}
        layer.load_state_dict(state)
        x = tensors[f"{name}.input"].to(to).requires_grad_()
        output = layer(x)
        assert relative(output, tensors[f"{name}.{dtype}.output"].to(to)) < forward, name
        (output * tensors[f"{name}.loss_weight"].to(to)).sum().backward()
        assert relative(x.grad, tensors[f"{name}.f64.grad_input"].to(to)) < gradient, name
        for key, parameter in layer.named_parameters():
            official = next(k for k in case["keys"] if our_name(k) == key)
            expected = tensors[f"{name}.f64.grad.{official}"].to(to)
            assert relative(parameter.grad, expected) < gradient, (name, key)


def test_starts_as_the_mean_of_the_window_between_two_linear_layers():
    layer = DCNv3(8, 2).double()
    x = torch.randn(1, 5, 6, 8, dtype=torch.float64)
    window = F.avg_pool2d(layer.input_proj(x).permute(0, 3, 1, 2), 3, 1, 1, count_include_pad=True)
    torch.testing.assert_close(layer(x), layer.output_proj(window.permute(0, 2, 3, 1)))


def test_center_feature_scale_starts_half_open():
    layer = DCNv3(8, 2, center_feature_scale=True).double()
    x = torch.randn(1, 5, 6, 8, dtype=torch.float64)
    value = layer.input_proj(x)
    window = F.avg_pool2d(value.permute(0, 3, 1, 2), 3, 1, 1, count_include_pad=True).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), layer.output_proj((window + value) / 2))


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(dw_kernel_size=5),
        dict(kernel_size=5, padding=2, dw_kernel_size=3),
        dict(dilation=2, padding=2),
        dict(center_feature_scale=True),
        dict(padding=0),
    ],
)
@pytest.mark.parametrize("size", [(8, 10), (7, 9)])
def test_stride_takes_every_second_pixel_of_the_dense_result(options, size):
    dense = moving(DCNv3(6, 3, **options).double())
    strided = DCNv3(6, 3, stride=2, **options).double()
    strided.load_state_dict(dense.state_dict())
    x = torch.randn(2, *size, 6, dtype=torch.float64)
    torch.testing.assert_close(strided(x), dense(x)[:, ::2, ::2])


@pytest.mark.parametrize(
    "options",
    [
        dict(kernel_size=2, padding=1, dw_kernel_size=3),
        dict(kernel_size=4, padding=1, stride=2, dw_kernel_size=3),
        dict(kernel_size=5, padding=0, dw_kernel_size=3),
        dict(kernel_size=3, padding=3, dilation=2, dw_kernel_size=1, stride=3),
    ],
)
def test_output_has_the_size_of_an_ordinary_convolution(options):
    x = torch.randn(1, 11, 8, 4)
    keys = ("stride", "padding", "dilation")
    plain = torch.nn.Conv2d(4, 4, options["kernel_size"], **{k: v for k, v in options.items() if k in keys})
    expected = plain(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).shape
    assert moving(DCNv3(4, 2, **options))(x).shape == expected


def test_offsets_stay_float32_under_autocast():
    layer = moving(DCNv3(8, 2))
    x = torch.randn(1, 5, 6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        context = layer._context(x)
        assert layer.mask(context).dtype == torch.bfloat16
        assert layer._offset_and_mask(context)[0].dtype == torch.float32
        output = layer(x)
    torch.testing.assert_close(output.float(), layer(x), rtol=0.1, atol=0.1)


def test_gradients_reach_every_parameter():
    layer = moving(DCNv3(8, 2, center_feature_scale=True, act="silu"))
    layer(torch.randn(2, 5, 6, 8)).square().sum().backward()
    assert [n for n, p in layer.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(channels=8, groups=3), "groups: expected a divisor of channels=8, got 3"),
        (dict(channels=8, groups=2, dw_kernel_size=4), "dw_kernel_size: expected an odd size, got 4"),
        (dict(channels=8, groups=2, kernel_size=2), "dw_kernel_size: expected an odd size, got 2"),
        (
            dict(channels=8, groups=2, kernel_size=2, remove_center=True),
            "remove_center: needs a square odd kernel_size",
        ),
        (
            dict(channels=8, groups=2, padding=0, center_feature_scale=True),
            "center_feature_scale: .* padding 1",
        ),
        (dict(channels=8, groups=2, act="tanh"), "activation: expected one of gelu, silu, relu, got 'tanh'"),
        (
            dict(channels=8, groups=2, norm="group"),
            "norm: expected 'layer', 'batch' or 'sync_batch', got 'group'",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named(options, message, request):
    if request.config.getoption("jaxtyping_packages", None) and {"act", "norm"} & set(options):
        pytest.skip("the type hook refuses wrong names before the layer does")
    with pytest.raises(ValueError, match=message):
        DCNv3(**options)


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(kernel_size=5, padding=2, offset_scale=2.0),
        dict(padding=2, dilation=2, stride=2),
        dict(padding=3, remove_center=True, softmax=False),
    ],
)
def test_one_projection_for_each_point_is_the_shared_one_where_all_are_equal(options):
    shared = moving(DCNv3(6, 3, **options).double())
    apart = DCNv3(6, 3, **options, shared_weights=False).double()
    state = shared.state_dict()
    points = apart.output_proj.in_features // 6
    state["output_proj.weight"] = state["output_proj.weight"].repeat(1, points)
    apart.load_state_dict(state)
    x = torch.randn(2, 7, 8, 6, dtype=torch.float64)
    torch.testing.assert_close(apart(x), shared(x))
    torch.testing.assert_close(prepare_for_inference(apart)(x), shared(x))


def test_one_projection_for_each_point_is_a_convolution_at_zero_offsets():
    layer = DCNv3(4, 2, shared_weights=False).double()
    torch.nn.init.eye_(layer.input_proj.weight)
    x = torch.randn(1, 5, 6, 4, dtype=torch.float64)
    # Points go down the columns of the window first; each starts with a weight of 1/9.
    kernel = layer.output_proj.weight.view(4, 3, 3, 4).permute(0, 3, 2, 1) / 9
    expected = F.conv2d(x.permute(0, 3, 1, 2), kernel, padding=1).permute(0, 2, 3, 1)
    torch.testing.assert_close(layer(x), expected)


def test_without_softmax_weights_are_what_the_linear_layer_says():
    layer = DCNv3(4, 1, softmax=False).double()
    x = torch.randn(1, 5, 6, 4, dtype=torch.float64)
    assert not layer(x).any()
    torch.nn.init.constant_(layer.mask.bias, 1.0)
    window = 9 * F.avg_pool2d(layer.input_proj(x).permute(0, 3, 1, 2), 3, 1, 1, count_include_pad=True)
    torch.testing.assert_close(layer(x), layer.output_proj(window.permute(0, 2, 3, 1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(center_feature_scale=True), "shared_weights: False does not go with center_feature_scale"),
        (
            dict(padding=0),
            "shared_weights: False needs an odd kernel_size and padding of at least 1, got 3 and 0",
        ),
    ],
)
def test_one_projection_for_each_point_has_its_limits(options, message):
    with pytest.raises(ValueError, match=message):
        DCNv3(4, 2, shared_weights=False, **options)
