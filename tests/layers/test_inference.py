"""Faster ways for inference: same outputs, chosen only where nobody is in the way, and a prepared copy."""

import copy
import pickle
from unittest import mock

import pytest
import torch
from torch import nn

from allsight import ops
from allsight.layers import DCNv3, DCNv4, dcnv3, prepare_for_inference
from allsight.layers.inference import fuses

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
