"""Attention between cells, cameras and time: official numbers, true batches, what must not matter."""

import pytest
import torch

from allsight.layers import MSDeformAttn, SpatialCrossAttention, TemporalSelfAttention, find_seen_cells
from allsight.ops import ms_deform_attn

HW = (10, 12)
PRECISIONS = [(torch.float64, 1e-9, 1e-8), (torch.float32, 1e-5, 1e-4)]


def relative(actual, expected):
    return float((actual - expected).detach().norm() / expected.norm())


def load(layer, tensors, name, strip=""):
    """Official weights; the inner module of the spatial attention has no level of its own here."""
    prefix = f"{name}.state_dict."
    weights = {k[len(prefix) :]: v.float() for k, v in tensors.items() if k.startswith(prefix)}
    layer.load_state_dict({key.removeprefix(strip): value for key, value in weights.items()})


def check_gradients(layer, tensors, name, most, strip=""):
    for key, parameter in layer.named_parameters():
        official = next(
            (k for k in (f"{name}.f64.grad.{key}", f"{name}.f64.grad.{strip}{key}") if k in tensors), None
        )
        if official is not None:
            assert relative(parameter.grad, tensors[official].to(parameter.dtype)) < most, key


def camera_first(tensor):
    """Official [n, b, ...] to [b, n, ...]."""
    return tensor.transpose(0, 1)


def spatial(tensors, name, weights, dtype):
    layer = SpatialCrossAttention(32, levels=2)
    load(layer, tensors, weights, strip="deformable_attention.")
    layer = layer.to(dtype)
    query = tensors[f"{name}.query"].to(dtype).requires_grad_()
    value = tensors[f"{name}.value"].to(dtype).requires_grad_()  # [n, s, b, c]
    shapes = tuple(tuple(shape) for shape in tensors[f"{name}.spatial_shapes"].tolist())
    places = camera_first(tensors[f"{name}.reference_points_cam"]).to(dtype)
    hits = camera_first(tensors[f"{name}.bev_mask"])
    output = layer(query, value.permute(2, 0, 1, 3).flatten(0, 1), shapes, find_seen_cells(places, hits))
    return layer, query, value, output + query


@pytest.mark.parametrize(("dtype", "forward", "gradient"), PRECISIONS)
@pytest.mark.parametrize("name", ["spatial_cross_attention", "spatial_cross_attention_batch2_same_cameras"])
def test_spatial_attention_is_the_official_one(parity, name, dtype, forward, gradient):
    about, tensors = parity("bevformer/attention")
    prefix = about["cases"][name]["weights_prefix"].partition(".state_dict")[0]
    layer, query, value, output = spatial(tensors, name, prefix, dtype)
    assert relative(output, tensors[f"{name}.f64.output"].to(dtype)) < forward
    (output * tensors[f"{name}.loss_weight"].to(dtype)).sum().backward()
    assert relative(query.grad, tensors[f"{name}.f64.grad_query"].to(dtype)) < gradient
    assert relative(value.grad, tensors[f"{name}.f64.grad_value"].to(dtype)) < gradient
    check_gradients(layer, tensors, name, gradient, strip="deformable_attention.")


def test_rows_with_other_cameras_are_as_if_each_were_alone(parity):
    about, tensors = parity("bevformer/attention")
    name = "quirk_spatial_cross_attention_batch2_other_cameras"
    prefix = about["cases"][name]["weights_prefix"].partition(".state_dict")[0]
    *_, output = spatial(tensors, name, prefix, torch.float64)
    assert relative(output, tensors[f"{name}.f64.output_of_each_sample_alone"]) < 1e-9


def temporal(tensors, name, weights, dtype):
    layer = TemporalSelfAttention(32)
    load(layer, tensors, weights)
    layer = layer.to(dtype)
    query, position = (tensors[f"{name}.{key}"].to(dtype).requires_grad_() for key in ("query", "query_pos"))
    rows = query.shape[0]
    places = tensors[f"{name}.reference_points"].to(dtype)[:, :, 0].unflatten(0, (rows, 2)).transpose(1, 2)
    past = present = value = None
    if f"{name}.value" in tensors:
        value = tensors[f"{name}.value"].to(dtype).requires_grad_()
        past, present = value.unflatten(0, (rows, 2)).unbind(1)
    output = layer(query, position, places, HW, past, present=present)
    return layer, query, position, value, output + query


