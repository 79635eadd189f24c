"""Optimisers and their settings; the maths is PyTorch's. `parameter_groups` says which rate goes where."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import nn

from allsight.config import Config, Configured, Family
from allsight.engine.parameter_groups import Groups

OPTIMISERS = Family(
    "optimiser",
    {
        "adamw": "allsight.engine.optim:AdamW",
        "muon": "allsight.engine.muon:Muon",
        "sgd": "allsight.engine.optim:SGD",
    },
)


_CLIPS = ("clip_norm", "clip_value", "clip_adaptive")
Decay = Annotated[float, Field(ge=0, lt=1)]


class Optimiser(Configured):
    """Base: the peak learning rate, decay, clipping and the average of the weights."""

    class Config(Config):
        lr: float = Field(default=1e-3, gt=0)
        """Peak learning rate."""
        lr_is_for_batch: int | None = Field(default=None, ge=1)
        """If set, `lr` belongs to this batch size and is scaled linearly to the task's own."""
        weight_decay: float = Field(default=0.05, ge=0)
        """Applied to matrices and kernels; biases, norms and other vectors do not decay."""
        groups: Groups = Groups()
        """Learning rates that differ by layer, stage or kind of parameter."""
        clip_norm: float | None = Field(default=None, gt=0)
        """Upper bound of the norm of all gradients together."""
        clip_value: float | None = Field(default=None, gt=0)
        """Upper bound of the size of each number of the gradients; in place of `clip_norm`."""
        clip_adaptive: float | None = Field(default=None, gt=0)
        """Upper bound of a unit's gradient as a share of its weights' norm, such as 0.02 (adaptive gradient
        clipping, arXiv:2102.06171); in place of `clip_norm`."""
        clip_adaptive_spares: tuple[str, ...] = ("head", "heads")
        """Modules that `clip_adaptive` leaves alone: those with one of these words in their dotted name."""
        ema_decay: float | None = Field(default=None, gt=0, lt=1)
        """If set, keep an average of the weights with this decay per step, and evaluate it."""
        ema_warmup: bool = True
        """Use min(decay, (1 + n) / (10 + n)) in step n, so that early weights are forgotten soon."""

        @model_validator(mode="after")
        def _clips_in_one_way(self) -> Optimiser.Config:
            given = [f"{n}={v:g}" for n in _CLIPS if (v := getattr(self, n)) is not None]
            if len(given) > 1:
                raise ValueError(f"{' and '.join(given)}: gradients are clipped in one way; keep one of them")
            return self

    family: ClassVar[Family | None] = OPTIMISERS
    elementwise: ClassVar[bool] = False
    """Whether what becomes of a weight depends on no other weight, so that it may be cut anywhere."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def sort(self, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Parameter groups as this optimiser needs them, split where it treats parameters by place."""
        return groups

    def make(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        """The PyTorch optimiser over parameter groups that `sort` gave."""
        raise NotImplementedError(f"{type(self).__name__} makes no optimiser")


class AdamW(Optimiser):
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101)."""

    elementwise: ClassVar[bool] = True

    class Config(Optimiser.Config):
        betas: tuple[Decay, Decay] = (0.9, 0.999)
        """Decay of the running means of the gradient and of its square."""
        eps: float = Field(default=1e-8, gt=0)
        """Added to the root of the mean square before dividing by it."""
        fused: bool = False
        """One kernel for the whole step: faster, and its roundings are not those of the other way."""

    def make(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            groups, lr=lr, betas=self.config.betas, eps=self.config.eps, **_kernels(self.config.fused)
        )


class SGD(Optimiser):
    """Stochastic gradient descent with momentum."""

    elementwise: ClassVar[bool] = True

    class Config(Optimiser.Config):
        momentum: float = Field(default=0.9, ge=0, lt=1)
        nesterov: bool = False
        """Look ahead along the momentum; needs some."""
        fused: bool = False
        """One kernel for the whole step: faster, and its roundings are not those of the other way."""

        @model_validator(mode="after")
        def _nesterov_has_momentum(self) -> SGD.Config:
            if self.nesterov and self.momentum == 0:
                raise ValueError("nesterov=true needs momentum above 0, such as 0.9")
            return self

    def make(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        c = self.config
        return torch.optim.SGD(groups, lr=lr, momentum=c.momentum, nesterov=c.nesterov, **_kernels(c.fused))


def _kernels(fused: bool) -> dict[str, Any]:
    return {"fused": True} if fused else {"foreach": True}
