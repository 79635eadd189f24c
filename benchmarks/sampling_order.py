"""What a sampling policy costs: making it from the samples' classes, finding a far step, memory.

    python benchmarks/sampling_order.py [--samples 10000000] [--batch 256]

The classes are as unequal as in the wild: the commonest of about 1,200 has a quarter of the samples.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from allsight.data.listings import SampleClasses
from allsight.data.policies import bucket_of
from allsight.data.rates import Rates, class_balanced, repeat_factors
from allsight.data.sampler import Plan, Sampler, TaskPlan

FAR = 1_000_000
"""The step that is looked for."""


def timed(action: Callable[[], Any]) -> tuple[Any, float]:
    """What the action gives, and its seconds."""
    begun = time.perf_counter()
    return action(), time.perf_counter() - begun


def held_bytes(made: Any) -> int:
    """Bytes of arrays that a policy keeps; buckets also keep their members (4 bytes a sample)."""
    if isinstance(made, Rates):
        return made.nbytes
    return 0 if made is None else made.nbytes + 4 * len(made)


def times_of(plan: Plan) -> tuple[float, float]:
    """Seconds until the far step is known, and of each of a hundred steps after it."""
    begun = time.perf_counter()
    sampler = Sampler(plan)
    sampler.rows(FAR, "a")
    start_s = time.perf_counter() - begun
    begun = time.perf_counter()
    for step in range(1, 101):
        sampler.rows(FAR + step, "a")
    return start_s, (time.perf_counter() - begun) / 100


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of sampling policies")
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    size, rng = options.samples, np.random.default_rng(0)
    labels = (3 * rng.pareto(1.0, size)).astype(np.int64).clip(0, 1200)
    by_class, loose = SampleClasses.one_each(np.sort(labels)), SampleClasses.one_each(labels)
    lengths, edges = rng.integers(1, 200, size), (16.0, 32.0, 64.0, 128.0)
    policies: dict[str, tuple[str, Callable[[], Any]]] = {
        "none": ("rates", lambda: None),
        "classes, in the order of classes": ("rates", lambda: class_balanced(by_class)),
        "classes, in any order": ("rates", lambda: class_balanced(loose)),
        "repeat_factor": ("rates", lambda: repeat_factors(loose, 0.001)),
        "5 buckets": ("buckets", lambda: bucket_of(lengths, edges)),
    }
    lines = [["policy", "made in, s", f"start at step {FAR:,}, ms", "step after it, ms", "bytes a sample"]]
    for name, (field, make) in policies.items():
        made, making_s = timed(make)
        plan = Plan(0, {"a": TaskPlan(size, options.batch, **{field: made})})
        start_s, step_s = times_of(plan)
        figures = (f"{making_s:.2f}", f"{1000 * start_s:.1f}", f"{1000 * step_s:.2f}")
        lines.append([name, *figures, f"{held_bytes(made) / size:.0f}"])
    from _page import setting_of, write_page

    from allsight.launch.bench.report import aligned

    method = f"{size:,} samples, batch {options.batch}, one call each; steps: mean of 100"
    setting = setting_of(__file__, method)
    write_page("sampling_order", "Cost of sampling policies", setting, [aligned(lines)], options.out)


if __name__ == "__main__":
    main()