@pytest.mark.parametrize(("dtype", "forward", "gradient"), PRECISIONS)
@pytest.mark.parametrize("name", ["temporal_self_attention_history", "temporal_self_attention_no_history"])
def test_temporal_attention_is_the_official_one(parity, name, dtype, forward, gradient):
    about, tensors = parity("bevformer/attention")
    prefix = about["cases"][name]["weights_prefix"].partition(".state_dict")[0]
    layer, query, position, value, output = temporal(tensors, name, prefix, dtype)
    assert relative(output, tensors[f"{name}.f64.output"].to(dtype)) < forward
    (output * tensors[f"{name}.loss_weight"].to(dtype)).sum().backward()
    assert relative(query.grad, tensors[f"{name}.f64.grad_query"].to(dtype)) < gradient
    assert relative(position.grad, tensors[f"{name}.f64.grad_query_pos"].to(dtype)) < gradient
    if value is not None:
        assert relative(value.grad, tensors[f"{name}.f64.grad_value"].to(dtype)) < gradient
    check_gradients(layer, tensors, name, gradient)


@pytest.mark.parametrize("kind", ["history", "no_history"])
def test_each_row_looks_at_its_own_past(parity, kind):
    about, tensors = parity("bevformer/attention")
    name = f"quirk_temporal_self_attention_{kind}_batch2"
    prefix = about["cases"][name]["weights_prefix"].partition(".state_dict")[0]
    *_, output = temporal(tensors, name, prefix, torch.float64)
    assert relative(output, tensors[f"{name}.f64.output_of_each_sample_alone"]) < 1e-9


@pytest.mark.parametrize(("dtype", "forward", "gradient"), PRECISIONS)
def test_decoder_attention_is_the_official_one(parity, dtype, forward, gradient):
    _, tensors = parity("bevformer/attention")
    name = "decoder_deformable_attention"
    layer = MSDeformAttn(32, levels=1)
    load(layer, tensors, name)
    layer = layer.to(dtype)
    query, position, value = (
        tensors[f"{name}.{key}"].to(dtype).requires_grad_() for key in ("query", "query_pos", "value")
    )
    output = layer(
        (query + position).transpose(0, 1),
        tensors[f"{name}.reference_points"].to(dtype),
        value.transpose(0, 1),
        tensors[f"{name}.spatial_shapes"],
    )
    output = output.transpose(0, 1) + query
    assert relative(output, tensors[f"{name}.f64.output"].to(dtype)) < forward
    (output * tensors[f"{name}.loss_weight"].to(dtype)).sum().backward()
    for key, tensor in (("query", query), ("query_pos", position), ("value", value)):
        assert relative(tensor.grad, tensors[f"{name}.f64.grad_{key}"].to(dtype)) < gradient, key
    check_gradients(layer, tensors, name, gradient)


def scene(seed=0, rows=2, cameras=3, cells=20, dtype=torch.float64):
    """A layer with random weights and random geometry in which most cells are seen by few cameras."""
    generator = torch.Generator().manual_seed(seed)
    layer = SpatialCrossAttention(8, levels=2, heads=2, points=4)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4
    shapes = ((5, 6), (3, 3))
    pixels = sum(height * width for height, width in shapes)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype)  # noqa: E731
    places = draw(rows, cameras, cells, 2, 2) + 0.5
    hits = ((places > 0) & (places < 1)).all(-1)
    hits[:, :, 0] = False
    return layer.to(dtype), draw(rows, cells, 8), draw(rows * cameras, pixels, 8), shapes, places, hits


