import pickle

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from allsight.config import ConfigError, build, dump
from allsight.tasks import SemanticSegmentation, Task
from allsight.types import Batch, DataError, FeatureSpec, Image, LabelMap, Sample

SPECS = (FeatureSpec(8, 4), FeatureSpec(12, 8), FeatureSpec(16, 16))
NAMES = ("sky", "road", "car")


@pytest.fixture
def folder(tmp_path):
    """Label maps of 30 x 44 px: sky above, road below, a car, and unlabelled pixels (11 in the files)."""
    rng = np.random.default_rng(0)
    for split, names in {"train": ("a_1", "a_2", "b_1"), "val": ("b_2", "b_3")}.items():
        for kind in (split, f"{split}_labels"):
            (tmp_path / "street" / kind).mkdir(parents=True)
        for name in names:
            labels = np.zeros((30, 44), dtype=np.uint8)
            labels[15:], labels[18:24, 5:15], labels[:, :2] = 1, 2, 11
            pixels = (labels[:, :, None] % 4 * 60 + rng.integers(0, 30, (30, 44, 3))).astype(np.uint8)
            PillowImage.fromarray(pixels).save(tmp_path / "street" / split / f"{name}.png")
            PillowImage.fromarray(labels).save(tmp_path / "street" / f"{split}_labels" / f"{name}.png")
    return tmp_path


def task_of(folder=None, **settings):
    settings = {"classes": NAMES, "canvas_hw_px": (32, 64), "crop_hw_px": (32, 32), **settings}
    if folder is not None:
        settings = {"data": "label_maps:street", "ignore_label": 11, **settings}
    return SemanticSegmentation(SemanticSegmentation.Config(**settings), name="street", root=folder)


def batch_of(task, split):
    reader, transform = task.reader(split), pickle.loads(pickle.dumps(task.transform(split)))
    rng = np.random.default_rng(0)
    return task.collate([transform(reader[i], rng) for i in range(len(reader))])


