"""Settings that leave results as they are, tried out by counting: which make a run fast and let it fit?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from allsight.config import replace
from allsight.engine.budget.savings import remat_paths
from allsight.engine.config import RunConfig
from allsight.launch.plan import Plan, plan_run

_KINDS = ("none", "selective", "block")
"""From what takes most memory to what takes most time."""


@dataclass(frozen=True)
class Tried:
    """One way to recompute, and what a run would take with it.

    Args:
        changes: Settings, as on the command line; none where the recipe stays as it is.
        plan: With the best micro-batch of every strategy.
    """

    changes: tuple[str, ...]
    plan: Plan


def search_plans(
    config: RunConfig, *, gpus: int, kind: str, samples: Mapping[str, int] | None = None
) -> tuple[Tried, ...]:
    """Plan a run with every kind of recomputation, strategy and micro-batch; the best one first.

    Only what leaves the weights that come out as they are is tried: not precision, not the batch.

    Raises:
        ConfigError: As `plan_run`.
    """
    paths = remat_paths(config)
    found = []
    for remat in _KINDS if paths else [None]:
        changed = config if remat is None else replace(config, dict.fromkeys(paths, remat))
        words = () if remat is None else tuple(f"{path}={remat}" for path in paths)
        found.append(Tried(words, plan_run(changed, gpus=gpus, kind=kind, samples=samples)))
    # Of equals the first, which repeats least.
    return tuple(sorted(found, key=_rank))


def _rank(tried: Tried) -> tuple[bool, float]:
    best = tried.plan.best
    return best is None, min(c.peak for c in tried.plan.choices) if best is None else best.step_s
