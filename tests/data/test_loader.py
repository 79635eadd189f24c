"""The Meta Dataloader gives the same steps however it is run."""

import gc
import re
import signal
import subprocess
import sys
import time
import weakref
from itertools import islice
from pathlib import Path

import pytest
import torch

from allsight.config import ConfigError
from allsight.config.base import import_file
from allsight.data import workers
from allsight.data.loader import MetaDataloader
from allsight.data.making import LoadingError
from allsight.data.sampler import Plan
from allsight.types import DataError
from allsight.types.batches import map_tensors

toy = import_file(Path(__file__).with_name("toy_loading.py"))

LAYOUTS = ("one_task", "mixed_batch", "mixed_lanes")
TASKS = {
    "cats": toy.Settings(batch_size=8, share=0.5, size=30, corrupt=(3, 11)),
    "pairs": toy.Settings(batch_size=16, share=0.3, size=300, group_size=2),
    "drive": toy.Settings(batch_size=8, share=0.2, size=40, sequences=(11, 20, 9), corrupt=(5,)),
}
NO_STREAMS = {name: TASKS[name] for name in ("cats", "pairs")}


def tasks_for(layout):
    return NO_STREAMS if layout == "mixed_batch" else TASKS


def plan_of(layout, **settings):
    return toy.toy_plan(tasks_for(layout), layout=layout, lanes=1 if layout == "one_task" else 4, **settings)


def plain(value):
    """Tensors as lists with what else decides about bits, so that == compares all of it."""
    return map_tensors(lambda t: (t.dtype, t.stride(), t.tolist()), value)


def described(batch):
    return (
        batch.task,
        batch.ids,
        plain(batch.inputs),
        plain(batch.targets),
        plain(batch.slots),
        plain(batch.starts),
        batch.group_size,
        batch.group_ranks,
        batch.corrupt,
    )


