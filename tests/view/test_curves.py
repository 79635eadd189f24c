import numpy as np
import pytest

from allsight.view.curves import Series, bucket_sums, smooth, thin


def test_a_step_noted_again_replaces_it_and_what_came_later():
    series = Series()
    for step, value in ((0, 1.0), (1, 2.0), (2, 3.0), (1, 9.0)):
        series.add(step, value)
    assert (series.steps, series.values) == ([0, 1], [1.0, 9.0])
    assert series.at(1) == 9.0
    assert series.at(2) is None


def test_smoothing_takes_the_mean_of_finite_neighbours():
    values = np.array([1.0, np.nan, 3.0, 5.0, np.inf, 7.0])
    np.testing.assert_allclose(smooth(values, 1), [1, 2, 4, 4, 6, 7])
    np.testing.assert_array_equal(smooth(np.array([2.0]), 3), [2.0])
    assert np.isnan(smooth(np.full(5, np.nan), 1)).all()


def test_one_huge_value_does_not_spoil_the_rest():
    values = np.ones(2000)
    values[100] = 1e30
    np.testing.assert_array_equal(smooth(values, 20)[200:], np.ones(1800))


def test_thinning_keeps_extremes_and_ends():
    rng = np.random.default_rng(0)
    x, y = np.arange(100_000.0), rng.standard_normal(100_000)
    y[34_567], y[71_234] = 99.0, -77.0
    few_x, few_y = thin(x, y, 100)
    assert len(few_x) <= 202
    assert (few_y.max(), few_y.min()) == (99.0, -77.0)
    assert (few_x[0], few_x[-1]) == (0.0, 99_999.0)
    assert (np.diff(few_x) > 0).all()


def test_thinning_leaves_few_points_alone_and_shows_where_all_are_lost():
    x, y = np.arange(6.0), np.array([1, 2, np.nan, 4, 5, 6.0])
    assert thin(x, y, 3)[0] is x
    y = np.ones(1000)
    y[400:600] = np.nan
    assert np.isnan(thin(np.arange(1000.0), y, 10)[1]).any()


@pytest.mark.parametrize(("points", "buckets"), [(1, 60), (7, 3), (60, 60), (1000, 60)])
def test_bucket_sums_lose_nothing(points: int, buckets: int):
    y = np.arange(2.0 * points).reshape(2, points)
    x, sums, counts = bucket_sums(np.arange(float(points)), y, buckets)
    assert len(x) == min(points, buckets)
    np.testing.assert_allclose(sums.sum(axis=1), y.sum(axis=1))
    assert counts.sum() == points
