"""Model FLOPs utilisation: the arithmetic a step needs, as a share of what the device could do meanwhile."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache

import torch

from allsight.config import ConfigError
from allsight.engine.budget.machines import by_device_name
from allsight.engine.budget.passes import build_without_memory, pass_cost, without_memory
from allsight.engine.config import RunConfig
from allsight.engine.distributed import Ranks
from allsight.engine.precision import HALF
from allsight.engine.streams import seeded
from allsight.tasks.base import Task
from allsight.types import Step

_SIDE = 512


class Utilisation:
    """MFU of each step. Each task's FLOPs are counted when it is drawn for the first time.

    Counted are matrix products and convolutions of forward and backward, without what recomputation repeats
    (Chowdhery et al., PaLM, 2022, appendix B). The device's peak is that of its data sheet; on a CPU, what a
    large matrix product reaches there, in this process.

    Args:
        config: The run.
        tasks: Its tasks.
    """

    def __init__(self, config: RunConfig, tasks: Mapping[str, Task], ranks: Ranks) -> None:
        self._config, self._tasks, self._world = config, tasks, ranks.world
        self._peak = peak_flops(ranks.device, config.precision)
        self._row_flops: dict[str, float] = {}
        self.problem = ""
        """Why there is no figure, where there is none."""
        if self._peak is None:
            self.problem = f"the peak of a {torch.cuda.get_device_name(ranks.device)} is not known"

    def of(self, step: Step, seconds: float) -> float | None:
        """Share of the peak of all ranks' devices in a step that took so long; None where it is not known."""
        if self._peak is None or self.problem:
            return None
        for name in step.tasks:
            if name not in self._row_flops and not self._count(step, name):
                return None
        flops = sum(step.sizes[name] * self._row_flops[name] for name in step.tasks)
        return flops / (seconds * self._world * self._peak)

    def _count(self, step: Step, name: str) -> bool:
        """Count a task's FLOPs; whether that was possible."""
        batch = next((batch for batch in step.batches[name] if len(batch)), None)
        if batch is None:
            # Rows of this task are on other ranks only; the next time may tell.
            return False
        precision = self._config.precision
        try:
            with seeded(self._config.seed, "counting"), without_memory() as mode:
                model = build_without_memory(self._config, self._tasks)
                work = pass_cost(model, batch.to("cpu"), precision=precision, mode=mode).work
        except ConfigError as error:
            self.problem = str(error).removeprefix("plan: ")
            return False
        except Exception as error:  # A model of the user's may not run without contents: no reason to stop.
            self.problem = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            return False
        self._row_flops[name] = (work.flops - work.repeated_flops) / len(batch)
        return True


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s that one device can reach at most in this precision; None for a GPU that is not in the table."""
    if device.type != "cuda":
        dtype = HALF.get(precision, torch.float64 if precision == "fp64" else torch.float32)
        return _matrix_flops(dtype, torch.get_num_threads())
    machine = by_device_name(torch.cuda.get_device_name(device))
    if machine is None:
        return None
    return machine.half_flops if precision in HALF else machine.single_flops


@cache
def _matrix_flops(dtype: torch.dtype, threads: int) -> float:
    """FLOP/s of the fastest of a few matrix products."""
    left = torch.ones(_SIDE, _SIDE, dtype=dtype)
    fastest = float("inf")
    for _ in range(4):
        begun = time.perf_counter()
        torch.mm(left, left)
        fastest = min(fastest, time.perf_counter() - begun)
    return 2 * _SIDE**3 / fastest
