"""`sampling_points` says where the operator reads: a map that holds its own coordinates gives them back."""

import pytest
import torch

from allsight.ops import dcnv3
from allsight.ops.dcnv3 import Geometry, sampling_points

PATTERNS = {
    "plain": dict(),
    "scaled": dict(offset_scale=2.0, dilation=2, padding=2),
    "stride": dict(stride=2, kernel_size=(3, 5), padding=(1, 2)),
    "no center": dict(remove_center=True),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_points_are_what_the_operator_reads(name):
    options = {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 1, "offset_scale": 1.0}
    options |= {"remove_center": False, **PATTERNS[name]}
    geometry = Geometry.of(2, *options.values())
    height, width = 41, 47
    rows, columns = geometry.output_size(height, width)
    offset = torch.randn(
        1, rows, columns, 2 * 2 * geometry.points, generator=torch.Generator().manual_seed(0)
    )
    points = sampling_points(offset, geometry)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    value = torch.stack([x, y, x, y], dim=-1)[None].float()  # both groups: x, y
    inside = ((points >= 0) & (points <= torch.tensor([width - 1, height - 1]))).all(-1, keepdim=True)
    assert inside.float().mean() > 0.5
    for point in range(geometry.points):
        mask = torch.zeros(1, rows, columns, 2, geometry.points)
        mask[..., point] = 1
        read = dcnv3(value, offset, mask.flatten(3), groups=2, backend="reference", **options)
        within = inside[..., point, :].expand(-1, -1, -1, -1, 2)
        expected = points[..., point, :]
        torch.testing.assert_close(read.unflatten(3, (2, 2))[within], expected[within], rtol=0, atol=1e-4)
