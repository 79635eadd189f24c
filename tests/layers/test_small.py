"""Norms, MLP and stochastic depth."""

import pytest
import torch
from torch import nn

from allsight.layers import MLP, AttentionPool, BatchNormLast, ConvLast, DropPath, make_norm, recompute
from allsight.ops import current_backend, use_backend


def test_layer_norm_divides_by_a_deviation_with_eps_1e_6():
    x = torch.tensor([[[[0.0, 2e-3]]]], dtype=torch.float64)
    expected = 1e-3 / (1e-6 + 1e-6) ** 0.5
    output = make_norm("layer", 2).double()(x)
    torch.testing.assert_close(output, torch.tensor([[[[-expected, expected]]]], dtype=torch.float64))


def test_batch_norm_last_equals_batch_norm_of_the_permuted_map():
    last, first = BatchNormLast(3), nn.BatchNorm2d(3)
    x = torch.randn(2, 4, 5, 3)
    torch.testing.assert_close(last(x), first(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
    torch.testing.assert_close(last.running_var, first.running_var)
    assert last.state_dict().keys() == first.state_dict().keys()


def test_conv_last_keeps_channels_last_memory():
    x = torch.randn(2, 6, 5, 3)
    conv = ConvLast(3, 4, 3, 2, 1)
    output = conv(x)
    expected = nn.functional.conv2d(x.permute(0, 3, 1, 2), conv.weight, conv.bias, 2, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(output, expected)
    assert output.is_contiguous()


def test_mlp_drops_after_both_linear_layers():
    mlp = MLP(4, 8, drop=0.5)
    x = torch.ones(1, 4)
    torch.testing.assert_close(mlp.eval()(x), mlp.fc2(nn.functional.gelu(mlp.fc1(x))))
    torch.manual_seed(0)
    zeros = (mlp.train()(x.expand(4000, 4)) == 0).double().mean()
    assert zeros == pytest.approx(0.5, abs=0.05)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    output = DropPath(0.25).train()(torch.ones(4000, 2, 3))
    assert torch.equal(output, output[:, :1, :1].expand_as(output))
    assert output.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert output.mean().item() == pytest.approx(1.0, abs=0.05)


def test_drop_path_does_nothing_in_evaluation():
    x = torch.randn(3, 2)
    assert DropPath(0.9).eval()(x) is x


@pytest.mark.parametrize("probability", [-0.1, 1.0])
def test_drop_path_refuses_impossible_probabilities(probability):
    with pytest.raises(ValueError, match="probability: expected 0 <= p < 1"):
        DropPath(probability)


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_pool_lets_the_mean_token_ask(bias, scale):
    pool = AttentionPool(8, 5, heads=2, bias=bias, scale=scale).double()
    tokens = torch.randn(3, 7, 8, dtype=torch.float64)
    query = pool.q(pool.norm_q(tokens.mean(1)))
    keys, values = pool.k(pool.norm_k(tokens)), pool.v(pool.norm_v(tokens))
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        logits = torch.einsum("bc,btc->bt", query[:, h], keys[..., h]) * (scale or 4**-0.5)
        heads.append(torch.einsum("bt,btc->bc", logits.softmax(-1), values[..., h]))
    torch.testing.assert_close(pool(tokens), pool.proj(torch.cat(heads, -1)))
    assert (pool.k.bias is not None) == bias


class Spy(nn.Module):
    """Notes the backend of every pass."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        self.seen.append(current_backend())
        return self.linear(x).relu()


def test_the_second_pass_uses_the_backend_of_the_first():
    spy = Spy()
    with use_backend("reference"):
        output = recompute(spy, torch.randn(3, 2))
    output.sum().backward()
    assert spy.seen == ["reference", "reference"]


def test_without_gradients_nothing_is_recomputed():
    spy = Spy()
    with torch.no_grad():
        recompute(spy, torch.randn(3, 2))
    assert len(spy.seen) == 1
