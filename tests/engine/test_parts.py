"""Small parts of the engine: schedule, parameter groups, averages, memory, events, seeds."""

import json
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from allsight.config import ConfigError
from allsight.engine.distributed import Ranks
from allsight.engine.ema import WeightAverage
from allsight.engine.events import EventLog
from allsight.engine.memory import TemporalMemory
from allsight.engine.optim import AdamW
from allsight.engine.parameter_groups import parameter_groups
from allsight.engine.schedule import Constant, Cosine, build_schedule
from allsight.engine.streams import seeded, stream_seed
from allsight.types import Batch


def test_cosine_climbs_then_falls_to_its_final_ratio():
    schedule = build_schedule(
        Cosine.Config(steps=110, warmup_steps=10, final_ratio=0.1), steps_per_epoch=None
    )
    factors = [schedule.factor(step) for step in range(110)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == 1.0
    assert factors[60] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert factors[109] == pytest.approx(0.1, abs=1e-3)
    assert all(a >= b for a, b in pairwise(factors[10:]))


def test_a_warmup_may_start_above_zero_and_a_cosine_before_its_end():
    config = Cosine.Config(
        steps=100, warmup_steps=9, warmup_start_ratio=0.5, final_ratio=0.2, spans_warmup=True
    )
    schedule = build_schedule(config, steps_per_epoch=None)
    warmup = [schedule.factor(step) for step in range(9)]
    assert warmup == pytest.approx([0.5 + 0.05 * (step + 1) for step in range(9)])
    for step in (9, 50, 99):
        assert schedule.factor(step) == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi * step / 100)))


def test_epochs_become_steps():
    schedule = build_schedule(Constant.Config(epochs=2, warmup_epochs=0.5), steps_per_epoch=10.5)
    assert (schedule.steps, schedule.warmup_steps) == (21, 6)


def test_warmup_longer_than_the_run_is_refused():
    with pytest.raises(ConfigError, match=r"warmup_steps: expected less than steps=10, got 10"):
        Cosine.Config(steps=10, warmup_steps=10)
    rounded = Cosine.Config(epochs=1, warmup_epochs=0.99)
    with pytest.raises(ConfigError, match=r"schedule\.warmup_steps: 2 is not shorter than the run of 2"):
        build_schedule(rounded, steps_per_epoch=2)


@pytest.mark.parametrize("wrong", [{}, {"steps": 5, "epochs": 1}, {"steps": 5, "warmup_epochs": 1}])
def test_a_schedule_has_one_unit(wrong):
    with pytest.raises(ConfigError, match=r"steps|epochs"):
        Cosine.Config(**wrong)


def test_vectors_and_named_parameters_do_not_decay():
    class Scaled(nn.Module):
        no_weight_decay = ("table",)

        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.zeros(3, 3))

    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), Scaled())
    model[1].weight.requires_grad_(False)
    decay, plain = parameter_groups(model, AdamW.Config(weight_decay=0.05))
    assert decay["params"] == [model[0].weight] and decay["weight_decay"] == 0.05
    assert {id(p) for p in plain["params"]} == {id(model[0].bias), id(model[1].bias), id(model[2].table)}
    assert plain["weight_decay"] == 0.0
    assert AdamW.Config().build().make([decay, plain], 1e-3).param_groups[0]["lr"] == 1e-3


def test_average_follows_its_formula_and_spares_buffers_and_frozen_parameters():
    model = nn.Sequential(nn.Linear(2, 2, dtype=torch.float64), nn.BatchNorm1d(2, dtype=torch.float64))
    model[1].weight.requires_grad_(False)
    ema = WeightAverage(model, decay=0.9, warmup=True)
    expected = model[0].weight.detach().clone()
    for step in range(20):
        with torch.no_grad():
            model[0].weight.add_(1.0)
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[0].weight.detach()
    torch.testing.assert_close(ema.averages["0.weight"], expected, rtol=1e-12, atol=0)
    assert "1.weight" not in ema.averages
    raw = model[0].weight.detach().clone()
    with ema.applied():
        torch.testing.assert_close(model[0].weight.detach(), expected, rtol=1e-12, atol=0)
    assert torch.equal(model[0].weight, raw)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_averages_are_float32_or_wider_and_move_by_the_smallest_steps(dtype):
    model = nn.Linear(1, 1, bias=False, dtype=dtype)
    nn.init.ones_(model.weight)
    ema = WeightAverage(model, decay=0.9999, warmup=False)
    nn.init.constant_(model.weight, 1.0625)
    for step in range(1000):
        ema.update(step)
    average = ema.averages["weight"]
    assert average.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    # In bfloat16 each step of 6e-6 would be lost, and the average still be 1.
    assert average.item() == pytest.approx(1 + 0.0625 * (1 - 0.9999**1000), rel=1e-5)
    with ema.applied():
        assert model.weight.dtype is dtype


