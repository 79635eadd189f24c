"""Balanced, repeated and bucketed epochs: exact counts, and the same rows however a run is split."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from allsight.config import ConfigError
from allsight.config.base import import_file
from allsight.data.listings import SampleClasses
from allsight.data.loader import MetaDataloader
from allsight.data.order import Shuffles
from allsight.data.policies import Policy, bucket_of, buckets_of, few_of, rates_of
from allsight.data.rates import Rates, class_balanced, repeat_factors
from allsight.data.readers import open_reader
from allsight.data.sampler import Plan, Sampler, TaskPlan
from allsight.data.task_order import TaskOrder

toy = import_file(Path(__file__).with_name("toy_loading.py"))

some_rates = st.lists(st.integers(0, 40).map(lambda n: n / 8), min_size=1, max_size=30)
# Samples with none to three classes of six; a class may be listed twice.
some_labels = st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=40)


def classes_of(rows):
    offsets = np.cumsum([0, *map(len, rows)])
    return SampleClasses(np.array([label for row in rows for label in row], dtype=np.int64), offsets)


def epoch_counts(rates, size, epoch, seed=0):
    places = np.arange(rates.epoch_size)
    return np.bincount(rates.samples(places, epoch, seed=seed, task="t"), minlength=size)


@settings(max_examples=60, deadline=None)
@given(values=some_rates, seed=st.integers(0, 5), first=st.integers(0, 10**9))
def test_a_sample_occurs_as_often_as_its_rate_says(values, seed, first):
    assume(sum(values) >= 1)
    size = round(sum(values))
    values = np.array(values) * size / sum(values)
    rates = Rates(values, epoch_size=size)
    first -= first % 64
    total = np.zeros(len(values))
    for epoch in range(first, first + 64):
        counts = epoch_counts(rates, len(values), epoch, seed)
        assert counts.sum() == size
        assert (np.abs(counts - values) < 1 + 1e-6).all()
        total += counts
    assert (np.abs(total - 64 * values) <= 1 + 1e-6).all()


@settings(max_examples=60, deadline=None)
@given(rows=some_labels, threshold=st.sampled_from([0.01, 0.2, 0.5, 1.0]), epoch=st.integers(0, 2**40))
def test_repeat_factors_are_those_of_lvis_and_lose_no_sample(rows, threshold, epoch):
    share = {c: sum(c in row for row in rows) / len(rows) for row in rows for c in row}
    factor = {c: max(1.0, (threshold / f) ** 0.5) for c, f in share.items()}
    expected = np.array([max((factor[c] for c in row), default=1.0) for row in rows])
    rates = repeat_factors(classes_of(rows), threshold)
    assert sum(expected) - 1e-6 <= rates.epoch_size < sum(expected) + 1
    counts = epoch_counts(rates, len(rows), epoch)
    # Rounding the epoch up stretches rates by less than one place over all samples.
    assert (counts >= 1).all()
    assert (counts >= np.floor(expected)).all()
    assert (counts <= np.ceil(expected + 1 / len(rows) + 1e-9)).all()


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    is_sorted=st.booleans(),
    epoch=st.integers(0, 2**40),
)
def test_balanced_classes_occur_equally_often_in_every_epoch(labels, is_sorted, epoch):
    labels = np.array(sorted(labels) if is_sorted else labels)
    rates = class_balanced(SampleClasses.one_each(labels))
    assert rates.epoch_size == len(labels)
    counts = epoch_counts(rates, len(labels), epoch)
    of_class = np.bincount(labels, weights=counts)
    wanted = len(labels) / len(set(labels.tolist()))
    for label in set(labels.tolist()):
        assert abs(of_class[label] - wanted) < 1 + 1e-6
        # Within a class no sample is preferred.
        assert np.ptp(counts[labels == label]) <= 1


def test_samples_of_several_classes_get_what_each_class_gives_and_bare_ones_are_a_class():
    rates = class_balanced(classes_of([[0], [0, 0, 1], [], [2]]))
    total = sum(epoch_counts(rates, 4, epoch) for epoch in range(64))
    # Four classes, bare included, 4 samples: each class gives 1 to an epoch.
    assert total.tolist() == pytest.approx([32, 96, 64, 64], abs=1)


def order(size, rows, rates=None, buckets=None, seed=0):
    return TaskOrder(seed, Shuffles(seed), "t", size, rows, rates, buckets)


def rows_of_draws(task_order, rows, draws):
    numbers = np.repeat(np.arange(draws), rows)
    places = np.tile(np.arange(rows), draws)
    return task_order.samples(numbers, places).reshape(draws, rows)


@settings(max_examples=40, deadline=None)
@given(
    buckets=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    rows=st.sampled_from([1, 2, 4, 8]),
    seed=st.integers(0, 3),
)
def test_bucketed_batches_hold_one_bucket_and_lose_and_double_nothing(buckets, rows, seed):
    buckets = np.array(buckets)
    size = len(buckets)
    found = rows_of_draws(order(size, rows, buckets=buckets, seed=seed), rows, 6 * size)
    assert (buckets[found] == buckets[found[:, :1]]).all()
    # Each bucket runs through whole epochs of its own, whatever the batch size leaves over.
    for bucket in set(buckets.tolist()):
        own = found[buckets[found[:, 0]] == bucket].ravel()
        members = np.flatnonzero(buckets == bucket)
        for epoch in range(len(own) // len(members)):
            part = own[epoch * len(members) : (epoch + 1) * len(members)]
            assert sorted(part.tolist()) == members.tolist()
    # All buckets are as far as the others, give or take their rounding at the ends of blocks.
    smallest = np.bincount(buckets)[np.unique(buckets)].min()
    block = -(-size // smallest)
    done = 6 * size // block * block
    for bucket, count in enumerate(np.bincount(buckets)):
        draws = np.count_nonzero(buckets[found[:done, 0]] == bucket)
        assert abs(draws - done * count / size) <= 1


@settings(max_examples=80, deadline=None)
@given(
    size=st.integers(1, 300),
    block=st.integers(1, 320),
    rows=st.integers(1, 40),
    epoch=st.integers(0, 2**40),
    seed=st.integers(0, 3),
)
def test_epochs_in_blocks_hold_each_sample_once(size, block, rows, epoch, seed):
    order = TaskOrder(seed, Shuffles(seed), "t", size, rows, block=block)
    draws, places = np.divmod(epoch * size + np.arange(size), rows)
    assert sorted(order.samples(draws, places).tolist()) == list(range(size))


def test_a_row_reads_block_after_block_and_rows_read_different_ones():
    size, block, rows = 4096, 64, 16
    order = TaskOrder(0, Shuffles(0), "t", size, rows, block=block)
    draws, places = np.divmod(np.arange(size), rows)
    blocks = order.samples(draws, places).reshape(-1, rows) // block
    # 256 draws are 4 blocks a row; each block is shown by one row only, in one go.
    changes = (np.diff(blocks, axis=0) != 0).sum(0)
    assert changes.tolist() == [3] * rows
    assert len(np.unique(blocks)) == size // block
    assert all(len(set(batch)) == rows for batch in blocks.tolist())
    inside = order.samples(draws, places).reshape(-1, rows)[:block, 0] % block
    assert inside.tolist() != sorted(inside.tolist())


def test_buckets_and_rates_go_together():
    labels, buckets = np.repeat([0, 1], [90, 10]), np.arange(100) % 3
    rates = class_balanced(SampleClasses.one_each(labels))
    found = rows_of_draws(order(100, 4, rates, buckets), 4, 600)
    assert (buckets[found] == buckets[found[:, :1]]).all()
    share = labels[found].mean()
    assert share == pytest.approx(0.5, abs=0.02)
    assert set(found.ravel().tolist()) == set(range(100))


POLICIES = {
    "balanced": {"rates": class_balanced(SampleClasses.one_each(np.arange(50) ** 2 % 7))},
    "repeated": {"rates": repeat_factors(SampleClasses.one_each(np.arange(50) // 20), 0.4)},
    "bucketed": {"buckets": np.arange(50) ** 3 % 4},
    "blocks": {"block": 7},
    "both": {
        "rates": class_balanced(SampleClasses.one_each(np.arange(50) ** 2 % 7)),
        "buckets": np.arange(50) ** 3 % 4,
    },
}


def plan(policy, rank=0, world=1, accumulate=1, mixes=False):
    tasks = {
        "a": TaskPlan(50, 16, share=0.6, group_size=2, mixes=mixes, **POLICIES[policy]),
        "b": TaskPlan(9, 16, share=0.4),
    }
    return Plan(3, tasks, rank=rank, world=world, accumulate=accumulate)


def step_rows(policy, step, world, accumulate=1, mixes=False):
    """Rows of task a in one step, from all ranks, by slot; None where it is not drawn."""
    seen = []
    for rank in range(world):
        sampler = Sampler(plan(policy, rank, world, accumulate, mixes))
        if "a" not in sampler.shape(step).tasks:
            return None
        for micro in range(accumulate):
            found = sampler.micro_rows(step, "a", micro)
            rows = zip(found.rows.slots.tolist(), found.rows.indices.tolist(), strict=True)
            seen += list(rows)[found.own]
    return sorted(seen)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_global_batch_is_the_same_over_ranks_changes_of_ranks_and_far_steps(policy):
    # 2 -> 1 -> 2 ranks and a double resume are nothing but questions for single steps: there is no state.
    for step, world in ((0, 2), (1, 4), (2, 1), (3, 2), (7, 4), (10**6, 2), (10**6 + 1, 4), (10**12, 2)):
        for accumulate, mixes in ((1, False), (2, False), (2, True)):
            assert step_rows(policy, step, world, accumulate, mixes) == step_rows(policy, step, 1)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_far_step_of_a_large_set_needs_no_history(policy):
    size = 200_000
    labels, buckets = np.arange(size) // 1000, np.arange(size) % 5
    rates = class_balanced(SampleClasses.one_each(labels)) if policy in ("balanced", "both") else None
    rates = repeat_factors(SampleClasses.one_each(labels), 0.01) if policy == "repeated" else rates
    buckets = buckets if policy in ("bucketed", "both") else None
    block = 100 if policy == "blocks" else 0
    tasks = {"a": TaskPlan(size, 64, rates=rates, buckets=buckets, block=block)}
    sampler = Sampler(Plan(0, tasks))
    rows = sampler.rows(10**9, "a").indices
    assert len(set(rows.tolist())) > 50
    assert all(len(order) <= 65_536 for order in sampler._shuffles._listed.values())


def test_a_plain_task_keeps_nothing_per_sample():
    sampler = Sampler(Plan(0, {"a": TaskPlan(10**12, 64)}))
    assert len(sampler.rows(10**6, "a")) == 64


LENGTHS = tuple(int(n) for n in np.arange(40) ** 2 % 31)
LOADED = {
    "words": toy.Settings(
        batch_size=8, size=40, corrupt=(3, 11), lengths=LENGTHS, group_size=2,
        policy=Policy(bucket_by="length", bucket_edges=(8, 16)),
    ),
    "rare": toy.Settings(
        batch_size=8, size=30, labels=tuple([0] * 27 + [1] * 3), policy=Policy(balance="classes"), share=0.5
    ),
}  # fmt: skip


def steps_of(count, start=0, **options):
    with MetaDataloader(toy.toy_plan(LOADED), start, **options) as loader:
        return [next(loader) for _ in range(count)]


def plain(steps):
    return [
        (step.number, task, batch.ids, batch.inputs["image"].tolist(), batch.corrupt)
        for step in steps
        for task in step.tasks
        for batch in step.batches[task]
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_and_resuming_twice_change_nothing(workers):
    whole = plain(steps_of(24))
    with MetaDataloader(toy.toy_plan(LOADED), num_workers=workers) as loader:
        assert plain([next(loader) for _ in range(12)]) == plain(steps_of(12))
    assert plain(steps_of(7)) + plain(steps_of(9, 7)) + plain(steps_of(8, 16)) == whole


def test_a_sample_that_cannot_be_used_is_replaced_from_its_bucket():
    buckets = bucket_of(np.array(LENGTHS), (8, 16))
    seen = 0
    for step in steps_of(40):
        for batch in step.batches.get("words", ()):
            assert len({int(buckets[label]) for label in batch.targets["label"].tolist()}) == 1
            seen += len(batch.corrupt)
    assert seen > 0


class Bare:
    name = "bare:data"

    def __len__(self):
        return 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"balance": "classes"},
            r"p\.balance: 'classes' needs the classes of all samples, which bare:data cannot tell",
        ),
        (
            {"balance": "repeat_factor"},
            r"p\.balance: 'repeat_factor' .*; take data that lists them \(imagefolder, coco\)",
        ),
        (
            {"bucket_by": "aspect", "bucket_edges": (1,)},
            r"p\.bucket_by: 'aspect' needs the sizes of all pictures",
        ),
        (
            {"bucket_by": "length", "bucket_edges": (1,)},
            r"p\.bucket_by: 'length' needs the lengths of all samples",
        ),
    ],
)
def test_a_reader_that_cannot_tell_is_refused_with_a_remedy(settings, message):
    policy = Policy(**settings)
    with pytest.raises(ConfigError, match=message) as error:
        rates_of(policy, Bare(), path="p")
        buckets_of(policy, Bare(), path="p")
    assert "\n" not in str(error.value)
    assert "or set none" in str(error.value)


def test_balance_without_a_single_class_is_refused():
    class Blank:
        def sample_classes(self):
            return SampleClasses.one_at_most(np.array([-1, -1]))

    with pytest.raises(ConfigError, match=r"p\.balance: 'classes' needs .* none has one; set none"):
        rates_of(Policy(balance="classes"), Blank(), path="p")


@pytest.mark.parametrize(
    "settings",
    [
        {"bucket_by": "length"},
        {"bucket_edges": (1, 2)},
        {"bucket_by": "length", "bucket_edges": (2, 2)},
        {"bucket_by": "length", "bucket_edges": (0, 2)},
        {"repeat_threshold": 0},
    ],
)
def test_policies_that_contradict_themselves_are_refused(settings):
    with pytest.raises(ConfigError, match=r"bucket_edges|repeat_threshold"):
        Policy(**settings)


def test_policies_that_do_not_fit_the_task_are_refused():
    rates = Rates(np.ones(10))
    with pytest.raises(ConfigError, match=r"tasks\.a\.policy: streams show all frames in order"):
        Plan(0, {"a": TaskPlan(10, 4, sequences=(4, 6), rates=rates)})
    with pytest.raises(ConfigError, match=r"tasks\.a\.policy: streams show all frames in order"):
        Plan(0, {"a": TaskPlan(10, 4, sequences=(4, 6), block=4)})
    with pytest.raises(ConfigError, match=r"tasks\.a\.policy\.bucket_by: a step of 2 lanes may draw"):
        Plan(0, {"a": TaskPlan(10, 4, buckets=np.arange(10) % 2)}, "mixed_lanes", lanes=2)


def test_a_bucket_too_small_to_be_drawn_is_refused():
    reader = Bare()
    reader.lengths = np.array([9] + [1] * 200_000)
    with pytest.raises(ConfigError, match=r"bucket_edges: 1 of 200001 samples are above 4, too few"):
        buckets_of(Policy(bucket_by="length", bucket_edges=(4,)), reader, path="p")


def test_buckets_reach_up_to_their_edges():
    assert bucket_of(np.array([1, 4, 4.5, 8, 100]), (4, 8)).tolist() == [0, 0, 1, 1, 2]


def test_readers_list_what_their_samples_show(real_data):
    coco = open_reader("coco:coco_small", real_data, "val")
    classes = coco.sample_classes()
    assert len(classes) == len(coco)
    for index in (0, 7, len(coco) - 1):
        sample = coco[index]
        own = classes.labels[classes.offsets[index] : classes.offsets[index + 1]]
        assert own.tolist() == sample.targets["objects"].labels.tolist()
        assert tuple(coco.sizes_hw_px[index]) == sample.image.hw_px
    pictures = open_reader("imagefolder:cifar10", real_data, "val")
    assert pictures.sample_classes().pairs()[1].tolist() == pictures.labels.tolist()


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=300),
    fractions=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)),
    seed=st.integers(0, 3),
)
def test_few_shot_subsets_lie_in_each_other_and_keep_the_share_of_classes(labels, fractions, seed):
    reader = Labelled(np.array(labels))
    small, large = (few_of(reader, fraction, seed=seed) for fraction in sorted(fractions))
    assert set(small) <= set(large) and len(set(large)) == len(large)
    for fraction, kept in zip(sorted(fractions), (small, large), strict=True):
        assert len(kept) == max(1, round(fraction * len(labels)))
        counts = np.bincount(reader.labels[kept], minlength=5)
        expected = np.bincount(reader.labels, minlength=5) * len(kept) / len(labels)
        assert (np.abs(counts - expected) <= 1.5).all()
    assert np.array_equal(few_of(reader, fractions[0], seed=seed), few_of(reader, fractions[0], seed=seed))


class Labelled:
    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def sample_classes(self):
        return SampleClasses.one_each(self.labels)


@pytest.mark.parametrize(("fraction", "size"), [(0.001, 1), (0.01, 10), (0.1, 100)])
def test_an_epoch_of_few_shots_has_each_of_its_samples_once(fraction, size):
    reader = Labelled(np.arange(1000) % 10)
    rates = rates_of(Policy(fraction=fraction), reader, path="p")
    kept = set(few_of(reader, fraction, seed=0))
    assert rates.epoch_size == size == len(kept)
    for epoch in (0, 1, 12345):
        assert set(rates.samples(np.arange(size), epoch, seed=3, task="t")) == kept
    assert set(few_of(reader, fraction, seed=1)) != kept or size == 1
    with pytest.raises(ValueError, match=r"fraction=0\.1 and balance=classes"):
        Policy(fraction=0.1, balance="classes")
