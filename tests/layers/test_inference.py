"""Faster ways for inference: same outputs, chosen only where nobody is in the way, and a prepared copy."""

import copy
import pickle
from unittest import mock

import pytest
import torch
from torch import nn

from allsight import ops
from allsight.layers import MLP, DCNv3, DCNv4, dcnv3, inference, prepare_for_inference
from allsight.layers.inference import PackedLinear, fuses

COMPILED = pytest.mark.skipif(not ops.is_compiled(), reason="no compiled kernels")
LAYERS = {
    "plain": dict(),
    "wide kernel": dict(dw_kernel_size=5, center_feature_scale=True, act="silu"),
    "batch norm": dict(norm="batch", act="relu"),
    "stride": dict(stride=2),
    "no center": dict(remove_center=True),
}


def layer_of(dtype=torch.float32, **changes):
    torch.manual_seed(0)
    layer = DCNv3(16, 2, **changes).to(dtype).eval()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer


def map_of(dtype=torch.float32):
    return torch.randn(2, 9, 13, 16, generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_with_and_without_gradients_and_prepared_give_the_same(name, dtype, limit):
    layer, x = layer_of(dtype, **LAYERS[name]), map_of(dtype)
    expected = layer(x).detach()
    with torch.no_grad():
        plain = layer(x)
    for output in (
        plain,
        prepare_for_inference(layer)(x),
        prepare_for_inference(prepare_for_inference(layer))(x),
    ):
        assert float((output - expected).abs().max() / expected.abs().max()) < limit


@pytest.mark.parametrize("changes", [dict(), dict(dw_kernel_size=5, stride=2), dict(remove_center=True)])
def test_a_layer_of_the_fourth_kind_has_its_rows_in_order(changes):
    torch.manual_seed(0)
    layer, x = DCNv4(16, 2, **changes).eval(), map_of()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    prepared = prepare_for_inference(layer)
    assert prepared.offset_and_mask.out_features == 3 * 2 * layer.geometry.points
    for output in (prepared(x), prepare_for_inference(prepared)(x)):
        torch.testing.assert_close(output, layer(x).detach(), rtol=1e-5, atol=1e-5)


@COMPILED
def test_steps_are_one_operator_only_where_nobody_is_in_the_way():
    layer, x = layer_of(), map_of()
    with mock.patch.object(dcnv3, "depthwise_norm_act", wraps=dcnv3.depthwise_norm_act) as operator:
        layer(x)  # its parameters take gradients
        with torch.no_grad(), ops.use_backend("reference"):
            layer(x)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            layer(x)
        with torch.no_grad():
            handle = layer.dw_norm.register_forward_hook(lambda *call: None)
            layer(x)
            handle.remove()
            torch.export.export(layer, (x,))
        assert operator.call_count == 0
        with torch.no_grad():
            layer(x)
        with torch.inference_mode():
            layer(x)
        layer.requires_grad_(False)(x)
        assert operator.call_count == 3
        layer(x.requires_grad_())
        assert operator.call_count == 3
    assert not fuses(x.to("meta"))


def test_offsets_and_weights_are_parts_of_one_product():
    prepared = prepare_for_inference(layer_of())
    offset, mask = prepared._offset_and_mask(map_of())
    assert offset.untyped_storage().data_ptr() == mask.untyped_storage().data_ptr()
    assert offset.stride(2) == mask.stride(2) == 2 * 27


def test_the_model_itself_is_left_as_it_is():
    model = nn.Sequential(layer_of(), nn.Dropout(0.5), nn.Linear(16, 3)).train()
    before = copy.deepcopy(model.state_dict())
    prepared = prepare_for_inference(model)
    assert isinstance(prepared, nn.Sequential) and not prepared.training
    assert model.training and model[1].training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in prepared.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert float(prepared(map_of()).abs().max()) > 0
    model(map_of()).sum().backward()


def test_training_a_prepared_model_is_refused_in_words():
    prepared = prepare_for_inference(nn.Sequential(layer_of()))
    with pytest.raises(RuntimeError, match="was prepared for inference and cannot be trained"):
        prepared.train()
    prepared.eval()


def test_a_prepared_model_can_be_copied_and_stored():
    prepared, x = prepare_for_inference(layer_of()), map_of()
    for other in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared))):
        assert torch.equal(other(x), prepared(x))
    again = prepare_for_inference(layer_of().requires_grad_(False))
    again.load_state_dict(prepared.state_dict())
    assert torch.equal(again(x), prepared(x))