def _batch(slots, starts):
    return Batch(
        task="drive",
        ids=tuple(map(str, slots)),
        inputs={},
        slots=torch.tensor(slots),
        starts=torch.tensor(starts),
    )


def test_memory_follows_slots_and_marks_what_it_does_not_know():
    memory = TemporalMemory()
    batch, state = memory.recall(_batch([4, 2], [False, False]))
    assert state is None
    memory.keep(batch, {"bev": torch.tensor([[4.0], [2.0]])})
    batch, state = memory.recall(_batch([2, 7, 4], [False, False, False]))
    assert state is not None
    assert state["bev"].flatten().tolist() == [2.0, 0.0, 4.0]
    assert batch.starts.tolist() == [False, True, False]
    memory.forget([_batch([2], [False])])
    assert memory.recall(_batch([2], [False]))[1] is None


def test_memory_goes_through_a_checkpoint():
    memory = TemporalMemory()
    memory.keep(_batch([0, 3], [True, True]), {"bev": torch.randn(2, 3), "age": torch.tensor([1, 2])})
    again = TemporalMemory()
    again.restore(memory.tensors(Ranks()))
    assert again.tensors(Ranks()).keys() == memory.tensors(Ranks()).keys()
    for key, row in memory.tensors(Ranks()).items():
        assert torch.equal(again.tensors(Ranks())[key], row)


def test_events_are_json_lines_with_strings_for_what_is_not_finite(tmp_path):
    log = EventLog(tmp_path, 0)
    heard = []
    log.listeners.append(heard.append)
    log.write("train", 3, task="a", values={"loss": float("nan"), "x": float("-inf"), "n": 2})
    log.close()
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert lines == (tmp_path / "events" / "rank-0.jsonl").read_text().splitlines()
    event = json.loads(lines[0])
    assert list(event) == ["time", "step", "rank", "kind", "task", "values", "text"]
    assert event["values"] == {"loss": "nan", "x": "-inf", "n": 2}
    assert heard == [event]


def test_a_line_torn_by_a_kill_does_not_swallow_the_next(tmp_path):
    (tmp_path / "events.jsonl").write_text('{"time": 1, "st')
    log = EventLog(tmp_path, 0)
    log.write("note", 0, text="after")
    log.close()
    assert json.loads((tmp_path / "events.jsonl").read_text().splitlines()[1])["text"] == "after"


def test_events_that_cannot_be_written_are_counted_and_said_once(tmp_path):
    log = EventLog(tmp_path, 0)
    heard = []
    log.listeners.append(heard.append)

    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

        def close(self):
            pass

    log.close()
    log._files = [Full()]
    log.write("note", 1)
    log.write("note", 2)
    assert log.lost == 2
    assert [event["kind"] for event in heard] == ["alarm", "note", "note"]


def test_seeds_depend_on_the_place_and_nothing_else():
    assert stream_seed(0, "layers", 1, "a", 2) == stream_seed(0, "layers", 1, "a", 2)
    places = [
        (0, "layers", 1),
        (0, "layers", 2),
        (1, "layers", 1),
        (0, "initialisation", 1),
        (0, "layers", 11),
    ]
    assert len({stream_seed(*place) for place in places}) == len(places)
    # The value itself is part of the format: a changed formula would change every saved run.
    assert stream_seed(0, "layers", 1) == stream_seed(0, "layers", "1")


def test_seeding_leaves_the_users_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(0, "layers"):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded(0, "layers"):
        assert torch.equal(torch.rand(3), first)
