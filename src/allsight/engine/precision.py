"""In which number format the model runs. Losses, metrics and the optimiser are always float32 or wider."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from allsight.types import Outputs
from allsight.types.batches import map_tensors

Kind = Literal["fp32", "bf16", "fp16", "fp64"]
HALF: Mapping[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """`fp32`; `bf16`, `fp16`: autocast over float32 weights; `fp64`: all in float64, for exactness tests.

    Under autocast what computes places, losses, matching and metrics stays in float32.
    """

    def __init__(self, kind: Kind, device: torch.device) -> None:
        self.kind, self.device = kind, device

    def prepare(self, model: nn.Module) -> None:
        """Give the model's weights their format."""
        if self.kind == "fp64":
            model.double()

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Around the forward pass of the model."""
        if self.kind in HALF:
            with torch.autocast(self.device.type, HALF[self.kind]):
                yield
        else:
            yield

    def widen(self, outputs: Outputs) -> Outputs:
        """Outputs as losses and metrics need them: half-precision tensors become float32."""
        return outputs if self.kind not in HALF else map_tensors(_to_float32, outputs)


def _to_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