def random_batch(rows=3, size=16):
    labels = torch.randint(0, 3, (rows, size, size), dtype=torch.uint8)
    labels[0, : size // 2] = 255
    sizes = torch.full((rows, 2), size)
    inputs = {
        "image": torch.zeros(rows, 3, size, size, dtype=torch.uint8),
        "valid_hw_px": sizes,
        "original_hw_px": sizes,
    }
    return Batch("street", tuple(map(str, range(rows))), inputs, {"label_map": labels})


def rows_of(batch, rows):
    inputs = {name: tensor[rows] for name, tensor in batch.inputs.items()}
    return Batch(batch.task, batch.ids[rows], inputs, {"label_map": batch.targets["label_map"][rows]})


def one_hot(labels, stride=1):
    """Logits of 50 at the label."""
    return 50.0 * torch.nn.functional.one_hot(labels.long().clamp(max=2), 3).movedim(-1, 1).double()


def test_training_crops_carry_their_labels_along(folder):
    task = task_of(folder, colour=0.2)
    batch = batch_of(task, "train")
    assert batch.inputs["image"].shape == (3, 3, 32, 32)
    assert batch.targets["label_map"].shape == (3, 32, 32)
    assert batch.targets["label_map"].dtype == torch.uint8
    assert set(batch.targets["label_map"].unique().tolist()) <= {0, 1, 2, 255}


def test_evaluation_sees_whole_pictures_on_one_canvas_with_padding_ignored(folder):
    task = task_of(folder)
    batch = batch_of(task, "val")
    assert batch.inputs["image"].shape == (2, 3, 32, 64)
    assert batch.inputs["valid_hw_px"].tolist() == [[32, 47], [32, 47]]
    assert batch.inputs["original_hw_px"].tolist() == [[30, 44], [30, 44]]
    labels = batch.targets["label_map"][0]
    assert (labels[:, 47:] == 255).all()
    assert labels[31, 40] == 1
    assert labels[0, 0] == 255


def test_right_logits_score_one_whatever_they_say_about_padding(folder):
    task = task_of(folder)
    batch = batch_of(task, "val")
    logits = one_hot(batch.targets["label_map"])
    metric = task.metric()
    metric.update(task.decode({"logits": logits}, batch), batch)
    assert metric.compute() == {"miou": 1.0, "pixel_accuracy": 1.0, "mean_class_accuracy": 1.0}
    assert task.main_metric() in metric.compute()
    truth = task.truth(batch)
    assert [answer.label_map.shape for answer in truth] == [(32, 47), (32, 47)]
    again = task.metric()
    again.update(truth, batch)
    assert again.compute()["miou"] == 1.0


@pytest.mark.parametrize(("height", "width"), [(30, 44), (300, 200), (7, 5), (32, 64)])
def test_a_prediction_has_the_size_of_the_original_picture(height, width):
    task = task_of()
    sample = Sample("x", {"image": Image(torch.zeros(3, height, width, dtype=torch.uint8))})
    sample = task.transform("predict")(sample, np.random.default_rng(0))
    batch = task.collate([sample])
    assert batch.targets == {}
    assert batch.inputs["image"].shape == (1, 3, 32, 64)
    logits = torch.zeros(1, 3, 8, 16)
    logits[:, 1, :4], logits[:, 2, 4:] = 1.0, 1.0
    (answer,) = task.decode({"logits": logits}, batch)
    assert answer.label_map.shape == (height, width)
    assert answer.label_map[0, 0] == 1
    assert answer.classes == NAMES


def test_enlarging_class_by_class_is_enlarging_all_at_once():
    from allsight.tasks.segmentation import _best_class

    torch.manual_seed(0)
    logits = torch.randn(3, 6, 7)
    whole = torch.nn.functional.interpolate(logits[None], (50, 41), mode="bilinear")[0].argmax(0)
    assert torch.equal(_best_class(logits, (50, 41)).long(), whole)


def test_training_samples_are_left_out_by_name_and_evaluation_is_not_touched(folder):
    task = task_of(folder, leave_out=("b_",))
    assert [task.reader("train")[i].id for i in range(len(task.reader("train")))] == [
        "train/a_1.png",
        "train/a_2.png",
    ]
    assert len(task.reader("val")) == 2


def test_leaving_out_what_is_not_there_is_an_error(folder):
    with pytest.raises(DataError, match=r"no sample begins with 'train/c_'; ids look like 'train/a_1.png'"):
        task_of(folder, leave_out=("c_",)).reader("train")


def test_a_label_that_is_no_class_is_refused_with_the_name_of_the_sample(folder):
    reader = task_of(folder, ignore_label=None).reader("train")
    with pytest.raises(DataError, match=r"train/a_1.png: the label map holds the value 11"):
        reader[0]


@pytest.mark.parametrize("weights", [None, (0.2, 1.0, 3.0)])
def test_the_loss_does_not_depend_on_how_a_batch_is_split(weights):
    task = task_of(class_weights=weights)
    torch.manual_seed(0)
    batch, logits = random_batch(), torch.randn(3, 3, 4, 4, dtype=torch.float64)
    whole = task.loss({"logits": logits}, batch)["cross_entropy"]
    total = task.counts(batch)["cross_entropy"]
    parts = []
    for rows in (slice(0, 1), slice(1, 3)):
        part = rows_of(batch, rows)
        share = task.counts(part)["cross_entropy"] / total
        parts.append(share * task.loss({"logits": logits[rows]}, part)["cross_entropy"])
    torch.testing.assert_close(sum(parts), whole, rtol=1e-14, atol=0)


def test_a_batch_without_labelled_pixels_is_a_zero_that_keeps_its_graph():
    task, batch = task_of(), random_batch()
    batch.targets["label_map"].fill_(255)
    head = task.head(SPECS)
    maps = tuple(torch.randn(3, spec.channels, 16 // spec.stride, 16 // spec.stride) for spec in SPECS)
    loss = task.loss(head(maps), batch)["cross_entropy"]
    assert loss.item() == 0.0
    assert task.counts(batch) == {"cross_entropy": 0.0}
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


@pytest.mark.parametrize(
    "sizes", [((8, 8), (4, 4), (2, 2)), ((7, 5), (4, 3), (2, 2)), ((1, 1), (1, 1), (1, 1))]
)
def test_the_head_answers_at_the_finest_map_and_gradients_reach_all_of_it(sizes):
    task = task_of()
    torch.manual_seed(0)
    head = task.head(SPECS)
    maps = tuple(torch.randn(2, spec.channels, *size) for spec, size in zip(SPECS, sizes, strict=True))
    logits = head(maps)["logits"]
    assert logits.shape == (2, 3, *sizes[0])
    logits.square().sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_rows_of_a_batch_do_not_see_each_other_in_the_head():
    torch.manual_seed(0)
    head = task_of().head(SPECS).double()
    maps = tuple(
        torch.randn(3, s.channels, 16 // s.stride, 16 // s.stride, dtype=torch.float64) for s in SPECS
    )
    alone = head(tuple(m[1:2] for m in maps))["logits"]
    torch.testing.assert_close(head(maps)["logits"][1:2], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_hw_px": (100, 96)}, r"crop_hw_px: expected multiples of 32, got \(100, 96\)"),
        ({"canvas_hw_px": (0, 32)}, "canvas_hw_px: expected multiples of 32"),
        ({"min_scale": 2.0, "max_scale": 1.0}, "min_scale=2 is above max_scale=1"),
        ({"classes": NAMES, "class_weights": (1.0,)}, "class_weights: 1 numbers for 3 classes"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_one_line(settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        SemanticSegmentation.Config(**settings)
    assert "\n" not in str(error.value)


def test_its_configuration_survives_being_written_and_read():
    before = SemanticSegmentation.Config(classes=NAMES, class_weights=(1.0, 2.0, 3.0), crop_hw_px=(64, 32))
    assert build(Task.Config, dump(before)) == before


def test_the_same_sample_and_generator_give_the_same_crop(folder):
    task = task_of(folder)
    sample = task.reader("train")[0]
    first, second = (task.transform("train")(sample, np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(first.image.pixels, second.image.pixels)
    assert isinstance(first.targets["label_map"], LabelMap)
    assert torch.equal(first.targets["label_map"].pixels, second.targets["label_map"].pixels)


def test_real_camvid_without_its_shared_sequence(real_data):
    classes = tuple(f"class {i}" for i in range(11))
    config = SemanticSegmentation.Config(
        data="label_maps:camvid",
        classes=classes,
        ignore_label=11,
        leave_out=("0016E5",),
        canvas_hw_px=(384, 480),
    )
    task = config.build(name="camvid", root=real_data)
    assert len(task.reader("train")) == 163
    reader, transform = task.reader("val"), task.transform("val")
    assert len(reader) == 101
    batch = task.collate([transform(reader[0], np.random.default_rng(0))])
    assert batch.inputs["valid_hw_px"].tolist() == [[360, 480]]
    assert batch.targets["label_map"][0, :360].unique().tolist()[-1] == 255
    assert task.counts(batch)["cross_entropy"] > 100_000
