"""Recipes for tests that start ranks by the command line: small, exact, and as slow as asked."""

from __future__ import annotations

import time

from blocks_run import Blocks, blocks_run

from allsight.config import replace


class Slow(Blocks):
    """Takes its time, so that a test can do something to a run before it ends."""

    class Config(Blocks.Config):
        step_s: float = 0.0

    def after_step(self, step: int) -> None:
        super().after_step(step)
        time.sleep(self.config.step_s)


def small():
    """Twelve steps."""
    return blocks_run()


def slow():
    """Three hundred steps of a fifth of a second."""
    changes = {"schedule.steps": 300, "checkpoint.every_steps": 5, "eval.max_samples": 8}
    return replace(blocks_run(), {**changes, "model": Slow.Config(step_s=0.2)})