def steps_of(plan, count, start=0, **options):
    with MetaDataloader(plan, start, **options) as loader:
        return [
            (
                step.number,
                step.tasks,
                step.weights,
                step.sizes,
                {task: [described(batch) for batch in batches] for task, batches in step.batches.items()},
            )
            for step in islice(loader, count)
        ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps_do_not_depend_on_the_number_of_workers(layout):
    expected = steps_of(plan_of(layout), 12)
    assert steps_of(plan_of(layout), 12, num_workers=1) == expected
    assert steps_of(plan_of(layout), 12, num_workers=2, prefetch=3) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_that_starts_at_step_n_goes_on_as_one_that_never_stopped(layout):
    expected = steps_of(plan_of(layout), 14)
    for start in (1, 11):
        assert steps_of(plan_of(layout), 14 - start, start) == expected[start:]


def rows_by_slot(steps_of_ranks):
    """[{(task, slot): (id, pixels, label, start)}] for each step, over ranks and micro-batches."""
    found = []
    for of_ranks in zip(*steps_of_ranks, strict=True):
        rows, corrupt = {}, []
        for step in of_ranks:
            for task, batches in step.batches.items():
                for batch in batches:
                    corrupt += batch.corrupt
                    for row, slot in enumerate(batch.slots.tolist()):
                        assert (task, slot) not in rows
                        rows[task, slot] = (
                            batch.ids[row],
                            batch.inputs["image"][row].tolist(),
                            batch.targets["label"][row].item(),
                            batch.starts[row].item(),
                            batch.targets["share"][row].item() if "share" in batch.targets else None,
                        )
        found.append((rows, sorted(map(str, corrupt))))
    return found


@pytest.mark.parametrize(
    ("layout", "world", "accumulate"),
    [(layout, world, accumulate) for layout in LAYOUTS for world, accumulate in ((2, 1), (1, 2))]
    + [("one_task", 4, 1), ("mixed_lanes", 4, 1), ("one_task", 2, 2), ("mixed_lanes", 2, 2)],
)
def test_rows_do_not_depend_on_ranks_and_accumulation(layout, world, accumulate):
    expected = rows_by_slot([list(islice(MetaDataloader(plan_of(layout)), 8))])
    actual = rows_by_slot(
        [
            list(islice(MetaDataloader(plan_of(layout, rank=rank, world=world, accumulate=accumulate)), 8))
            for rank in range(world)
        ]
    )
    assert actual == expected


def test_a_group_that_is_mixed_on_several_ranks_is_read_whole_on_each():
    tasks = {"a": toy.Settings(batch_size=8, group_size=4, size=100, corrupt=(1, 2, 3, 4, 5, 6, 7))}
    ranks = [list(islice(MetaDataloader(toy.toy_plan(tasks, rank=rank, world=4)), 10)) for rank in range(4)]
    assert rows_by_slot(ranks) == rows_by_slot([list(islice(MetaDataloader(toy.toy_plan(tasks)), 10))])
    for steps in zip(*ranks, strict=True):
        for rank, step in enumerate(steps):
            (batch,) = step.batches["a"]
            assert (batch.group_size, batch.group_ranks, len(batch)) == (4, 2, 2)
            neighbour = steps[rank ^ 1].batches["a"][0]
            assert set(batch.targets["group"][0]) == {*batch.ids, *neighbour.ids}


def test_samples_of_a_group_share_their_mix_and_groups_differ():
    tasks = {"a": toy.Settings(batch_size=8, group_size=4, size=100)}
    shares = [
        step.batches["a"][0].targets["share"] for step in islice(MetaDataloader(toy.toy_plan(tasks)), 5)
    ]
    groups = torch.stack(shares).view(-1, 4)
    assert (groups == groups[:, :1]).all()
    assert len(set(groups[:, 0].tolist())) == len(groups)


def test_tasks_that_do_not_mix_are_not_asked_to():
    tasks = {"a": toy.Settings(batch_size=8, group_size=4)}
    batch = next(MetaDataloader(toy.toy_plan(tasks, mixing=None))).batches["a"][0]
    assert "share" not in batch.targets
    assert batch.group_size == 4


def test_the_same_sample_is_augmented_anew_each_time():
    tasks = {"a": toy.Settings(batch_size=8, size=2)}
    images = [
        image
        for step in islice(MetaDataloader(toy.toy_plan(tasks)), 4)
        for image in step.batches["a"][0].inputs["image"].flatten(1).tolist()
    ]
    assert len({tuple(image) for image in images}) == 32


def test_the_loader_ends_with_the_run():
    plan = toy.toy_plan({"a": toy.Settings()}, steps=5)
    assert [step.number for step in MetaDataloader(plan, 2)] == [2, 3, 4]
    assert list(MetaDataloader(plan, 5)) == []


def test_waiting_is_measured():
    loader = MetaDataloader(toy.toy_plan({"a": toy.Settings()}))
    steps = list(islice(loader, 3))
    assert all(step.wait_s > 0 for step in steps)
    assert loader.waited_s == pytest.approx(sum(step.wait_s for step in steps))


def test_batches_go_to_the_device_asked_for():
    batch = next(MetaDataloader(toy.toy_plan({"a": toy.Settings()}), device="meta")).batches["a"][0]
    assert batch.inputs["image"].device.type == batch.slots.device.type == "meta"


def test_pixels_stay_uint8():
    assert next(MetaDataloader(plan_of("one_task"))).batches["cats"][0].inputs["image"].dtype is torch.uint8


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_exception_in_a_task_names_task_sample_and_step(num_workers):
    tasks = {"good": toy.Settings(), "bad": toy.Settings(trouble={13: "raise"})}
    with (
        MetaDataloader(toy.toy_plan(tasks), num_workers=num_workers) as loader,
        pytest.raises(LoadingError, match=r"^task 'bad', sample index 13, step \d+: KeyError: 'label'(\n|$)"),
    ):
        list(islice(loader, 30))


def test_steps_before_a_faulty_one_are_still_given_with_workers():
    tasks = {"bad": toy.Settings(trouble={13: "raise"})}
    seen = {}
    for num_workers in (0, 2):
        numbers = []
        loader = MetaDataloader(toy.toy_plan(tasks), num_workers=num_workers)
        with loader, pytest.raises(LoadingError):
            for step in loader:
                numbers.append(step.number)
        seen[num_workers] = numbers
    assert seen[0] == seen[2]


@pytest.mark.parametrize(
    ("trouble", "how"),
    [
        ("die", r"exit status 7"),
        ("kill", r"killed by SIGKILL; was memory short\?"),
        ("hang", r"stopped, since the sample took longer than 1 s \(sample_timeout_s\)"),
    ],
)
def test_a_sample_that_ends_workers_is_replaced_and_nothing_else_changes(trouble, how):
    tasks = {"good": toy.Settings(), "bad": toy.Settings(trouble={13: trouble}, sample_timeout_s=1.0)}
    unusable = {"good": toy.Settings(), "bad": toy.Settings(corrupt=(13,))}
    with MetaDataloader(toy.toy_plan(unusable)) as loader:
        expected = list(islice(loader, 30))
    with MetaDataloader(toy.toy_plan(tasks), num_workers=2) as loader:
        steps = list(islice(loader, 30))
        news = loader.workforce.news()
    assert len(steps) == 30
    for step, same in zip(steps, expected, strict=True):
        assert step.tasks == same.tasks
        for name in step.tasks:
            for batch, twin in zip(step.batches[name], same.batches[name], strict=True):
                assert batch.ids == twin.ids
                assert torch.equal(batch.inputs["image"], twin.inputs["image"])
    bad = [each for step in steps for batch in step.batches.get("bad", ()) for each in batch.corrupt]
    assert {each.id for each in bad} == {"bad[13]"}
    assert all(re.search(rf"^ended a data worker twice \({how}\)$", each.reason) for each in bad)
    assert all(each.replacement.startswith("bad/") for each in bad)
    assert len(news) >= 2
    for line in news:
        assert re.match(rf"data worker \d died \({how}\) at task 'bad', sample index 13 for step \d+; ", line)
        assert line.endswith("a new one was started, training goes on")
    assert loader.workforce.news() == []


def test_a_sample_that_ends_a_worker_once_is_used(tmp_path):
    tasks = {"a": toy.Settings(trouble={13: f"die once {tmp_path / 'died'}"})}
    with MetaDataloader(toy.toy_plan(tasks), num_workers=1) as loader:
        steps = list(islice(loader, 10))
        assert len(loader.workforce.news()) == 1
    assert not any(batch.corrupt for step in steps for batch in step.batches["a"])
    assert any("a/13" in batch.ids for step in steps for batch in step.batches["a"])


def test_a_run_whose_workers_die_everywhere_is_given_up():
    tasks = {"a": toy.Settings(size=400, trouble=dict.fromkeys(range(400), "die"))}
    with (
        MetaDataloader(toy.toy_plan(tasks), num_workers=1) as loader,
        pytest.raises(LoadingError, match=r"^data worker 0 died \(exit status 7\), the 4th of this run"),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(workers, "_MOST_ENDS", 3)
        list(islice(loader, 30))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_say_what_they_cost(num_workers):
    with MetaDataloader(toy.toy_plan({"a": toy.Settings()}), num_workers=num_workers) as loader:
        (batch,) = next(loader).batches["a"]
    costs = batch.costs
    assert costs.samples == 4
    # uint8 pictures of 3 x 4 x 4, and labels of 8 bytes.
    assert costs.bytes == 4 * (48 + 8)
    assert min(costs.read_s, costs.transform_s, costs.collate_s, costs.wait_s) > 0


def test_a_worker_that_cannot_set_up_says_why():
    plan = toy.toy_plan({"a": toy.Settings()})
    broken = Plan(plan.seed, plan.tasks, sources=plan.sources, rebuild=(toy.not_rebuilt, ()))
    with (
        MetaDataloader(broken, num_workers=1) as loader,
        pytest.raises(LoadingError, match="could not set up the tasks: OSError: the disk is gone"),
    ):
        next(loader)


def test_closing_does_not_wait_for_a_worker_that_hangs():
    tasks = {"a": toy.Settings(trouble=dict.fromkeys(range(20), "hang"))}
    loader = MetaDataloader(toy.toy_plan(tasks), num_workers=2)
    loader._order_ahead()
    processes = loader.workforce.processes
    loader.close()
    loader.close()
    assert not any(process.is_alive() for process in processes)
    with pytest.raises(ValueError, match="closed"):
        next(loader)


def test_workers_end_when_the_training_process_is_killed(tmp_path):
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import toy_loading as toy
from allsight.data import workers
from allsight.data.loader import MetaDataloader
if __name__ == "__main__":
    loader = MetaDataloader(toy.toy_plan({{"a": toy.Settings()}}), num_workers=2)
    next(loader)
    print(*[process.pid for process in loader.workforce.processes], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    file = tmp_path / "train.py"
    file.write_text(script)
    killed = subprocess.run([sys.executable, file], stdout=subprocess.PIPE, text=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in killed.stdout.split()]
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in pids)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_forgotten_loader_ends_its_workers():
    loader = MetaDataloader(toy.toy_plan({"a": toy.Settings()}), num_workers=1)
    next(loader)
    processes = loader.workforce.processes
    gone = weakref.ref(loader)
    del loader
    gc.collect()
    assert gone() is None
    assert not any(process.is_alive() for process in processes)


def test_batches_of_closed_workers_stay_readable():
    with MetaDataloader(plan_of("one_task"), num_workers=1) as loader:
        step = next(loader)
        task = step.tasks[0]
        before = described(step.batches[task][0])
    gc.collect()
    assert described(step.batches[task][0]) == before
    step.batches[task][0].inputs["image"].zero_()


def test_a_plan_in_memory_needs_no_workers():
    source = toy.Toy("a", toy.Settings())
    plan = Plan.of_tasks({"a": source}, seed=0)
    assert len(next(MetaDataloader(plan)).batches["a"][0]) == 4
    with pytest.raises(ConfigError, match=r"^config\.data\.workers: this plan holds objects in memory"):
        MetaDataloader(plan, num_workers=1)


def test_a_task_that_loses_rows_is_told_so():
    class Lossy(toy.Toy):
        def collate(self, samples):
            return super().collate(samples[1:])

    plan = Plan.of_tasks({"a": Lossy("a", toy.Settings())}, seed=0)
    with pytest.raises(LoadingError, match=r"task 'a', step 0: collate\(\) made 3 rows \(ids\) of 4 samples"):
        next(MetaDataloader(plan))


def test_a_data_set_without_any_usable_sample_is_refused():
    plan = toy.toy_plan({"a": toy.Settings(size=3, corrupt=(0, 1, 2))})
    with pytest.raises(
        DataError, match=r"task 'a', step 0: sample 'a/\d' and all 50 tried in its place cannot"
    ):
        next(MetaDataloader(plan))
