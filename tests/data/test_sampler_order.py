"""The order of samples and of draws, as pure functions."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from allsight.config import ConfigError
from allsight.data.draws import Draws
from allsight.data.order import LISTED_UP_TO, Shuffles, Streams, generator

shares = st.integers(1, 1000).map(lambda n: n / 1000)


def tasks_at(draws, steps, lane=0):
    return [draws.task_at(step, lane) for step in steps]


@settings(max_examples=60, deadline=None)
@given(st.lists(shares, min_size=1, max_size=6), st.integers(0, 3), st.integers(1, 40))
def test_counts_at_block_ends_are_never_more_than_one_off(values, seed, block):
    draws = Draws(seed, {f"t{i}": value for i, value in enumerate(values)})
    done = block * draws.block_length
    total = sum(Fraction(str(value)) for value in values)
    for count, value in zip(draws.counts_before(block), values, strict=True):
        assert abs(count - Fraction(str(value)) / total * done) <= 1


@settings(max_examples=30, deadline=None)
@given(st.lists(shares, min_size=1, max_size=4), st.integers(0, 3))
def test_the_number_of_a_draw_is_how_often_its_task_was_drawn_before(values, lane):
    draws = Draws(5, {f"t{i}": value for i, value in enumerate(values)})
    seen = [0] * len(values)
    for step in range(2 * min(draws.block_length, 150) + 3):
        assert [draws.number(task, step, lane) for task in range(len(values))] == seen
        seen[draws.task_at(step, lane)] += 1


def test_equal_shares_written_inexactly_give_exact_thirds():
    draws = Draws(0, {"a": 0.333, "b": 0.333, "c": 0.333})
    assert draws.counts_before(1000) == (1000, 1000, 1000)
    assert np.bincount(tasks_at(draws, range(3000))).tolist() == [1000, 1000, 1000]


def test_a_schedule_is_followed_from_knot_to_knot_and_kept_after_the_last():
    draws = Draws(0, {"a": ((0, 0.9), (400, 0.1)), "b": ((0, 0.1), (400, 0.9))})
    draws.check()
    drawn = np.array(tasks_at(draws, range(1400)))
    assert np.count_nonzero(drawn[:400] == 0) == 200
    assert np.count_nonzero(drawn[:100] == 0) == pytest.approx(80, abs=2)
    assert np.count_nonzero(drawn[400:] == 0) == 100


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(shares, st.integers(1, 300), shares, st.integers(1, 300), shares), min_size=2, max_size=4
    )
)
def test_scheduled_counts_follow_the_integral_of_the_share(schedules):
    knots = {f"t{i}": ((0, a), (x, b), (x + y, c)) for i, (a, x, b, y, c) in enumerate(schedules)}
    draws = Draws(1, knots)
    draws.check()
    steps = sorted({step for points in knots.values() for step, _ in points})

    def at(name, step):
        return np.interp(step, *zip(*knots[name], strict=True))

    def integral(name, end):
        # Normalised shares are linear between the knots of all tasks, so trapezoids are exact.
        places = [step for step in steps if step < end] + [end]
        before = {step: at(name, step) / sum(at(other, step) for other in knots) for step in steps}
        share = np.interp(places, steps, [before[step] for step in steps])
        return sum(
            (b - a) * (p + q) / 2 for (a, b), (p, q) in zip(pairwise(places), pairwise(share), strict=True)
        )

    for block in (1, 2, 5):
        end = block * draws.block_length
        for name, count in zip(knots, draws.counts_before(block), strict=True):
            assert abs(count - integral(name, end)) <= 1 + 1e-6


def test_lanes_draw_independently_but_equally_often():
    draws = Draws(0, {"a": 0.5, "b": 0.3, "c": 0.2})
    first, second = tasks_at(draws, range(1000), 0), tasks_at(draws, range(1000), 1)
    assert first != second
    assert np.bincount(first).tolist() == np.bincount(second).tolist() == [500, 300, 200]


def test_factors_multiply_shares():
    draws = Draws(0, {"a": 1.0, "b": 1.0}, {"a": 3.0})
    assert draws.counts_before(25) == (75, 25)


@pytest.mark.parametrize(
    ("given_shares", "message"),
    [
        (
            {"a": 1.0, "b": 1e-6},
            r"tasks\.b\.share: 1e-06 of all draws at step 0, expected 0 or at least 1e-05",
        ),
        ({"a": ((5, 1.0), (5, 2.0))}, r"tasks\.a\.share: .* steps rising"),
        ({"a": ((-1, 1.0), (5, 2.0))}, r"tasks\.a\.share: .* steps rising"),
        ({"a": ()}, r"tasks\.a\.share: .* steps rising"),
        ({"a": 1.0, "b": -0.5}, r"tasks\.b\.share: expected a share above 0"),
        ({"a": 0.0, "b": 0.5}, r"tasks\.a\.share: expected a share above 0"),
        ({"a": ((0, 1.0), (9, 0.0))}, r"tasks: all shares are 0 at step 9"),
    ],
)
def test_shares_that_cannot_be_drawn_are_refused_by_name(given_shares, message):
    with pytest.raises(ConfigError, match=message) as error:
        Draws(0, given_shares)
    assert "\n" not in str(error.value)


def test_a_share_that_rises_from_zero_between_others_is_refused_only_where_blocks_would_be_negative():
    rising = ((0, 0.0), (100_000, 0.5))
    with pytest.raises(
        ConfigError, match=r"tasks\.b\.share: near step \d+ .*; let it start or end at 0\.001"
    ):
        Draws(0, {"a": 1.0, "b": rising, "c": 1.0}).check()
    for remedy in ({"b": rising, "a": 1.0, "c": 1.0}, {"a": 1.0, "b": ((0, 0.001), rising[1]), "c": 1.0}):
        draws = Draws(0, remedy)
        draws.check()
        for block in range(0, 200_000 // draws.block_length, 997):
            draws.task_at(block * draws.block_length)
    Draws(0, {"a": 1.0, "b": rising, "c": 1.0}).check(steps=1)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000, LISTED_UP_TO, LISTED_UP_TO + 1, 100_003])
def test_every_epoch_holds_each_sample_once(size):
    shuffles = Shuffles(7)
    for epoch in (0, 3):
        found = shuffles.samples("t", size, np.arange(epoch * size, (epoch + 1) * size))
        assert np.array_equal(np.sort(found), np.arange(size))


def test_epochs_tasks_and_seeds_have_different_orders():
    positions = np.arange(200)
    orders = [Shuffles(seed).samples(task, 100, positions).tolist() for seed in (0, 1) for task in ("a", "b")]
    halves = [tuple(order[:100]) for order in orders] + [tuple(order[100:]) for order in orders]
    assert len(set(halves)) == 8


def test_orders_do_not_depend_on_how_they_are_asked_for():
    for size in (30, 90_001):
        positions = np.arange(3 * size - 7, 3 * size + 20)
        together = Shuffles(0).samples("t", size, positions)
        one_by_one = [Shuffles(0).samples("t", size, positions[i : i + 1])[0] for i in range(len(positions))]
        assert together.tolist() == one_by_one


@pytest.mark.parametrize(("size", "offset"), [(24, 5), (LISTED_UP_TO + 11, 12_345)])
def test_where_a_sample_lands_is_uniform(size, offset):
    shuffles = Shuffles(3)
    landed = [int(shuffles.permutation("t", size, epoch, np.array([offset]))[0]) for epoch in range(2400)]
    counts = np.bincount(np.array(landed) * 24 // size, minlength=24)
    assert chisquare(counts).pvalue > 1e-4


def test_neighbours_in_a_long_order_are_unrelated():
    order = Shuffles(0).permutation("t", 10**6, 0, np.arange(20_000))
    distances = np.diff(order) % 10**6
    assert chisquare(np.bincount(distances * 50 // 10**6, minlength=50)).pvalue > 1e-4


def test_a_billion_samples_are_never_listed():
    shuffles = Shuffles(0)
    found = shuffles.samples("t", 10**9, np.arange(4096) + 10**6 * 4096)
    assert len(set(found.tolist())) == 4096
    assert shuffles._listed == {}


def test_listed_orders_are_kept_in_bounded_memory():
    shuffles = Shuffles(0)
    for task in range(300):
        shuffles.samples(f"t{task}", 60_000, np.array([0]))
    assert sum(order.nbytes for order in shuffles._listed.values()) <= 16 * 2**20


def test_generators_differ_by_place_and_repeat():
    def draw(*place):
        return generator(0, *place).integers(2**60)

    assert draw("augment", "a", 1, 2) == draw("augment", "a", 1, 2)
    places = [("augment", "a", 1, 2), ("augment", "a", 12), ("mix", "a", 1, 2), ("augment", "a", 2, 1)]
    assert len({draw(*place) for place in places}) == 4


def test_orders_stay_as_they_were_published():
    # A change of these numbers changes every run: it needs an entry in the changelog.
    assert generator(0, "augment", "cats", 3, 1).integers(1000, size=4).tolist() == [892, 507, 6, 823]
    assert Shuffles(0).samples("cats", 10, np.arange(10)).tolist() == [4, 3, 9, 2, 8, 0, 5, 1, 6, 7]
    assert Shuffles(0).samples("cats", 10**6, np.arange(4)).tolist() == [533731, 574168, 49722, 227759]
    assert tasks_at(Draws(0, {"a": 0.5, "b": 0.25, "c": 0.25}), range(8)) == [2, 0, 0, 1, 1, 0, 2, 0]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 6), st.integers(0, 2))
def test_streams_show_all_frames_each_epoch_in_order(lengths, slots, epoch):
    streams = Streams(Shuffles(0), "s", tuple(lengths), slots)
    num_frames, begins = sum(lengths), set((np.cumsum(lengths) - lengths).tolist())
    seen = []
    for slot in range(slots):
        draws = np.arange(streams.piece, dtype=np.int64) + epoch * streams.piece
        frames = streams.frames(np.full(streams.piece, slot, dtype=np.int64), draws)
        seen += frames.indices.tolist()
        assert frames.starts[0]
        for (before, index), start in zip(pairwise(frames.indices.tolist()), frames.starts[1:], strict=True):
            assert start == (index in begins)
            assert start or index == before + 1
    assert set(seen) == set(range(num_frames))
    assert len(seen) - num_frames < slots or slots > num_frames
