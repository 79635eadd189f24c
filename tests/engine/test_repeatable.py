"""The same seed gives the same bits, whoever reads the data and whoever listens."""

import pytest
import torch
from rank_run import result_of
from spike_run import spike_run

from allsight.config import replace
from allsight.engine.trainer import Trainer

STEPS = 200
QUIET = {"train.norms_every": None, "checkpoint.every_steps": None, "eval.every_steps": None}
TALKATIVE = {"train.norms_every": 3, "checkpoint.every_steps": 7, "eval.every_steps": 50}

WAYS = {
    "again": {},
    "with a diary, norms, saves and evaluations": TALKATIVE,
    "1 worker": {"data.workers": 1},
    "2 workers": {"data.workers": 2, "data.prefetch": 1},
    "2 workers and all the rest": {**TALKATIVE, "data.workers": 2},
}


def _run(changes, folder):
    """Losses and weights, averages included, of two hundred steps on one thread."""
    config = replace(spike_run("mixed_lanes"), {"schedule.steps": STEPS, "eval.max_samples": 12, **changes})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trainer = Trainer(config, folder=folder)
        if folder is not None:
            trainer.listeners.append(lambda event: None)
        losses = [(step.loss, step.grad_norm) for step in trainer]
        trainer.close()
    finally:
        torch.set_num_threads(threads)
    assert len(losses) == STEPS
    return losses, result_of(trainer)


@pytest.mark.slow
def test_two_hundred_steps_are_the_same_bits(tmp_path):
    losses, weights = _run(QUIET, None)
    for number, (way, changes) in enumerate(WAYS.items()):
        folder = tmp_path / str(number) if changes.keys() & TALKATIVE.keys() else None
        again, other = _run({**QUIET, **changes}, folder)
        assert again == losses, way
        for name, tensor in weights.items():
            assert torch.equal(other[name], tensor), f"{way}: {name}"
    seed, _ = _run({**QUIET, "seed": 1}, None)
    assert seed != losses
