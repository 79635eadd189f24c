import dataclasses
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image as PillowImage

from allsight.backbones import InternImage
from allsight.config import ConfigError, build, dump
from allsight.models import MultiHead
from allsight.tasks import Classification, Task
from allsight.types import Batch, DataError, FeatureSpec, Image, Sample

SPECS = (FeatureSpec(8, 4), FeatureSpec(16, 8))


@pytest.fixture
def folder(tmp_path):
    """An ImageFolder: 6 cats, 2 dogs to train, one of each to judge."""
    rng = np.random.default_rng(0)
    for split, counts in {"train": {"cat": 6, "dog": 2}, "val": {"cat": 1, "dog": 1}}.items():
        for name, count in counts.items():
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for i in range(count):
                light = 40 if name == "cat" else 180
                pixels = rng.integers(light, light + 40, (20, 24, 3), dtype=np.uint8)
                PillowImage.fromarray(pixels).save(tmp_path / "pets" / split / name / f"{i}.png")
    return tmp_path


def task_of(folder=None, classes=(), **settings):
    if folder is not None:
        settings = {"data": "imagefolder:pets", **settings}
    return Classification(Classification.Config(**settings), name="pets", root=folder, classes=classes)


def batch_of(labels, images=None):
    labels = torch.as_tensor(labels)
    images = torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8) if images is None else images
    return Batch("pets", tuple(f"s{i}" for i in range(len(labels))), {"image": images}, {"label": labels})


def sample_of(label, size=16, **image):
    pixels = torch.full((3, size, size), 100, dtype=torch.uint8)
    return Sample(f"s{label}", {"image": Image(pixels, **image)}, {} if label is None else {"label": label})


@pytest.mark.parametrize("crop", ["resized", "padded", "none"])
def test_samples_of_a_folder_become_batches_of_one_size(folder, crop):
    task = task_of(folder, crop=crop, size_px=16, colour=0.2, randaugment=1, erasing=0.5)
    reader, transform = task.reader("train"), pickle.loads(pickle.dumps(task.transform("train")))
    rng = np.random.default_rng(0)
    batch = task.collate([transform(reader[i], rng) for i in range(len(reader))])
    assert batch.task == "pets"
    assert batch.inputs["image"].shape == (8, 3, 16, 16)
    assert batch.inputs["image"].dtype == torch.uint8
    assert batch.targets["label"].tolist() == [0] * 6 + [1] * 2
    assert batch.ids[0] == "train/cat/0.png"
    assert task.classes == ("cat", "dog")


def test_train_is_random_only_through_the_generator_and_val_not_at_all(folder):
    task = task_of(folder, size_px=16, colour=0.3)
    sample = task.reader("train")[0]

    def pixels(split, seed):
        return task.transform(split)(sample, np.random.default_rng(seed)).image.pixels

    assert torch.equal(pixels("train", 1), pixels("train", 1))
    assert not torch.equal(pixels("train", 1), pixels("train", 2))
    assert torch.equal(pixels("val", 1), pixels("val", 2))


def test_predict_needs_neither_data_nor_labels(tmp_path):
    task = task_of(size_px=8, classes=("cat", "dog"))
    sample = task.transform("predict")(sample_of(None, size=30), np.random.default_rng(0))
    batch = task.collate([sample])
    assert batch.targets == {}
    assert batch.inputs["image"].shape == (1, 3, 8, 8)
    (answer,) = task.decode({"logits": torch.tensor([[0.0, 2.0]])}, batch)
    assert answer.top(1) == [("dog", pytest.approx(0.8808, abs=1e-4))]


def test_the_number_of_classes_comes_from_the_weights_the_setting_or_the_data(folder):
    assert task_of(folder).num_classes == 2
    assert task_of(folder, classes=("a", "b", "c")).num_classes == 3
    assert task_of(num_classes=7).num_classes == 7
    absent = task_of(data="imagefolder:nowhere", num_classes=7)
    assert absent.num_classes == 7
    assert absent.classes == ()


