"""How often each sample occurs in an epoch, where that is not once for all."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int64, Integer

from allsight.data.listings import SampleClasses
from allsight.data.order import place_key

_BITS = 32
_ONE = 1 << _BITS
_MOST_PLACES = 1 << 30

Indices = Int64[np.ndarray, " n"]


class Rates:
    """Epochs in which sample i occurs floor(rates[i]) or ceil(rates[i]) times, and `rates[i]` on average.

    The rates are laid end to end on a line, as whole numbers of 2^-32. Points at distance 1 from each other
    pick an epoch's samples from it, so all epochs have the same size. Where the first point lies takes all
    multiples of 2^-m (from a start that the seed gives) once in 2^m epochs: over these a sample occurs
    2^m * rate times, give or take 1. Neighbours on the line share their fractions, so a class whose samples
    lie together occurs as often as it should, give or take 1, in every single epoch.

    Only the line is kept (8 bytes a sample), and any place of any epoch is found in O(log n).

    Args:
        rates: 0 or more for each sample.
        epoch_size: Samples in an epoch, about the sum of the rates, which are stretched to it; None rounds
            the sum up, so that rates of 1 or more stay so.
        order: Samples in the order in which they lie on the line; None is their own.
    """

    def __init__(
        self, rates: Float64[np.ndarray, " n"], *, epoch_size: int | None = None, order: Indices | None = None
    ) -> None:
        widths = np.rint(rates * _ONE).astype(np.int64)
        size = -(-int(widths.sum()) // _ONE) if epoch_size is None else epoch_size
        if not 0 < size < _MOST_PLACES:
            raise ValueError(f"an epoch of {size} places; expected 1 to {_MOST_PLACES}")
        self.epoch_size = size
        """Samples in an epoch, repetitions counted."""
        self._order = None if order is None else order.astype(np.uint32)
        if order is not None:
            widths = widths[order]
        every, some = divmod(size * _ONE - int(widths.sum()), len(widths))
        widths += every
        widths[:some] += 1
        self._ends = np.cumsum(widths)

    @property
    def nbytes(self) -> int:
        """Memory that is kept."""
        return self._ends.nbytes + (0 if self._order is None else self._order.nbytes)

    def samples(self, places: Indices, epoch: int, *, seed: int, task: str) -> Indices:
        """The sample at each of an epoch's places (0 <= place < epoch_size)."""
        begin = (_bits_reversed(epoch) + place_key(seed, "rates", task)) % _ONE
        found = np.searchsorted(self._ends, places * _ONE + begin, side="right")
        return found if self._order is None else self._order[found].astype(np.int64)

    def among(self, members: Integer[np.ndarray, " m"]) -> Rates:
        """The rates of some of the samples, numbered anew; their epoch is rounded up."""
        widths = np.diff(self._ends, prepend=0)
        if self._order is not None:
            widths[self._order] = widths.copy()
        return Rates(widths[members] / _ONE)


def class_balanced(classes: SampleClasses) -> Rates:
    """Epochs of as many samples as there are, in which all classes occur equally often.

    A sample of several classes has the sum of what each gives it, as if a class were drawn first and then a
    sample of it. Samples without a class count as one class more, so that none is lost.
    """
    num_samples = len(classes)
    samples, labels = classes.pairs()
    bare = np.flatnonzero(np.bincount(samples, minlength=num_samples) == 0)
    samples = np.concatenate([samples, bare])
    labels = np.concatenate([labels, np.full(len(bare), labels.max(initial=-1) + 1)])
    counts = np.bincount(labels)
    given = num_samples / (np.count_nonzero(counts) * counts[labels])
    rates = np.bincount(samples, weights=given, minlength=num_samples)
    order = None
    if len(samples) == num_samples and not len(bare) and (np.diff(labels) < 0).any():
        order = np.argsort(labels, kind="stable")
    return Rates(rates, epoch_size=num_samples, order=order)


def repeat_factors(classes: SampleClasses, threshold: float) -> Rates:
    """Epochs in which samples of rare classes are repeated, as for LVIS (arXiv:1908.03195, appendix B.2).

    A class in a share f of the samples has the factor max(1, sqrt(threshold / f)), a sample the greatest of
    its classes' factors, and 1 without a class. Every sample occurs in each epoch.
    """
    samples, labels = classes.pairs()
    counts = np.maximum(np.bincount(labels, minlength=1), 1)
    factors = np.maximum(1.0, np.sqrt(threshold * len(classes) / counts))
    rates = np.ones(len(classes))
    if len(samples):
        first = np.flatnonzero(np.diff(samples, prepend=-1))
        rates[samples[first]] = np.maximum.reduceat(factors[labels], first)
    return Rates(rates)


def _bits_reversed(number: int) -> int:
    return int(f"{number % _ONE:0{_BITS}b}"[::-1], 2)
