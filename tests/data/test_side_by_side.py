"""Work in several processes: in order, with what it is given, bounded, and with an end when one dies."""

import os

import pytest

from allsight.data.side_by_side import ProcessDied, each


def add(base, number):
    """A sum; the number 13 kills the process."""
    if number == 13:
        os._exit(9)
    return base + number


def test_one_process_works_when_asked():
    results = each(add, iter([1, 2, 13]), 1, given=(10,))
    assert [next(results), next(results)] == [11, 12]


@pytest.mark.dist
def test_results_come_in_order_and_a_dead_process_is_named_by_its_item():
    asked = []

    def numbers():
        for number in range(14):
            asked.append(number)
            yield number

    results = each(add, numbers(), 1 + 1, given=(10,), called=lambda number: f"number {number}")
    assert next(results) == 10 and len(asked) <= 8
    with pytest.raises(ProcessDied, match=r"a process died at number \d+ or soon after") as caught:
        list(results)
    assert "\n" not in str(caught.value)
