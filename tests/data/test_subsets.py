"""A part of the labels: always the same, as many of every class, smaller ones within larger ones."""

from __future__ import annotations

import numpy as np
import pytest

from allsight.config import ConfigError
from allsight.data.listings import SampleClasses
from allsight.data.subsets import SomeLabels, SomeSamples, Subset
from allsight.types import Sample


class Labelled:
    """Samples with one class each, which they list."""

    name, split, classes, notes = "labelled", "train", ("a", "b", "c"), ()

    def __init__(self, labels):
        self.labels = np.asarray(labels, dtype=np.int64)
        self.lengths = np.arange(len(labels))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return Sample(f"train/{index}", {}, {"label": int(self.labels[index]), "other": index})

    def sample_classes(self):
        return SampleClasses.one_each(self.labels)


LABELS = [0] * 448 + [1] * 450 + [2] * 30


def counts(reader, subset):
    return np.bincount(reader.labels[subset.rows(reader, path="here")], minlength=3).tolist()


@pytest.mark.parametrize(
    ("subset", "expected"),
    [
        (Subset(share=0.1), [45, 45, 3]),
        (Subset(share=0.01), [4, 5, 1]),
        (Subset(share=0.001), [1, 1, 1]),
        (Subset(per_class=7), [7, 7, 7]),
        (Subset(), [448, 450, 30]),
    ],
)
def test_every_class_gets_its_part(subset, expected):
    assert counts(Labelled(LABELS), subset) == expected


def test_the_same_seed_gives_the_same_samples_and_smaller_parts_lie_within_larger_ones():
    reader = Labelled(LABELS)
    tenth = Subset(share=0.1).rows(reader, path="here")
    assert tenth.tolist() == Subset(share=0.1).rows(reader, path="here").tolist() == sorted(tenth)
    assert set(Subset(share=0.01).rows(reader, path="here")) < set(tenth)
    assert set(Subset(per_class=3).rows(reader, path="here")) < set(
        Subset(per_class=9).rows(reader, path="x")
    )
    other = Subset(share=0.1, seed=1).rows(reader, path="here")
    assert len(set(other) & set(tenth)) < 25


def test_samples_of_several_classes_count_for_the_first_and_those_of_none_are_left_out():
    reader = Labelled([0, 0, 0])
    reader.sample_classes = lambda: SampleClasses.of_sets([[1, 2], [], [2]])
    assert Subset(share=1.0).rows(reader, path="here").tolist() == [0, 2]


def test_some_samples_are_a_reader_of_their_own():
    part = SomeSamples(Labelled(LABELS), np.array([3, 447, 449]))
    assert len(part) == 3 and part[1].id == "train/447"
    assert part.labels.tolist() == [0, 0, 1] and part.lengths.tolist() == [3, 447, 449]
    assert part.sample_classes().labels.tolist() == [0, 0, 1] and part.classes == ("a", "b", "c")


def test_other_samples_lose_their_label_and_nothing_else():
    reader = SomeLabels(Labelled([0, 1, 2, 1]), np.array([1, 3]))
    assert [reader[i].targets for i in range(4)] == [
        {"other": 0},
        {"label": 1, "other": 1},
        {"other": 2},
        {"label": 1, "other": 3},
    ]
    assert reader.sample_classes().offsets.tolist() == [0, 0, 1, 1, 2]
    assert reader.sample_classes().labels.tolist() == [1, 1]


def test_what_cannot_be_is_refused_in_a_line():
    with pytest.raises(
        ConfigError, match=r"here\.per_class: 31, but labelled has 30 samples of class 2; lower"
    ):
        Subset(per_class=31).rows(Labelled(LABELS), path="here")
    with pytest.raises(ConfigError, match="here needs the classes of all samples, which list cannot tell"):
        Subset(share=0.5).rows([], path="here")
    with pytest.raises(ConfigError, match="expected share or per_class"):
        Subset(share=0.5, per_class=3)
