"""How a run is spread over processes: settings only."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from allsight.config import Config

Strategy = Literal["single", "ddp", "fsdp", "hsdp", "deepspeed"]
SHARDED = ("fsdp", "hsdp")
"""Strategies under which a rank holds a part of each parameter."""


class DDPConfig(Config):
    """`strategy=ddp`: every rank holds everything, gradients are summed."""

    static_graph: bool = False
    """Every step runs the same layers, which saves the search for unused ones; only with one task."""
    bucket_views: bool = True
    """Gradients lie in the buckets they are sent in, which saves one copy of them."""
    bucket_mb: float = Field(default=25.0, gt=0)
    """Size of the pieces in which gradients are sent."""
    compression: Literal["none", "bf16", "fp16"] = "none"
    """Number format in which gradients are sent; half the traffic, and their sums are rounded."""


class FSDPConfig(Config):
    """`strategy=fsdp` or `hsdp`: every rank holds a part of parameters, gradients, optimiser and average."""

    reshard: bool = True
    """Drop a block's gathered weights after its forward and gather them again for its backward (ZeRO-3);
    false keeps them in between (as ZeRO-2): faster, more memory."""
    offload: bool = False
    """Keep parameters, gradients and optimiser in the memory of the CPU, and update them there."""
    gather_half: bool = False
    """Send weights in the half format of `precision`: half the traffic. Weights are then rounded before every
    use, also in layers that compute in float32."""
    reduce_half: bool = False
    """Sum gradients in the half format of `precision`: half the traffic, and their sums are rounded."""
    shard_ranks: int | None = Field(default=None, ge=1)
    """For hsdp: ranks that share one copy of the weights; None: those of one machine."""


class DeepSpeedConfig(Config):
    """ZeRO as DeepSpeed does it; `allsight plan RECIPE --deepspeed` prints its settings."""

    stage: Literal[0, 1, 2, 3] = 2
    """What is sharded: 1 the optimiser, 2 gradients too, 3 parameters too."""
    offload: bool = False
    """Optimiser, and with stage 3 parameters, in the memory of the CPU."""
    file: str = ""
    """DeepSpeed's own JSON; empty: made from the recipe, as `allsight plan --deepspeed` prints it."""


class ParallelConfig(Config):
    """How a step is spread over processes."""

    strategy: Strategy = "single"
    """One process; whole copies (ddp); parts of everything (fsdp); parts within groups of ranks that each
    hold a whole copy (hsdp); DeepSpeed's ZeRO (deepspeed)."""
    expert_ranks: int = Field(default=1, ge=1)
    """Ranks that share the experts that tokens choose for themselves, each holding as many of them; tokens
    travel to the rank of their expert. Everything else is spread as `strategy` says."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Seconds after which ranks that wait for a missing one give up."""
    ddp: DDPConfig = DDPConfig()
    fsdp: FSDPConfig = FSDPConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()

    @model_validator(mode="after")
    def _options_belong(self) -> ParallelConfig:
        if self.fsdp.shard_ranks is not None and self.strategy != "hsdp":
            raise ValueError(
                f"fsdp.shard_ranks={self.fsdp.shard_ranks} belongs to strategy=hsdp, not {self.strategy}"
            )
        if self.expert_ranks > 1:
            if self.strategy not in ("ddp", *SHARDED):
                raise ValueError(
                    f"expert_ranks={self.expert_ranks} belongs to strategy=ddp, fsdp or hsdp, "
                    f"not {self.strategy}"
                )
            if self.strategy in SHARDED and self.fsdp.offload:
                raise ValueError(
                    f"expert_ranks={self.expert_ranks}: not with fsdp.offload, since experts stay on their "
                    "device; leave one of the two out"
                )
        return self