def test_no_word_about_the_number_of_classes_is_an_error():
    with pytest.raises(ConfigError, match=r"config.tasks.pets.num_classes: required"):
        _ = task_of().num_classes


def test_more_classes_than_the_setting_allows_are_an_error(folder):
    with pytest.raises(ConfigError, match=r"num_classes: 1, but 'imagefolder:pets' has 2 classes"):
        _ = task_of(folder, num_classes=1).num_classes


def test_missing_data_that_alone_knows_the_classes_is_an_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        _ = task_of(tmp_path).classes


@pytest.mark.parametrize("label", [-1, 2, 255])
def test_a_label_out_of_range_is_refused_with_the_name_of_the_sample(folder, label):
    transform = task_of(folder, size_px=8).transform("train")
    with pytest.raises(DataError, match=rf"s{label}: label {label}; expected 0..1") as error:
        transform(sample_of(label), np.random.default_rng(0))
    assert error.value.sample_id == f"s{label}"


def test_a_sample_without_a_label_is_refused_in_training(folder):
    with pytest.raises(DataError, match=r"no label; expected 0\.\.1"):
        task_of(folder, size_px=8).transform("train")(sample_of(None), np.random.default_rng(0))


def test_pictures_of_different_sizes_are_refused_with_the_name_of_the_sample():
    with pytest.raises(DataError, match=r"s1: picture of \(9, 9\) px in a batch of \(8, 8\) px"):
        task_of(num_classes=2).collate([sample_of(0, size=8), sample_of(1, size=9)])


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixing_without_groups_is_a_contradiction_named_in_one_line(name):
    with pytest.raises(ConfigError, match=rf"{name}=0.8 mixes samples, but group_size=1") as error:
        Classification.Config(**{name: 0.8})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class_weights": (1.0, -1.0)}, "class_weights: expected numbers of 0 or more"),
        ({"class_weights": (1.0, 1.0), "num_classes": 3}, "class_weights: 2 numbers for 3 classes"),
        ({"top_k": (0,)}, "top_k: expected numbers of 1 or more"),
        ({"crop": "padding"}, "did you mean 'padded'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_one_line(settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        Classification.Config(**settings)
    assert "\n" not in str(error.value)


def test_weights_for_another_number_of_classes_are_refused(folder):
    with pytest.raises(ConfigError, match="3 numbers for 2 classes"):
        _ = task_of(folder, class_weights=(1.0, 2.0, 3.0)).class_weights


def test_balanced_weights_give_each_class_the_same_share(folder):
    weights = task_of(folder, class_weights="balanced").class_weights
    assert weights == pytest.approx((8 / (2 * 6), 8 / (2 * 2)))


def test_its_configuration_survives_being_written_and_read():
    before = Classification.Config(class_weights=(1.0, 2.0), mixup=0.2, group_size=2, top_k=(3,))
    assert build(Task.Config, dump(before)) == before


@pytest.mark.parametrize("settings", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixed_labels_are_weights_that_sum_to_one(folder, settings):
    task = task_of(folder, group_size=2, size_px=16, **settings)
    reader, transform, rng = task.reader("train"), task.transform("train"), np.random.default_rng(3)
    samples = [transform(reader[i], rng) for i in (0, 7)]
    batch = task.collate(task.mix(samples, rng))
    label = batch.targets["label"]
    assert label.shape == (2, 2)
    assert label.is_floating_point()
    torch.testing.assert_close(label.sum(dim=1), torch.ones(2))
    assert batch.inputs["image"].dtype == torch.uint8
    loss = task.loss({"logits": torch.randn(2, 2, requires_grad=True)}, batch)["cross_entropy"]
    assert loss.isfinite()


def test_without_mixing_a_group_stays_as_it_is(folder):
    samples = [sample_of(0), sample_of(1)]
    assert task_of(folder, group_size=2).mix(samples, np.random.default_rng(0)) is samples


@pytest.mark.parametrize("weights", [None, (0.2, 1.0, 3.0)])
def test_the_loss_does_not_depend_on_how_a_batch_is_split(weights):
    task = task_of(num_classes=3, class_weights=weights, label_smoothing=0.1)
    torch.manual_seed(0)
    logits = torch.randn(7, 3, dtype=torch.float64)
    batch = batch_of([0, 1, 2, 2, 1, 0, 1])
    whole = task.loss({"logits": logits}, batch)["cross_entropy"]
    total = task.counts(batch)["cross_entropy"]
    parts = []
    for rows in (slice(0, 1), slice(1, 5), slice(5, 7)):
        part = batch_of(batch.targets["label"][rows])
        share = task.counts(part)["cross_entropy"] / total
        parts.append(share * task.loss({"logits": logits[rows]}, part)["cross_entropy"])
    torch.testing.assert_close(sum(parts), whole, rtol=1e-14, atol=0)


def test_gradients_reach_every_parameter_of_the_head():
    task = task_of(num_classes=3)
    torch.manual_seed(0)
    head = task.head(SPECS)
    maps = (torch.randn(4, 8, 4, 4), torch.randn(4, 16, 2, 2))
    task.loss(head(maps), batch_of([0, 1, 2, 0]))["cross_entropy"].backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_right_answers_score_one_and_truth_has_the_form_of_answers():
    task = task_of(num_classes=3, classes=("a", "b", "c"))
    batch = batch_of([2, 0])
    metric = task.metric()
    metric.update(task.truth(batch), batch)
    assert metric.compute()[task.main_metric()] == 1.0
    decoded = task.decode({"logits": 50.0 * F.one_hot(torch.tensor([2, 0]), 3).double()}, batch)
    assert [a.top(1)[0][0] for a in decoded] == [a.top(1)[0][0] for a in task.truth(batch)] == ["c", "a"]


def test_truth_of_soft_labels_is_the_soft_label():
    task = task_of(num_classes=2)
    (truth,) = task.truth(batch_of(torch.tensor([[0.25, 0.75]])))
    assert truth.scores.tolist() == [0.25, 0.75]


def test_training_samples_can_be_left_out_by_name(folder):
    task = task_of(folder, leave_out=("cat/1", "cat/2"))
    assert len(task.reader("train")) == 6
    assert len(task.reader("val")) == 2


def test_a_nano_backbone_learns_to_tell_two_classes_in_a_few_steps(folder):
    task = task_of(folder, size_px=32, crop="none", eval_crop=1.0)
    torch.manual_seed(0)
    backbone = InternImage.Config.variant("nano", depths=(1, 1, 1, 1))
    model = MultiHead(MultiHead.Config(backbone=backbone), {"pets": task})
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    reader, transform = task.reader("train"), task.transform("train")
    rng = np.random.default_rng(0)
    for _ in range(10):
        batch = task.collate([transform(reader[i], rng) for i in (0, 1, 2, 6, 7, 7)])
        loss = task.loss(model(batch)[0], batch)["cross_entropy"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    metric, reader, transform = task.metric(), task.reader("val"), task.transform("val")
    batch = task.collate([transform(reader[i], rng) for i in range(2)])
    with torch.inference_mode():
        metric.update(task.decode(model.eval()(batch)[0], batch), batch)
    assert metric.compute()["top1"] == 1.0


def test_normalised_pictures_are_taken_too():
    task = task_of(size_px=8, classes=("cat", "dog"), eval_crop=1.0)
    sample = Sample("s", {"image": Image(torch.randn(3, 8, 8))})
    batch = task.collate([task.transform("predict")(sample, np.random.default_rng(0))])
    assert batch.inputs["image"].is_floating_point()
    assert dataclasses.replace(batch).inputs["image"].shape == (1, 3, 8, 8)


def test_labels_of_numpy_are_labels_too():
    task = task_of(num_classes=3)
    samples = [
        task.transform("val")(sample_of(np.int64(n), size=224), np.random.default_rng(0)) for n in (2, 0)
    ]
    assert task.collate(samples).targets["label"].tolist() == [2, 0]
