"""Recomputation keeps what is dear and runs the rest again; results are those of a plain call."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from allsight.layers import DCNv3, is_recomputing, recompute


class Ran(TorchDispatchMode):
    """Names of the operators that ran, and of those that ran for the second time."""

    def __init__(self):
        super().__init__()
        self.first, self.again = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        (self.again if is_recomputing() else self.first).append(func.name().partition(".")[0])
        return func(*args, **(kwargs or {}))


class Block(nn.Module):
    """A norm, a deformable operator, a depthwise convolution, products, an activation."""

    def __init__(self):
        super().__init__()
        self.norm, self.dcn = nn.LayerNorm(8), DCNv3(8, 2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.dense = nn.Conv2d(8, 8, 1)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        x = x + self.dcn(self.norm(x))
        x = self.dense(self.depthwise(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return x + self.fc2(torch.tanh(self.fc1(x)))


def _run(remat):
    torch.manual_seed(0)
    block, x = Block(), torch.randn(2, 5, 6, 8, requires_grad=True)
    with Ran() as ran:
        y = recompute(block, x, remat)
        y.square().sum().backward()
    return ran, [y, x.grad, *(p.grad for p in block.parameters())]


@pytest.mark.parametrize("remat", ["block", "selective"])
def test_results_are_those_of_a_plain_call(remat):
    for other, plain in zip(_run(remat)[1], _run("none")[1], strict=True):
        assert torch.equal(other, plain)


def test_selective_repeats_what_is_cheap_and_keeps_products_and_deformable_operators():
    plain, block, selective = (_run(remat)[0] for remat in ("none", "block", "selective"))
    dear = {"aten::addmm", "allsight::dcnv3"}
    assert not plain.again
    assert dear <= set(block.again)
    assert not dear & set(selective.again)
    # The depthwise convolutions are run again: the block's own and that within the deformable layer.
    count = [ran.again.count("aten::convolution") for ran in (block, selective)]
    assert count == [3, 2]
    assert {"aten::native_layer_norm", "aten::tanh"} <= set(selective.again)


def test_selective_keeps_less_than_everything_and_more_than_a_block():
    held = []
    for remat in ("block", "selective", "none"):
        torch.manual_seed(0)
        block, x = Block(), torch.randn(2, 32, 32, 8, requires_grad=True)
        live = _Live()
        with live:
            y = recompute(block, x, remat)
        held.append(live.bytes())
        del y
    assert held[0] < 0.6 * held[1] < 0.6 * 0.9 * held[2]


class _Live(TorchDispatchMode):
    """Memory of what is still there of all that was made."""

    def __init__(self):
        super().__init__()
        self.made = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        import weakref

        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.made[storage._cdata] = (weakref.ref(storage), storage.nbytes())
        return out

    def bytes(self):
        return sum(size for ref, size in self.made.values() if ref() is not None)
