import json
import math
import pickle

import numpy as np
import pytest
import torch

from allsight.tasks.metrics import ClassificationScores, Confusion, SegmentationScores, TopK
from allsight.types import Batch, ClassScores, LabelMapAnswer


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def answers_of(scores):
    return [ClassScores(str(i), "t", row.astype(np.float32)) for i, row in enumerate(scores)]


def batch_of(labels):
    ids = tuple(str(i) for i in range(len(labels)))
    return Batch("t", ids, {}, {"label": torch.as_tensor(labels)})


def test_top_k_agrees_with_sorting_each_row(rng):
    labels, scores = rng.integers(0, 6, 50), rng.integers(0, 4, (50, 6)) / 4.0  # many ties
    metric = TopK([1, 3], 6)
    metric.add(labels, scores)
    ranked = [[i for i, _ in sorted(enumerate(row), key=lambda p: (-p[1], p[0]))] for row in scores]
    right = np.array(
        [[label in order[:k] for label, order in zip(labels, ranked, strict=True)] for k in (1, 3)]
    )
    per_class = [right[0][labels == c].mean() for c in range(6)]
    assert metric.compute() == pytest.approx(
        {"top1": right[0].mean(), "top3": right[1].mean(), "mean_class_accuracy": np.mean(per_class)}
    )


def test_top_k_never_counts_a_score_that_is_not_a_number(rng):
    metric = TopK([1, 2], 3)
    scores = np.array([[np.nan] * 3, [np.nan, 0.9, 0.1], [np.nan, 0.9, 0.1]])
    metric.add(np.array([0, 0, 1]), scores)
    values = metric.compute()
    assert values["top1"] == pytest.approx(1 / 3)
    assert values["top2"] == pytest.approx(1 / 3)


def test_confusion_agrees_with_counting_by_hand(rng):
    k = 5
    truth, answer = rng.integers(0, k, 200), rng.integers(0, k, 200)
    truth[:20] = 255
    answer[truth == 4] = 0
    answer[answer == 3] = 2
    metric = Confusion(k)
    metric.add(truth, answer)

    t, a = truth[20:], answer[20:]
    ious, recalls = [], []
    for c in range(k):
        union = ((t == c) | (a == c)).sum()
        ious.append(((t == c) & (a == c)).sum() / union)
        recalls.append((a[t == c] == c).mean())
    np.testing.assert_allclose(metric.ious(), ious)
    np.testing.assert_allclose(metric.class_accuracies(), recalls)
    assert metric.mean_iou() == pytest.approx(np.mean(ious))
    assert metric.accuracy() == pytest.approx((t == a).mean())
    assert metric.rows()[4][0] == ((t == 4) & (a == 0)).sum()
    assert metric.total == 180


def test_a_class_that_is_nowhere_is_left_out_of_the_mean():
    metric = Confusion(3)
    metric.add(np.array([0, 0, 1]), np.array([0, 1, 1]))
    assert math.isnan(metric.ious()[2])
    assert metric.mean_iou() == pytest.approx((1 / 2 + 1 / 2) / 2)


def test_an_answer_that_is_no_class_is_a_mistake():
    metric = Confusion(2)
    metric.add(np.array([0, 0, 1, 1], dtype=np.uint8), np.array([0, 255, 1, 1], dtype=np.uint8))
    assert metric.accuracy() == 0.75
    assert metric.ious().tolist() == [0.5, 1.0]


def test_most_confused_names_the_commonest_mistakes():
    metric = Confusion(3)
    metric.add(np.array([0, 0, 0, 1, 2]), np.array([1, 1, 0, 2, 2]))
    assert metric.most_confused(5, ("cat", "dog")) == [
        {"truth": "cat", "answer": "dog", "count": 2, "share": pytest.approx(2 / 3)},
        {"truth": "dog", "answer": "class 2", "count": 1, "share": 1.0},
    ]