def packs():
    """How often oneDNN's product is taken."""
    product = torch.ops.mkldnn._linear_pointwise
    return mock.patch.object(torch.ops.mkldnn, "_linear_pointwise", wraps=product)


@COMPILED
@pytest.mark.parametrize("act", ["gelu", "silu", "relu"])
@pytest.mark.parametrize("shape", [(1, 16), (5, 16), (2, 7, 3, 16), (0, 16), (16,)])
def test_a_packed_layer_gives_what_linear_and_activation_give(act, shape):
    torch.manual_seed(0)
    model, x = MLP(16, 40, act=act).eval(), torch.randn(shape)
    prepared = prepare_for_inference(model)
    with packs() as product:
        torch.testing.assert_close(prepared(x), model(x).detach(), atol=1e-6, rtol=1e-6)
    assert product.call_count == (2 if len(shape) > 1 and shape[0] else 0)
    strided = torch.randn(6, 32)[:, ::2]
    torch.testing.assert_close(prepared(strided), model(strided).detach(), atol=1e-6, rtol=1e-6)


@COMPILED
def test_a_packed_layer_follows_its_weight():
    layer, x = prepare_for_inference(nn.Linear(8, 4)), torch.randn(3, 8)
    assert isinstance(layer, PackedLinear)
    before = layer(x)
    layer.load_state_dict({"weight": 2 * layer.weight, "bias": 2 * layer.bias})
    torch.testing.assert_close(layer(x), 2 * before)
    layer.weight = nn.Parameter(-layer.weight, requires_grad=False)
    torch.testing.assert_close(layer(x) - layer.bias, layer.bias - 2 * before)
    double = copy.deepcopy(layer).double()(x.double())
    torch.testing.assert_close(layer(x).double(), double, atol=1e-6, rtol=1e-6)
    with torch.inference_mode():
        layer.weight.mul_(3)
        torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
        inside = prepare_for_inference(nn.Linear(8, 4))
        inside(x)
        inside.weight.mul_(3)
        first = inside(x)
        torch.testing.assert_close(first, nn.functional.linear(x, inside.weight, inside.bias))
    assert torch.equal(inside(x), first)


@COMPILED
def test_a_new_weight_in_the_place_of_the_old_one_is_noticed():
    """Memory that was freed is soon given out again, at the same address."""
    layer, x = prepare_for_inference(nn.Linear(64, 64)), torch.randn(3, 64)
    for _ in range(20):
        layer.weight = None
        layer.weight = nn.Parameter(torch.randn(64, 64), requires_grad=False)
        expected = nn.functional.linear(x, layer.weight, layer.bias)
        torch.testing.assert_close(layer(x), expected)


@COMPILED
def test_packing_does_not_depend_on_the_default_type_and_device():
    inference._is_usable.cache_clear()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert inference._is_usable()
    finally:
        torch.set_default_dtype(before)


@COMPILED
def test_a_layer_that_two_share_is_packed_once_and_hooks_and_gradients_take_the_plain_way():
    shared = nn.Linear(8, 8)
    prepared = prepare_for_inference(nn.Sequential(shared, nn.ReLU(), shared))
    assert prepared[0] is prepared[2]
    x = torch.randn(2, 8)
    with packs() as product:
        expected = prepared(x)
        assert product.call_count == 2
        prepared(x.requires_grad_()).sum().backward()
        assert x.grad is not None and product.call_count == 2
        x = x.detach()
        prepared[0].register_forward_hook(lambda *_: None)
        torch.testing.assert_close(prepared(x), expected)
        assert product.call_count == 2


@COMPILED
def test_files_hold_a_weight_once():
    layer, x = prepare_for_inference(nn.Linear(64, 64)), torch.randn(2, 64)
    before = len(pickle.dumps(layer))
    expected = layer(x)
    assert len(pickle.dumps(layer)) == before
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)


def test_without_the_product_packed_layers_are_plain_ones(monkeypatch):
    layer, x = nn.Linear(8, 4), torch.randn(3, 8)
    monkeypatch.setattr("allsight.layers.inference._is_usable", lambda: False)
    assert torch.equal(prepare_for_inference(layer)(x), layer(x))
