"""Which rows each rank puts into which micro-batch."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allsight.config import ConfigError
from allsight.data.sampler import Plan, Sampler, TaskPlan

THREE = {
    "a": TaskPlan(size=1000, batch_size=96, share=0.5),
    "b": TaskPlan(size=37, batch_size=48, share=0.3),
    "c": TaskPlan(size=11, batch_size=144, share=0.2),
}
LAYOUTS = ("one_task", "mixed_batch", "mixed_lanes")


def plan(tasks=None, layout="one_task", **settings):
    return Plan(0, tasks or THREE, layout, lanes=1 if layout == "one_task" else 4, **settings)


def rows_of(rows):
    """One tuple a row, in order."""
    return list(
        zip(
            rows.slots.tolist(),
            rows.indices.tolist(),
            rows.draws.tolist(),
            rows.places.tolist(),
            rows.starts.tolist(),
            strict=True,
        )
    )


def own_rows(sampler, step, task, micro):
    found = sampler.micro_rows(step, task, micro)
    return rows_of(found.rows)[found.own]


def rows_over_ranks(step, tasks, layout, world, accumulate=1, seed=0):
    """{task: rows of all ranks and micro-batches, by slot}, and the shape that all ranks agree on."""
    seen, shapes = {}, []
    for rank in range(world):
        sampler = Sampler(plan(tasks, layout, rank=rank, world=world, accumulate=accumulate))
        shape = sampler.shape(step)
        shapes.append((shape.number, shape.tasks, shape.weights, shape.sizes))
        for task in shape.tasks:
            for micro in range(shape.micro_batches[task]):
                seen.setdefault(task, []).extend(own_rows(sampler, step, task, micro))
    assert all(shape == shapes[0] for shape in shapes)
    return {task: sorted(rows) for task, rows in seen.items()}, shapes[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (4, 1), (1, 3), (2, 3)])
def test_the_global_batch_does_not_depend_on_ranks_and_accumulation(layout, world, accumulate):
    for step in (0, 1, 7, 23, 10_000):
        expected, expected_shape = rows_over_ranks(step, THREE, layout, 1)
        actual, shape = rows_over_ranks(step, THREE, layout, world, accumulate)
        assert shape == expected_shape
        assert actual == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_the_micro_batches_are_the_rows_of_the_step(layout):
    sampler = Sampler(plan(layout=layout, accumulate=3))
    for step in range(20):
        shape = sampler.shape(step)
        for task in shape.tasks:
            rows = sampler.rows(step, task)
            assert len(rows) == shape.sizes[task]
            assert rows.slots.tolist() == sorted(set(rows.slots.tolist()))
            parts = [own_rows(sampler, step, task, micro) for micro in range(3)]
            assert [row for part in parts for row in part] == rows_of(rows)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_add_up_and_are_the_share_of_lanes(layout):
    sampler = Sampler(plan(layout=layout))
    for step in range(30):
        shape = sampler.shape(step)
        assert sum(shape.weights.values()) == pytest.approx(1)
        for task in shape.tasks:
            assert shape.sizes[task] == shape.weights[task] * THREE[task].batch_size
    assert list(sampler.shape(0).tasks) == [t for t in THREE if t in sampler.shape(0).tasks]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [3, 8, 20])
def test_epochs_are_whole_also_where_one_batch_holds_several(layout, size):
    tasks = {
        "small": TaskPlan(size=size, batch_size=8, share=0.7),
        "other": TaskPlan(size=50, batch_size=4, share=0.3),
    }
    sampler = Sampler(plan(tasks, layout))
    seen = []
    for step in range(60):
        if "small" in sampler.shape(step).tasks:
            seen += sampler.rows(step, "small").indices.tolist()
    for epoch in range(len(seen) // size):
        assert sorted(seen[epoch * size : (epoch + 1) * size]) == list(range(size))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_two_rows_of_a_run_share_their_randomness(layout):
    sampler = Sampler(plan({"a": TaskPlan(size=3, batch_size=8)}, layout))
    keys = [key for step in range(40) for key in zip(*places_of(sampler.rows(step, "a")), strict=True)]
    assert len(set(keys)) == len(keys)


def places_of(rows):
    return rows.draws.tolist(), rows.places.tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_far_away_of_a_huge_set_is_found_at_once(layout):
    tasks = {"huge": TaskPlan(size=10**9, batch_size=64), "a": TaskPlan(size=10, batch_size=4, share=0.001)}
    sampler = Sampler(plan(tasks, layout))
    rows = sampler.rows(10**6, "huge")
    assert len(set(rows.indices.tolist())) == len(rows)
    # Nothing as long as the data set or the history was made on the way.
    assert all(len(block) <= 1001 for block in sampler._draws._blocks.values())
    assert sampler._shuffles._listed == {}


def test_mixed_lanes_keeps_rows_on_the_rank_of_their_lane():
    whole = Sampler(plan(layout="mixed_lanes"))
    for rank in range(2):
        sampler = Sampler(plan(layout="mixed_lanes", rank=rank, world=2))
        for step in range(20):
            shape = sampler.shape(step)
            for task in whole.shape(step).tasks:
                lanes = {
                    slot // whole.plan.rows_per_lane(task) for slot in whole.rows(step, task).slots.tolist()
                }
                own = {lane for lane in lanes if lane // 2 == rank}
                assert shape.micro_batches[task] == (1 if own else 0)
                if own:
                    slots = [row[0] for row in own_rows(sampler, step, task, 0)]
                    assert {slot // sampler.plan.rows_per_lane(task) for slot in slots} == own


def test_proportional_shares_follow_sizes():
    tasks = {
        "a": TaskPlan(size=400, batch_size=4),
        "b": TaskPlan(size=100, batch_size=1),
        "c": TaskPlan(100, 4),
    }
    assert Plan(0, tasks, proportional=1.0).draws().counts_before(9) == (36, 36, 9)
    assert Plan(0, tasks, proportional=0.5).draws().counts_before(5) == (10, 10, 5)
    assert Plan(0, tasks, proportional=0.0).draws().counts_before(4) == (4, 4, 4)


STREAMS = {
    "drive": TaskPlan(size=23, batch_size=4, share=0.6, sequences=(7, 3, 8, 5)),
    "a": TaskPlan(size=9, batch_size=4, share=0.4),
}


@pytest.mark.parametrize("layout", ["one_task", "mixed_lanes"])
def test_all_frames_of_a_stream_share_their_randomness(layout):
    """What is drawn for a frame hangs on the draw in which its stream began, in any step and rank."""
    sampler = Sampler(plan(STREAMS, layout))
    began = {}
    for step in range(80):
        if "drive" not in sampler.shape(step).tasks:
            continue
        rows = sampler.rows(step, "drive")
        for slot, draw, begun, start in zip(rows.slots, rows.draws, rows.begun, rows.starts, strict=True):
            if start:
                began[slot] = draw
            assert begun == began[slot]
    assert len(set(began.values())) > 1


@pytest.mark.parametrize("layout", ["one_task", "mixed_lanes"])
@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1)])
def test_streams_go_on_frame_by_frame_in_their_slot(layout, world, accumulate):
    samplers = [Sampler(plan(STREAMS, layout, rank=rank, world=world)) for rank in range(world)]
    last, home, seen = {}, {}, []
    for step in range(60):
        for rank, sampler in enumerate(samplers):
            shape = sampler.shape(step)
            for micro in range(shape.micro_batches.get("drive", 0)):
                for slot, index, _, _, start in own_rows(sampler, step, "drive", micro):
                    assert start or index == last[slot] + 1
                    assert home.setdefault(slot, rank) == rank
                    last[slot] = index
                    seen.append(index)
    assert sorted(home) == [0, 1, 2, 3]
    assert set(seen) == set(range(23))


share_at_a_knot = st.integers(1, 20).map(lambda n: n / 20)


@settings(max_examples=8, deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS),
    knots=st.lists(st.tuples(share_at_a_knot, share_at_a_knot), min_size=3, max_size=3),
    first=st.sampled_from([0, 13, 10**6]),
)
def test_scheduled_mixtures_with_streams_are_the_same_for_all_ranks_and_resumes(layout, knots, first):
    tasks = {
        "a": TaskPlan(size=1000, batch_size=96, share=((0, knots[0][0]), (30, knots[0][1]))),
        "b": TaskPlan(size=37, batch_size=48, share=((10, knots[1][0]), (25, knots[1][1]))),
    }
    if layout != "mixed_batch":
        share = ((0, knots[2][0]), (40, knots[2][1]))
        tasks["drive"] = TaskPlan(size=23, batch_size=4, share=share, sequences=(7, 3, 8, 5))
    steps = range(first, first + 6)
    whole = [rows_over_ranks(step, tasks, layout, 1) for step in steps]
    # 2 -> 1 -> 2 ranks, and 4, each beginning anew.
    for step, world in zip(steps, (2, 2, 1, 2, 4, 1), strict=True):
        assert rows_over_ranks(step, tasks, layout, world) == whole[step - first]


@settings(max_examples=100, deadline=None)
@given(
    layout=st.sampled_from(LAYOUTS),
    world=st.sampled_from([1, 2, 4]),
    accumulate=st.sampled_from([1, 2, 3]),
    group=st.sampled_from([1, 2, 3, 4, 6, 8, 16]),
    batch=st.sampled_from([4, 8, 16, 24, 48, 96]),
    mixes=st.booleans(),
)
def test_micro_batches_hold_whole_groups_over_their_ranks_or_are_refused(
    layout, world, accumulate, group, batch, mixes
):
    tasks = {
        "a": TaskPlan(size=1000, batch_size=batch, group_size=group, mixes=mixes),
        "b": TaskPlan(10, 192),
    }
    try:
        samplers = [
            Sampler(plan(tasks, layout, rank=rank, world=world, accumulate=accumulate))
            for rank in range(world)
        ]
    except ConfigError as error:
        assert str(error).startswith("config.tasks.a.")
        assert "\n" not in str(error)
        return
    step = next(step for step in range(50) if "a" in samplers[0].shape(step).tasks)
    for micro in range(accumulate):
        gathered = []
        for sampler in samplers:
            if not sampler.shape(step).micro_batches["a"]:
                continue
            found = sampler.micro_rows(step, "a", micro)
            own = found.rows.slots[found.own]
            gathered += own.tolist()
            assert found.group_ranks == 1 or layout != "mixed_lanes"
            assert len(own) * found.group_ranks >= group
            if found.group_ranks == 1:
                assert sorted(own.tolist()) == whole_groups(own, group)
            if mixes:
                assert found.rows.slots.tolist() == whole_groups(own, group)
            else:
                assert found.own == slice(0, len(found.rows))
        assert sorted(gathered) == whole_groups(np.array(gathered), group)


def whole_groups(slots, group):
    return sorted({slot // group * group + i for slot in slots.tolist() for i in range(group)})


def test_a_group_larger_than_a_micro_batch_spans_neighbouring_ranks():
    tasks = {"a": TaskPlan(size=100, batch_size=16, group_size=8)}
    found = [Sampler(plan(tasks, rank=rank, world=4)).micro_rows(0, "a", 0) for rank in range(4)]
    assert [rows.group_ranks for rows in found] == [2, 2, 2, 2]
    assert [rows.rows.slots.tolist() for rows in found] == [
        list(range(4 * rank, 4 * rank + 4)) for rank in range(4)
    ]


@pytest.mark.parametrize(
    ("tasks", "settings", "message"),
    [
        (
            {"a": TaskPlan(10, 6, group_size=4)},
            {},
            "tasks.a.group_size: 4 does not divide batch_size 6; expected one of 1, 2, 3, 6",
        ),
        (
            {"a": TaskPlan(10, 6)},
            {"world": 4},
            "tasks.a.batch_size: 6 cannot be split evenly over 4 ranks; expected a multiple of 4",
        ),
        (
            {"a": TaskPlan(10, 6)},
            {"world": 2, "accumulate": 2},
            "tasks.a.batch_size: 6 cannot be split evenly over 2 ranks x accumulate 2; "
            "expected a multiple of 4",
        ),
        (
            {"a": TaskPlan(10, 8)},
            {"layout": "mixed_batch", "lanes": 4, "world": 4},
            "tasks.a.batch_size: 8 cannot be split evenly over 4 lanes x 4 ranks; expected a multiple of 16",
        ),
        (
            {"a": TaskPlan(10, 12, group_size=4)},
            {"layout": "mixed_lanes", "lanes": 2},
            "tasks.a.group_size: 4 does not divide the 6 rows of a lane (batch_size 12 / 2 lanes); "
            "expected one of 1, 2, 3, 6",
        ),
        (
            {"a": TaskPlan(10, 12, group_size=2)},
            {"accumulate": 4},
            "tasks.a.group_size: groups of 2 cannot be kept whole in micro-batches of 3 rows (batch_size 12, "
            "accumulate 4); set a batch_size that is a multiple of 8",
        ),
        (
            {"a": TaskPlan(10, 8, group_size=8)},
            {"accumulate": 2},
            "tasks.a.group_size: groups of 8 cannot be kept whole in micro-batches of 4 rows (batch_size 8, "
            "accumulate 2); set a batch_size that is a multiple of 16",
        ),
        (
            {"a": TaskPlan(10, 24, group_size=6)},
            {"world": 6},
            None,
        ),
        (
            {"a": TaskPlan(10, 8)},
            {"layout": "mixed_batch", "lanes": 3, "world": 2},
            "sampling.lanes: 3 lanes cannot be dealt to 2 ranks; expected a multiple of 2",
        ),
        ({"a": TaskPlan(0, 8)}, {}, "tasks.a.data: no training samples"),
        (
            {"a": TaskPlan(10, 8, sequences=(4, 5))},
            {},
            "tasks.a.data: its sequences hold 9 frames, the reader 10; expected sequences of at least 1 "
            "frame that add up to the reader's length",
        ),
        (
            {"a": TaskPlan(10, 8, sequences=(5, 5))},
            {"layout": "mixed_batch", "lanes": 2},
            "sampling.layout: mixed_batch deals rows to changing ranks, but task 'a' has streams, which must "
            "stay on theirs; set one_task or mixed_lanes",
        ),
        (
            {"a": TaskPlan(10, 9, sequences=(5, 5))},
            {"layout": "mixed_lanes", "lanes": 2},
            "tasks.a.batch_size: 9 cannot be split evenly over 2 lanes; expected a multiple of 2",
        ),
    ],
)
def test_contradictory_settings_are_refused_with_path_and_remedy(tasks, settings, message):
    if message is None:
        message = (
            "tasks.a.group_size: groups of 6 cannot be kept whole in micro-batches of 4 rows on 6 ranks "
            "(batch_size 24, accumulate 1); set a batch_size that is a multiple of 36"
        )
    with pytest.raises(ConfigError) as error:
        Plan(0, tasks, **settings)
    assert str(error.value) == f"config.{message}"


def test_the_proposed_batch_size_is_accepted():
    def refusal(batch_size, group_size, **ranks):
        try:
            Plan(0, {"a": TaskPlan(10, batch_size, group_size=group_size)}, **ranks)
        except ConfigError as error:
            return str(error)
        return ""

    num_refused = 0
    for world, accumulate, group, batch in product((1, 2, 3, 4), (1, 2, 3), (2, 3, 8), (6, 8, 24, 36)):
        message = refusal(batch, group, world=world, accumulate=accumulate)
        if "multiple of" in message:
            num_refused += 1
            proposed = int(message.rpartition(" ")[2])
            kept = group if message.startswith("tasks.a.group_size") else 1
            assert not refusal(proposed, kept, world=world, accumulate=accumulate)
    assert num_refused > 20


def test_a_thousand_tasks_are_drawn_by_their_shares():
    tasks = {f"t{i}": TaskPlan(size=100 + i, batch_size=4, share=1.0 + i % 3) for i in range(1000)}
    sampler = Sampler(Plan(0, tasks))
    draws = sampler.plan.draws()
    drawn = [draws.task_at(step) for step in range(draws.block_length)]
    for task, count in enumerate(np.bincount(drawn, minlength=1000)):
        assert abs(count - draws.block_length * (1 + task % 3) / 1999) <= 1


def test_a_plan_in_memory_says_why_it_cannot_go_to_a_worker():
    import pickle

    with pytest.raises(ConfigError, match=r"data\.workers: this plan holds objects in memory"):
        pickle.dumps(plan())
