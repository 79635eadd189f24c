"""Few labels among many pictures: the others are as if nobody had labelled them."""

import numpy as np

from allsight.data.listings import SampleClasses
from allsight.data.some_labels import SomeLabels
from allsight.types import Sample


class Labelled:
    """Samples with one class each, which they list."""

    name, split, classes, notes = "labelled", "train", ("a", "b", "c"), ()
    labels = np.array([0, 1, 2, 1])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return Sample(f"train/{index}", {}, {"label": int(self.labels[index]), "other": index})

    def sample_classes(self):
        return SampleClasses.one_each(self.labels)


def test_other_samples_lose_their_label_and_nothing_else():
    reader = SomeLabels(Labelled(), np.array([1, 3]))
    assert [reader[i].targets for i in range(len(reader))] == [
        {"other": 0},
        {"label": 1, "other": 1},
        {"other": 2},
        {"label": 1, "other": 3},
    ]
    assert reader.classes == ("a", "b", "c") and reader[2].id == "train/2"


def test_sampling_by_classes_knows_only_those_that_are_told():
    classes = SomeLabels(Labelled(), np.array([1, 3])).sample_classes()
    assert classes.offsets.tolist() == [0, 0, 1, 1, 2] and classes.labels.tolist() == [1, 1]
