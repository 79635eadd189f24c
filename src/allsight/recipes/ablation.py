"""What each part of InternImage's operator brings: `internimage_micro_tiny20` with one part changed.

All have its number of parameters within 1 % (width or MLP adjusted) and its work within 3 %, so that they
differ in how they spend both. `benchmarks/ablation.py` runs them all.
"""

from __future__ import annotations

from typing import Any

from allsight.config import replace
from allsight.engine.config import RunConfig
from allsight.recipes.internimage import internimage_micro_tiny20

_ONE_GROUP = (1, 1, 1, 1)


def internimage_micro_tiny20_conv() -> RunConfig:
    """Ablation of `internimage_micro_tiny20`: a plain 3x3 convolution in place of DCNv3, narrower.

    Command: allsight train internimage_micro_tiny20_conv
    Hardware: one CPU core; 10 to 15 minutes. Expected: a reference, no bar. Measured here: no.
    Source: ours; the paper (arXiv:2211.05778) compares operators by other networks.
    """
    return _changed("conv", operator="conv", groups=_ONE_GROUP, channels=28, mlp_ratio=3.75)


def internimage_micro_tiny20_dcnv4() -> RunConfig:
    """Ablation of `internimage_micro_tiny20`: DCNv4 as in FlashInternImage-T in place of DCNv3.

    Command: allsight train internimage_micro_tiny20_dcnv4
    Hardware: one CPU core; 10 to 15 minutes. Expected: a reference, no bar; T gains 0.1 points on ImageNet
    (official table). Measured here: no.
    Source: DCNv4, arXiv:2401.06197.
    """
    return _changed("dcnv4", operator="dcnv4", dw_kernel_size=None, output_bias=False)


def internimage_micro_tiny20_one_group() -> RunConfig:
    """Ablation of `internimage_micro_tiny20`: all channels share offsets and weights; wider MLPs.

    Command: allsight train internimage_micro_tiny20_one_group
    Hardware: one CPU core; 10 to 15 minutes. Expected: below the original, which loses 1.2 points in the
    paper (82.3 in place of 83.5 with T on ImageNet). Measured here: no.
    Source: InternImage, arXiv:2211.05778, section 4.4.
    """
    return _changed("one_group", groups=_ONE_GROUP, mlp_ratio=4.75)


def internimage_micro_tiny20_no_softmax() -> RunConfig:
    """Ablation of `internimage_micro_tiny20`: no softmax over the weights of the samples.

    Command: allsight train internimage_micro_tiny20_no_softmax
    Hardware: one CPU core; 10 to 15 minutes. Expected: no bar. The paper loses 17.8 points with T, and does
    not say what it put in the softmax's place; DCNv4 has none and loses nothing. Measured here: no.
    Source: InternImage, arXiv:2211.05778, section 4.4.
    """
    return _changed("no_softmax", softmax=False)


def internimage_micro_tiny20_unshared() -> RunConfig:
    """Ablation of `internimage_micro_tiny20`: a projection of its own for each sampling point, narrower.

    Command: allsight train internimage_micro_tiny20_unshared
    Hardware: one CPU core; 15 to 25 minutes. Expected: no bar; in the paper 0.1 points better with T, with
    66 % more parameters, which are taken from the width here. Measured here: no.
    Source: InternImage, arXiv:2211.05778, section 4.4.
    """
    return _changed("unshared", shared_weights=False, channels=26, mlp_ratio=3.75)


def _changed(trait: str, **changes: Any) -> RunConfig:
    origin = internimage_micro_tiny20()
    backbone = {f"model.backbone.{key}": value for key, value in changes.items()}
    return replace(origin, {"name": f"{origin.name}_{trait}", **backbone})
