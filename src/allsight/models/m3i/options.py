"""How inputs are mixed and hidden, and how slowly copies follow."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from allsight.config import Config


class Mixer(Config):
    """How several pictures become one input.

    Attributes:
        pictures: How many; 1 mixes nothing.
        block_px: Side of the blocks that come from one picture; whole cells of the encoder, and for networks
            of several stages whole cells of the coarsest, so that one mask serves all.
        shares: Of each picture; None: equal ones.
        attention: Whether a transformer keeps the pictures apart ("separate") or lets them see each other.
        roles: Whether the first picture of each group always plays the first role ("fixed": fewer inputs
            than pictures, as in the paper's figure 2), or each picture each role, in an input of its own
            ("rotate": as many inputs as pictures, at so many times the cost).
    """

    pictures: int = Field(default=1, ge=1)
    block_px: int = Field(default=32, ge=1)
    shares: tuple[float, ...] | None = None
    attention: Literal["separate", "joint"] = "separate"
    roles: Literal["fixed", "rotate"] = "fixed"

    @model_validator(mode="after")
    def _shares_fit(self) -> Mixer:
        if self.shares is not None and (len(self.shares) != self.pictures or min(self.shares) <= 0):
            raise ValueError(f"shares: expected {self.pictures} numbers above 0, got {self.shares}")
        return self


class Mask(Config):
    """What an input hides of its only picture.

    Attributes:
        ratio: Share of the blocks; 0 hides nothing.
        block_px: Side of the blocks; whole cells of the encoder.
        shape: Blocks at random, or overlapping rectangles (BEiT).
        how: Leave hidden cells out (transformers only), or show a mask token.
    """

    ratio: float = Field(default=0.0, ge=0, lt=1)
    block_px: int = Field(default=16, ge=1)
    shape: Literal["random", "rectangles"] = "random"
    how: Literal["drop", "token"] = "drop"


class MomentumSchedule(Config):
    """How slowly copies follow: copy <- decay * copy + (1 - decay) * weights, once per optimiser step.

    Attributes:
        start, end: Decay at the first step and at the last, along half a cosine.
        steps: From the first to the last; None: those of the run.
    """

    start: float = Field(default=0.996, ge=0, le=1)
    end: float = Field(default=1.0, ge=0, le=1)
    steps: int | None = Field(default=None, ge=1)

    def decay(self, step: int, run_steps: int | None = None) -> float:
        """The decay of a step, counted from 0, in a run of so many; where nobody knows how many, `start`."""
        steps = self.steps or run_steps
        if steps is None:
            return self.start
        share = min(step / steps, 1.0)
        return self.end - (self.end - self.start) * (math.cos(math.pi * share) + 1) / 2
