"""The deformable layers in whole graphs: compiled, and exported for other sizes."""

import subprocess
import sys

import pytest

SCRIPT = """
import torch
from allsight.layers import DCNv4, DeformConv2d, MSDeformAttn

class Pyramid(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = MSDeformAttn(8, levels=2, heads=2)

    def forward(self, fine, coarse, query, points):
        shapes = tuple((maps.shape[1], maps.shape[2]) for maps in (fine, coarse))
        value = torch.cat([maps.flatten(1, 2) for maps in (fine, coarse)], 1)
        return self.attention(query, points, value, shapes)

def last(b, h, w):
    return (torch.randn(b, h, w, 8),)

def first(b, h, w):
    return (torch.randn(b, 8, h, w),)

def pyramid(b, h, w):
    return torch.randn(b, h, w, 8), torch.randn(b, h, w + 1, 8), torch.randn(b, 5, 8), torch.rand(b, 5, 2, 2)

b, h, w = (torch.export.Dim(name, min=2, max=64) for name in "bhw")
for layer, inputs, sizes in (
    (DCNv4(8, 2, dw_kernel_size=3), last, ({0: b, 1: h, 2: w},)),
    (DeformConv2d(8, 4, 3, padding=1), first, ({0: b, 2: h, 3: w},)),
    (Pyramid(), pyramid, ({0: b, 1: h, 2: w}, {0: b, 1: h, 2: w + 1}, {0: b}, {0: b})),
):
    for parameter in layer.requires_grad_(False).parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    program = torch.export.export(layer, inputs(2, 5, 7), dynamic_shapes=sizes).module()
    compiled = torch.compile(layer, backend="eager", fullgraph=True, dynamic=True)
    for others in (inputs(3, 9, 4), inputs(2, 5, 7)):
        torch.testing.assert_close(program(*others), layer(*others))
        torch.testing.assert_close(compiled(*others), layer(*others))
"""


@pytest.mark.slow
def test_layers_can_be_compiled_whole_and_exported_for_any_batch_and_size():
    # In a process of its own: the shape checks of the test run do not understand symbolic sizes.
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
