"""What `uniperceiver_real.py` trains: all tasks together, with experts, and each task alone.

Each name is a recipe for `allsight train benchmarks/_uniperceiver_real_recipes.py:NAME`.
"""

from __future__ import annotations

from functools import partial

from allsight.config import Mixture, replace
from allsight.engine.config import RunConfig
from allsight.models.uniperceiver import ExpertSettings
from allsight.recipes import uni_perceiver_micro_real


def joint() -> RunConfig:
    """All tasks; masked words are taken from all captions."""
    settings = {
        "name": "joint",
        "tasks.words.data": "text:texts",
        "eval.max_samples": 100,
        "eval.pictures": 0,
    }
    return replace(uni_perceiver_micro_real(), settings)


def experts() -> RunConfig:
    """All tasks, experts by attributes: two of eight merge into one layer of the size of a dense one."""
    return replace(joint(), {"name": "experts", "model.experts": ExpertSettings()})


def own_steps(task: str, steps: int) -> int:
    """Steps that a task has in so many steps of all."""
    tasks = joint().tasks
    shares = {name: float(tasks[name].share) for name in tasks}
    return round(steps * shares[task] / sum(shares.values()))


def _alone(task: str) -> RunConfig:
    """One task and nothing else."""
    run = joint()
    return replace(run, {"name": f"alone_{task}", "tasks": Mixture(**{task: run.tasks[task]})})


alone_tiny20 = partial(_alone, "tiny20")
alone_cifar10 = partial(_alone, "cifar10")
alone_captions = partial(_alone, "captions")
alone_pairs = partial(_alone, "pairs")
alone_questions = partial(_alone, "questions")
alone_words = partial(_alone, "words")
alone_coco_captions = partial(_alone, "coco_captions")
alone_coco_questions = partial(_alone, "coco_questions")