def test_gathered_attention_equals_masking_all_cells_of_all_cameras():
    layer, query, value, shapes, places, hits = scene()
    rows, cameras, cells = hits.shape[:3]
    expected = torch.zeros_like(query)
    for row in range(rows):
        for camera in range(cameras):
            offsets = layer.sampling_offsets(query[row]).view(1, cells, 2, 2, 2, 2, 2)
            sizes = torch.tensor([[[6, 5]], [[3, 3]]], dtype=torch.float64)[:, :, None]
            locations = places[row, camera][None, :, None, None, None] + offsets / sizes
            values = layer.value_proj(value[row * cameras + camera])[None].unflatten(-1, (2, 4))
            weights = layer.attention_weights(query[row]).view(1, cells, 2, 2, 4)
            mixed = ms_deform_attn(values, shapes, locations.flatten(4, 5), weights, softmax=True)
            expected[row] += mixed[0] * hits[row, camera].any(-1)[:, None]
    expected = expected / hits.any(-1).sum(1).clamp_min(1)[..., None]
    actual = layer(query, value, shapes, find_seen_cells(places, hits))
    assert torch.allclose(actual, layer.output_proj(expected), atol=1e-12)
    # Room for more cells than needed changes nothing.
    roomy = layer(query, value, shapes, find_seen_cells(places, hits, most=cells))
    assert torch.allclose(actual, roomy, atol=1e-14)


def test_a_cell_that_nobody_sees_gets_the_bias():
    layer, query, value, shapes, places, hits = scene()
    output = layer(query, value, shapes, find_seen_cells(places, hits))
    assert torch.equal(output[:, 0], layer.output_proj.bias.expand(2, -1))
    output = layer(query, value, shapes, find_seen_cells(places, torch.zeros_like(hits)))
    assert torch.equal(output, layer.output_proj.bias.expand(2, 20, -1))


def test_order_of_cameras_does_not_matter():
    layer, query, value, shapes, places, hits = scene()
    order = torch.tensor([2, 0, 1])
    shuffled = value.unflatten(0, (2, 3))[:, order].flatten(0, 1)
    a = layer(query, value, shapes, find_seen_cells(places, hits))
    b = layer(query, shuffled, shapes, find_seen_cells(places[:, order], hits[:, order]))
    assert torch.allclose(a, b, atol=1e-13)


def test_identical_past_and_present_are_attention_to_one_map():
    """With equal weights for both branches the mean of two equal maps is the map."""
    torch.manual_seed(0)
    layer = TemporalSelfAttention(8, heads=2, points=3).double()
    single = MSDeformAttn(8, levels=1, heads=2, points=3).double()
    with torch.no_grad():
        for two, one in (
            (layer.sampling_offsets, single.sampling_offsets),
            (layer.attention_weights, single.attention_weights),
        ):
            one.weight.normal_()
            size = one.weight.unflatten(0, (2, 1, -1))
            # The half of the input that is the query decides; the other half counts nothing.
            both = size.expand(-1, 2, -1, -1).flatten(0, 2)
            two.weight.copy_(torch.cat([torch.zeros_like(both), both], dim=-1))
            two.bias.copy_(one.bias.unflatten(0, (2, 1, -1)).expand(-1, 2, -1).flatten())
    for name in ("value_proj", "output_proj"):
        getattr(layer, name).load_state_dict(getattr(single, name).state_dict())
    query = torch.randn(2, 12, 8, dtype=torch.float64)
    places = torch.rand(2, 12, 1, 2, dtype=torch.float64)
    expected = single(query, places, query, ((3, 4),))
    zero = torch.zeros_like(query)
    actual = layer(query, zero, places.expand(-1, -1, 2, -1), (3, 4), query)
    assert torch.allclose(actual, expected, atol=1e-13)
    assert torch.allclose(layer(query, zero, places.expand(-1, -1, 2, -1), (3, 4)), expected, atol=1e-13)


def test_rows_without_a_past_do_not_feel_what_lies_there():
    torch.manual_seed(0)
    layer = TemporalSelfAttention(8, heads=2)
    query, position = torch.randn(2, 12, 8), torch.randn(2, 12, 8)
    past = torch.full((2, 12, 8), float("nan"))
    past[0] = 1.0
    places = torch.rand(1, 12, 2, 2)
    has_past = torch.tensor([True, False])
    output = layer(query, position, places, (3, 4), past, has_past=has_past)
    alone = layer(query[1:], position[1:], places, (3, 4))
    assert torch.allclose(output[1:], alone, atol=1e-6)
    assert torch.allclose(output[:1], layer(query[:1], position[:1], places, (3, 4), past[:1]), atol=1e-6)
    layer(query, position, places, (3, 4), past, has_past=has_past).sum().backward()
    assert bool(layer.value_proj.weight.grad.isfinite().all())
