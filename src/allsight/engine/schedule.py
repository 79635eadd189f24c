"""Learning-rate schedules: pure functions of the step."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from pydantic import Field, model_validator

from allsight.config import Config, ConfigError, Configured, Family

SCHEDULES = Family(
    "schedule",
    {"cosine": "allsight.engine.schedule:Cosine", "constant": "allsight.engine.schedule:Constant"},
)


class Schedule(Configured):
    """Base: warm-up, and the length of the run. `factor(step)` multiplies the peak learning rate.

    Args:
        config: Its settings.
        steps: Length of the run in optimiser steps.
        warmup_steps: How many of them climb linearly to the peak.
    """

    class Config(Config):
        steps: int | None = Field(default=None, ge=1)
        """Optimiser steps of the whole run."""
        epochs: float | None = Field(default=None, gt=0)
        """In place of `steps`, where the run has one task: passes over its training samples."""
        warmup_steps: int | None = Field(default=None, ge=0)
        warmup_epochs: float | None = Field(default=None, ge=0)
        warmup_start_ratio: float = Field(default=0.0, ge=0, le=1)
        """Where the warm-up starts, as a share of the peak."""

        @model_validator(mode="after")
        def _one_unit(self) -> Schedule.Config:
            if (self.steps is None) == (self.epochs is None):
                raise ValueError(f"expected steps or epochs, got steps={self.steps} and epochs={self.epochs}")
            if self.warmup_steps is not None and self.warmup_epochs is not None:
                raise ValueError("expected warmup_steps or warmup_epochs, got both")
            if self.warmup_epochs is not None and self.epochs is None:
                raise ValueError("warmup_epochs needs epochs; with steps set warmup_steps")
            for unit in ("steps", "epochs"):
                length, warmup = getattr(self, unit), getattr(self, f"warmup_{unit}")
                if length is not None and warmup is not None and warmup >= length:
                    raise ValueError(f"warmup_{unit}: expected less than {unit}={length}, got {warmup}")
            return self

    family: ClassVar[Family | None] = SCHEDULES

    def __init__(self, config: Any, *, steps: int, warmup_steps: int) -> None:
        self.config = config
        self.steps = steps
        self.warmup_steps = warmup_steps

    def factor(self, step: int) -> float:
        """Learning rate / peak learning rate in step `step` (from 0)."""
        if step < self.warmup_steps:
            start = self.config.warmup_start_ratio
            return start + (1 - start) * (step + 1) / (self.warmup_steps + 1)
        begin = self.begin
        return self.after_warmup((step - begin) / max(1, self.steps - begin))

    @property
    def begin(self) -> int:
        """The step at which `progress` is 0."""
        return self.warmup_steps

    def after_warmup(self, progress: float) -> float:
        """The factor at `progress`, 0 at step `begin` and 1 at the end of the run."""
        raise NotImplementedError(f"{type(self).__name__} does not say how the rate goes on")


class Cosine(Schedule):
    """From the peak to `final_ratio` of it along half a cosine (SGDR, arXiv:1608.03983, eq. 5)."""

    class Config(Schedule.Config):
        final_ratio: float = Field(default=0.0, ge=0, le=1)
        """The rate at the end as a share of the peak."""
        spans_warmup: bool = False
        """Let the half cosine begin at step 0, hidden by the warm-up while that lasts; the rate then drops a
        little where the warm-up ends. So in huggingface/pytorch-image-models:timm/scheduler/cosine_lr.py."""

    @property
    def begin(self) -> int:
        return 0 if self.config.spans_warmup else self.warmup_steps

    def after_warmup(self, progress: float) -> float:
        low = self.config.final_ratio
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Constant(Schedule):
    """The peak rate throughout."""

    def after_warmup(self, progress: float) -> float:
        return 1.0


def build_schedule(config: Any, *, steps_per_epoch: float | None) -> Schedule:
    """The schedule of a run, with epochs turned into steps.

    Args:
        steps_per_epoch: Samples / batch size of the only task; None where there are several.
    Raises:
        ConfigError: The warm-up is longer than the run, or epochs were asked of several tasks.
    """
    if config.epochs is not None and steps_per_epoch is None:
        raise ConfigError("config.schedule.epochs: needs exactly one task; set schedule.steps")
    per_epoch = steps_per_epoch or 0.0
    steps = config.steps if config.epochs is None else max(1, math.ceil(config.epochs * per_epoch))
    warmup = config.warmup_steps or math.ceil((config.warmup_epochs or 0) * per_epoch)
    if warmup >= steps and warmup > 0:
        raise ConfigError(
            f"config.schedule.warmup_steps: {warmup} is not shorter than the run of {steps} steps; lower "
            "it, or set 0"
        )
    return config.build(steps=steps, warmup_steps=warmup)
