"""A run under a sampling policy: its epochs are those of the policy."""

import numpy as np
from small_run import Signs, small_run

from allsight.config import Mixture
from allsight.data.listings import SampleClasses
from allsight.data.policies import Policy
from allsight.engine.building import build_run, rebuild_plan
from allsight.engine.distributed import Ranks
from allsight.engine.schedule import Constant


class Rare(Signs):
    """Knows which of its samples are rare: 4 of 48."""

    class Config(Signs.Config):
        pass

    def reader(self, split):
        reader = super().reader(split)
        labels = np.repeat([0, 1], [44, 4])
        reader.sample_classes = lambda: SampleClasses.one_each(labels)
        return reader


def built(policy, **schedule):
    tasks = Mixture(a=Rare.Config(batch_size=8, policy=policy))
    return build_run(small_run(tasks=tasks, schedule=Constant.Config(**schedule)), Ranks())


def test_an_epoch_counts_repetitions():
    assert built(Policy(), epochs=3).schedule.steps == 18
    # The rare class has the factor sqrt(1/3 / (1/12)) = 2: 44 + 8 samples.
    repeated = built(Policy(balance="repeat_factor", repeat_threshold=1 / 3), epochs=2)
    assert repeated.plan.tasks["a"].epoch_size == 52
    assert repeated.schedule.steps == 13


def test_a_worker_rebuilds_the_policy():
    plan = built(Policy(balance="classes"), steps=5).plan
    assert plan.rebuild[0] is rebuild_plan
    again = plan.rebuild[0](*plan.rebuild[1])
    assert again.tasks["a"].rates.epoch_size == plan.tasks["a"].rates.epoch_size == 48