@pytest.mark.parametrize("cut", [0, 1, 17, 40])
def test_classification_scores_of_halves_merge_to_one_pass(rng, cut):
    labels, scores = rng.integers(0, 7, 40), rng.random((40, 7))
    whole, first, second = (ClassificationScores((5,), 7) for _ in range(3))
    whole.update(answers_of(scores), batch_of(labels))
    first.update(answers_of(scores[:cut]), batch_of(labels[:cut]))
    second.update(answers_of(scores[cut:]), batch_of(labels[cut:]))
    merged = ClassificationScores((5,), 7)
    for part in (first, second):
        merged.merge(pickle.loads(pickle.dumps(part)))
    assert merged.compute() == whole.compute()
    assert merged.tables() == whole.tables()


def test_classification_scores_take_the_largest_weight_of_soft_labels(rng):
    soft = torch.tensor([[0.2, 0.8], [0.9, 0.1]])
    metric = ClassificationScores((), 2)
    metric.update(answers_of(np.array([[0.1, 0.9], [0.1, 0.9]])), batch_of(soft))
    assert metric.compute()["top1"] == 0.5


def test_values_of_k_that_say_nothing_are_left_out():
    assert set(ClassificationScores((5,), 5).compute()) == {"top1", "mean_class_accuracy"}


def test_classification_tables_are_plain_and_name_the_classes(rng):
    metric = ClassificationScores((), 3, ("cat", "dog", "fox"))
    metric.update(answers_of(np.eye(3)[[0, 1, 1]]), batch_of([0, 1, 0]))
    tables = json.loads(json.dumps(metric.tables(), allow_nan=False))
    assert tables["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert tables["per_class"][0] == {"class": "cat", "count": 2, "accuracy": 0.5}
    assert tables["per_class"][2] == {"class": "fox", "count": 0, "accuracy": None}


def test_many_classes_are_scored_without_a_matrix(rng):
    metric = ClassificationScores((5,), 5000)
    metric.update(answers_of(np.eye(5000)[[7, 7]]), batch_of([7, 8]))
    assert metric.compute()["top1"] == 0.5
    assert "confusion" not in metric.tables()


def test_scores_of_nothing_are_nan_and_say_why():
    for metric in (ClassificationScores((5,), 10), SegmentationScores(3)):
        assert all(math.isnan(value) for value in metric.compute().values())
        assert "nan" in json.loads(json.dumps(metric.tables(), allow_nan=False))["notes"][0]


def test_metrics_of_different_classes_do_not_merge():
    with pytest.raises(ValueError, match="3 classes cannot merge 4"):
        Confusion(3).merge(Confusion(4))
    with pytest.raises(ValueError, match="of 3 classes cannot take in"):
        TopK([1], 3).merge(TopK([1], 4))


def test_segmentation_scores_look_only_where_answer_and_label_are():
    truth = torch.tensor([[[0, 1, 255], [1, 1, 255], [255, 255, 255]]], dtype=torch.uint8)
    answer = LabelMapAnswer("a", "t", np.array([[0, 1], [1, 0]], dtype=np.uint8), ("sky", "road"))
    metric = SegmentationScores(2, ("sky", "road"))
    metric.update([answer], Batch("t", ("a",), {}, {"label_map": truth}))
    assert metric.compute() == pytest.approx(
        {"miou": (1 / 2 + 2 / 3) / 2, "pixel_accuracy": 0.75, "mean_class_accuracy": (1 + 2 / 3) / 2}
    )
    assert metric.tables()["per_class"][1] == {
        "class": "road",
        "count": 3,
        "iou": pytest.approx(2 / 3),
        "accuracy": pytest.approx(2 / 3),
    }


def test_segmentation_scores_of_halves_merge_to_one_pass(rng):
    truth = rng.integers(0, 4, (6, 5, 5)).astype(np.uint8)
    answers = [LabelMapAnswer(str(i), "t", rng.integers(0, 4, (5, 5)).astype(np.uint8)) for i in range(6)]
    ids = tuple(str(i) for i in range(6))
    whole, merged = SegmentationScores(4), SegmentationScores(4)
    whole.update(answers, Batch("t", ids, {}, {"label_map": torch.from_numpy(truth)}))
    for rows in (slice(0, 2), slice(2, 6)):
        part = SegmentationScores(4)
        part.update(answers[rows], Batch("t", ids[rows], {}, {"label_map": torch.from_numpy(truth[rows])}))
        merged.merge(part)
    assert merged.compute() == whole.compute()
    assert merged.tables() == whole.tables()
