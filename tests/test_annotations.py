"""The shapes in annotations are checked while the tests run."""

import jaxtyping
import pytest
import torch

from allsight.ops import dcnv3


def test_shape_that_contradicts_an_annotation_is_refused(pytestconfig):
    if not pytestconfig.getoption("jaxtyping_packages"):
        pytest.skip("switched off by --jaxtyping-packages=")
    flat, offset, mask = torch.zeros(1, 16, 4), torch.zeros(1, 4, 4, 18), torch.zeros(1, 4, 4, 9)
    with pytest.raises(jaxtyping.TypeCheckError, match="value"):
        dcnv3(flat, offset, mask, groups=1)
