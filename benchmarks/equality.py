"""How far each strategy is from one process: strategy x feature, the largest difference of any tensor.

The runs are those of `tests/engine/test_strategies.py`, one feature at a time, started as processes that
speak by gloo. Ten minutes on two cores.

Command: python benchmarks/equality.py [--ranks 2 4] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from _page import RESULTS, setting_of, write_page

TESTS = Path(__file__).parents[1] / "tests"
for folder in (TESTS, TESTS / "engine", TESTS / "contracts"):
    sys.path.insert(0, str(folder))

from rank_processes import run_ranks  # noqa: E402
from strategy_run import STRATEGIES, adam, relative_gaps, result_of, strategy_runs  # noqa: E402

from allsight.engine.trainer import Trainer  # noqa: E402

Gaps = dict[tuple[str, str], float]
"""(feature, strategy) -> largest relative L2 distance of any tensor from that of one process."""


def measure(world: int) -> Gaps:
    """All features under all strategies, on so many ranks."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        run_ranks(TESTS / "engine" / "strategy_run.py", out, "each", ranks=world, timeout_s=3600)
        results = torch.load(out / "strategies.pt")["results"]
    expected, found = {}, {}
    for run, (_, config) in strategy_runs(world, each=True).items():
        if config not in expected:
            expected[config] = _alone(config)
        strategy, _, feature = run.partition(": ")
        found[feature, strategy] = max(relative_gaps(results[run], expected[config]).values())
    whole = _alone(adam("single", 1))
    for strategy in STRATEGIES:
        run = next(name for name in results if name.startswith(f"{strategy} after "))
        found["going on from another strategy", strategy] = max(relative_gaps(results[run], whole).values())
    return found


def _alone(config):
    trainer = Trainer(config)
    trainer.fit()
    return result_of(trainer)


def table(found: Gaps) -> str:
    """Markdown: a row for each feature, a column for each strategy."""
    features = dict.fromkeys(feature for feature, _ in found)
    lines = [f"| feature | {' | '.join(STRATEGIES)} |", "|---|" + "---|" * len(STRATEGIES)]
    lines += [
        f"| {feature} | {' | '.join(f'{found[feature, strategy]:.1e}' for strategy in STRATEGIES)} |"
        for feature in features
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    parts = [
        "Largest relative L2 distance of any weight or average after 12 steps from the same run in one "
        "process. float64 and SGD with momentum, but for two rows: AdamW in float32, and going on from "
        "another strategy with AdamW in float64. Two tasks in unequal shares, a head or a layer unused in "
        "most steps, a parameter without axes, sizes that ranks cannot share evenly. Claimed: 1e-12 "
        "(float64), 1e-5 (float32)."
    ]
    parts += [f"## {world} ranks\n\n{table(measure(world))}" for world in options.ranks]
    method = "gloo, one thread a rank; the differences do not depend on load"
    write_page("equality", "Equality of strategies", setting_of(__file__, method), parts, options.out)


if __name__ == "__main__":
    main()
