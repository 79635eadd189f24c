import pytest
import torch
from torch import nn

from allsight.config import ConfigError, Mixture, build, dump
from allsight.models import Model, Parts, PlainModel, TaskModel, model_for_tasks
from allsight.types import Batch


class Adding(TaskModel):
    """Adds what it has learnt to the input, and counts in its state how often it saw a row."""

    class Config(TaskModel.Config):
        start: float = 0.0

    def __init__(self, config, tasks):
        super().__init__(config, tasks)
        self.tasks = tuple(tasks)
        self.bias = nn.Parameter(torch.tensor(config.start))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, batch, state=None):
        seen = torch.zeros(len(batch)) if state is None else state["seen"]
        return {"sum": batch.inputs["x"] + self.bias}, {"seen": seen + 1}

    def after_step(self, step):
        self.steps.fill_(step)


class Plain(PlainModel):
    """A model with a natural signature, made a TaskModel by an adapter."""

    @classmethod
    def for_tasks(cls, config, tasks):
        return Adding(Adding.Config(start=7.0), tasks)


class NoTask:
    def head(self, features):
        raise NotImplementedError

    def cast(self, batch):
        raise NotImplementedError


def config(**route):
    parts = Mixture(one=Adding.Config(start=1.0), two=Adding.Config(start=2.0))
    return Parts.Config(parts=parts, route=Mixture(route))


def batch_of(task):
    return Batch(task, ("x", "y"), {"x": torch.tensor([10.0, 20.0])})


@pytest.fixture
def model():
    tasks = {name: NoTask() for name in ("a", "b", "c")}
    return model_for_tasks(config(a="one", b="two", c="one"), tasks)


def test_each_part_is_built_with_its_own_tasks_in_the_order_of_the_run(model):
    assert model.parts["one"].tasks == ("a", "c")
    assert model.parts["two"].tasks == ("b",)


def test_a_batch_goes_to_the_part_of_its_task_with_its_state(model):
    outputs, state = model(batch_of("b"))
    assert outputs["sum"].tolist() == [12.0, 22.0]
    _, state = model(batch_of("b"), state)
    assert state["seen"].tolist() == [2.0, 2.0]


def test_a_part_that_was_not_asked_gets_no_gradient(model):
    model(batch_of("a"))[0]["sum"].sum().backward()
    assert model.parts["one"].bias.grad.item() == 2.0
    assert model.parts["two"].bias.grad is None


def test_after_step_reaches_every_part(model):
    model.after_step(41)
    assert [part.steps.item() for part in model.parts.values()] == [41.0, 41.0]


def test_a_plain_model_becomes_a_part_through_its_adapter():
    parts = Parts.Config(parts=Mixture(only=Plain.Config()), route=Mixture(a="only"))
    outputs, _ = model_for_tasks(parts, {"a": NoTask()})(batch_of("a"))
    assert outputs["sum"].tolist() == [17.0, 27.0]


def test_its_configuration_survives_being_written_and_read():
    before = config(a="one", b="two")
    after = build(Model.Config, dump(before), trust=True)
    assert after == before
    assert after.parts.two.start == 2.0


def test_a_task_without_a_part_is_refused():
    with pytest.raises(ConfigError, match=r"model.route: task 'd' has no part; choose one of one, two"):
        model_for_tasks(config(a="one", b="two"), {"a": NoTask(), "d": NoTask()})


def test_a_route_to_nowhere_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"route.a: no part 'twi'; did you mean 'two'\?") as error:
        config(a="twi", b="one")
    assert "\n" not in str(error.value)


def test_a_part_that_nobody_asks_is_refused():
    with pytest.raises(ConfigError, match=r"parts.two: no task is routed to it"):
        config(a="one")


def test_a_plain_model_without_an_adapter_says_so():
    class Bare(PlainModel):
        pass

    with pytest.raises(NotImplementedError, match="Bare has no adapter for training"):
        model_for_tasks(Bare.Config(), {})
