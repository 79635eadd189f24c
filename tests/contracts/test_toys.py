from dataclasses import replace

import numpy as np
import pytest
import torch
import toys

from allsight.config import Mixture, build, dump
from allsight.models import Model, MultiHead, Parts, model_for_tasks, num_parameters
from allsight.tasks import Task, build_tasks
from allsight.types import Query, Vocabulary

TASKS = Mixture(
    dots=toys.ToyDots.Config(), captions=toys.ToyCaptioning.Config(), drive=toys.ToyDrive.Config()
)
MODEL = Parts.Config(
    parts=Mixture(
        heads=MultiHead.Config(backbone=toys.ToyBackbone.Config()),
        generalist=toys.ToyGeneralist.Config(),
        driver=toys.ToyDriver.Config(),
    ),
    route=Mixture(dots="heads", captions="generalist", drive="driver"),
)
NAMES = list(TASKS)


@pytest.fixture
def tasks():
    return build_tasks(TASKS, None)


@pytest.fixture
def model(tasks):
    torch.manual_seed(0)
    return model_for_tasks(MODEL, tasks)


def batch_of(task, split, indices):
    reader, transform = task.reader(split), task.transform(split)
    return task.collate([transform(reader[i], np.random.default_rng(i)) for i in indices])


def batches(task, split, *, rows, steps):
    """Streams where the reader has sequences (one per row, laid end to end), else samples in order."""
    reader = task.reader(split)
    if not hasattr(reader, "sequences"):
        for step in range(steps):
            yield batch_of(task, split, [(step * rows + i) % len(reader) for i in range(rows)])
        return
    length = -(-len(reader) // rows)
    firsts = set(np.cumsum([0, *reader.sequences]).tolist())
    for step in range(steps):
        frames = [(slot * length + step % length) % len(reader) for slot in range(rows)]
        starts = [step % length == 0 or frame in firsts for frame in frames]
        yield replace(batch_of(task, split, frames), starts=torch.tensor(starts))


def score(model, task, *, with_state=True):
    metric, state = task.metric(), None
    with torch.inference_mode():
        for batch in batches(task, "val", rows=8, steps=len(task.reader("val")) // 8):
            outputs, state = model(batch, state if with_state else None)
            metric.update(task.decode(outputs, batch), batch)
    return metric.compute()[task.main_metric()]


def test_they_are_learnt_together_within_fifty_steps_and_the_drive_only_with_state(model, tasks):
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    feeds = {name: batches(task, "train", rows=12, steps=50) for name, task in tasks.items()}
    states = dict.fromkeys(tasks)
    for step in range(50):
        optimiser.zero_grad()
        for name, task in tasks.items():
            batch = next(feeds[name])
            outputs, states[name] = model(batch, states[name])
            sum(task.loss(outputs, batch).values()).backward()
        optimiser.step()
        model.after_step(step)
    assert score(model, tasks["dots"]) >= 0.95
    assert score(model, tasks["captions"]) >= 0.95
    assert score(model, tasks["drive"]) >= 0.85
    assert score(model, tasks["drive"], with_state=False) <= 0.65


def test_they_are_small_and_every_parameter_gets_a_gradient(model, tasks):
    assert num_parameters(model) < 50_000
    state = None
    for name in NAMES:
        # Two steps, since the state of a stream is used from the second on.
        for batch in batches(tasks[name], "train", rows=4, steps=2):
            outputs, state = model(batch, None if state is None or name != "drive" else state)
            sum(tasks[name].loss(outputs, batch).values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_see_each_other_and_float64_stays_float64(model, tasks, name):
    model.double()
    first, batch = batches(tasks[name], "train", rows=6, steps=2)
    _, state = model(first)
    whole, _ = model(batch, state)
    part = replace(batch_of(tasks[name], "train", _indices(tasks[name], batch, 3)), starts=batch.starts[:3])
    alone, _ = model(part, None if state is None else {key: value[:3] for key, value in state.items()})
    for key, value in alone.items():
        if value.is_floating_point():
            assert value.dtype is torch.float64
        torch.testing.assert_close(value, whole[key][:3], rtol=1e-12, atol=1e-12)


def _indices(task, batch, rows):
    reader = task.reader("train")
    ids = [reader[i].id for i in range(len(reader))]
    return [ids.index(id) for id in batch.ids[:rows]]


@pytest.mark.parametrize("name", NAMES)
def test_losses_do_not_depend_on_how_a_batch_is_split(model, tasks, name):
    model.double()
    task = tasks[name]
    batch = batch_of(task, "train", range(7))
    whole = task.loss(model(batch)[0], batch)
    total, parts = task.counts(batch), dict.fromkeys(whole, 0.0)
    for rows in (range(0, 2), range(2, 7)):
        part = batch_of(task, "train", rows)
        counts = task.counts(part)
        for key, value in task.loss(model(part)[0], part).items():
            share = counts[key] / total[key] if key in task.counted else len(part) / len(batch)
            parts[key] = parts[key] + share * value
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", ["dots", "captions"])
def test_answers_without_targets_have_the_form_of_answers_with_them(model, tasks, name):
    task = tasks[name]
    batch = replace(batch_of(task, "val", range(3)), targets={})
    answers = task.decode(model(batch)[0], batch)
    assert [answer.id for answer in answers] == list(batch.ids)
    assert {type(answer) for answer in answers} == {
        type(t) for t in task.truth(batch_of(task, "val", range(3)))
    }


def test_captions_have_different_lengths_and_one_padded_size(tasks):
    task = tasks["captions"]
    batch = batch_of(task, "train", range(20))
    assert batch.targets["words"].shape == (20, toys.MAX_WORDS)
    assert len((batch.targets["words"] != toys.PAD).sum(dim=1).unique()) > 1
    assert batch_of(task, "train", [0]).targets["words"].shape == (1, toys.MAX_WORDS)
    query = task.cast(batch)
    assert isinstance(query, Query)
    assert isinstance(query.among, Vocabulary)
    assert query.inputs[query.read].causal
    assert ((query.labels == -100) == ~query.inputs[query.read].mask).all()


def test_a_word_changes_only_what_comes_after_it(model, tasks):
    task = tasks["captions"]
    batch = batch_of(task, "train", range(3))
    before, _ = model.double()(batch)
    words = batch.targets["words"].clone()
    words[:, 1] = toys.WORDS.index("red")
    after, _ = model(replace(batch, targets={"words": words}))
    # Word 1 is an input from position 2 on.
    torch.testing.assert_close(after["logits"][:, :2], before["logits"][:, :2], rtol=1e-12, atol=1e-12)
    assert (after["logits"][:, 2:] - before["logits"][:, 2:]).abs().amax() > 1e-3


def test_the_first_words_alone_give_the_logits_of_one_pass(model, tasks):
    task = tasks["captions"]
    batch = batch_of(task, "train", range(3))
    whole, _ = model.double()(batch)
    prefix, _ = model(replace(batch, targets={}))
    torch.testing.assert_close(prefix["logits"][:, 0], whole["logits"][:, 0], rtol=1e-12, atol=1e-12)


def test_padding_words_change_nothing(model, tasks):
    task = tasks["captions"]
    batch = batch_of(task, "train", range(4))
    real = batch.targets["words"] != toys.PAD
    query = task.cast(batch)
    text = query.inputs[1]
    noise = torch.where(text.mask, text.content, torch.full_like(text.content, 5))
    part = model.parts["generalist"].double()
    expected, _ = part(batch)
    noisy = replace(query, inputs=(query.inputs[0], replace(text, content=noise)))
    part.tasks = {"captions": type("Fixed", (), {"cast": staticmethod(lambda batch: noisy)})()}
    actual, _ = part(batch)
    torch.testing.assert_close(actual["logits"][real], expected["logits"][real], rtol=1e-12, atol=1e-12)


def test_rows_that_start_forget_whatever_is_in_their_state(model, tasks):
    first, second = batches(tasks["drive"], "train", rows=4, steps=2)
    _, state = model(first)
    assert all(not value.requires_grad and len(value) == 4 for value in state.values())
    starts = torch.tensor([True, False, True, False])
    fresh, _ = model(second)
    poisoned = {key: value.clone() for key, value in state.items()}
    for value in poisoned.values():
        value[starts] = torch.nan
    outputs, after = model(replace(second, starts=starts), poisoned)
    torch.testing.assert_close(outputs["logits"][starts], fresh["logits"][starts])
    assert not torch.allclose(outputs["logits"][~starts], fresh["logits"][~starts])
    outputs["logits"].sum().backward()
    assert all(value.isfinite().all() for value in after.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_the_drive_asks_for_the_frame_before(tasks):
    reader = tasks["drive"].reader("train")
    assert len(reader) == sum(reader.sequences)
    assert len(set(reader.sequences)) > 1
    frames = [reader[i] for i in range(reader.sequences[0])]
    assert frames[0].targets["label"] < 2
    bright = [frame.inputs["rig"].images[0].pixels.float().mean((0, 1)) for frame in frames]
    shown = [int(columns[4:].mean() > columns[:4].mean()) for columns in bright]
    assert [frame.targets["label"] // 2 for frame in frames[1:]] == shown[:-1]
    positions = [float(frame.inputs["rig"].world_from_ref[0, 3]) for frame in frames]
    moved = [frame.targets["travelled_m"] for frame in frames]
    assert np.diff(positions) == pytest.approx(moved[1:], abs=1e-5)
    assert frames[-1].id == f"drive0/{reader.sequences[0] - 1}"


def test_readers_give_the_same_sample_again_and_other_ones_to_judge(tasks):
    for task in tasks.values():
        train, val = task.reader("train"), task.reader("val")
        assert train[3].id == train[3].id
        first, again = batch_of(task, "train", [3]), batch_of(task, "train", [3])
        pixels = [_pixels(batch) for batch in (first, again, batch_of(task, "val", [3]))]
        assert torch.equal(pixels[0], pixels[1])
        assert not torch.equal(pixels[0], pixels[2])
        assert len(val) > 0


def _pixels(batch):
    return batch.inputs["image"] if "image" in batch.inputs else batch.inputs["rig"].images


def test_their_configuration_survives_being_written_and_read():
    for name, config in TASKS.items():
        changed = config.model_copy(update={"batch_size": 7, "share": 0.25})
        assert build(Task.Config, dump(changed), trust=True) == changed, name
    assert build(Model.Config, dump(MODEL), trust=True) == MODEL
