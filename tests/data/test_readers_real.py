"""The readers on real pictures, where ALLSIGHT_DATA says they are."""

import os

import numpy as np
import pytest

from allsight.data.readers import open_reader

pytestmark = pytest.mark.skipif(
    "ALLSIGHT_DATA" not in os.environ, reason="needs real data sets; set ALLSIGHT_DATA to their folder"
)

CAMVID = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)


def test_tiny_imagenet_is_read_from_its_shards():
    train = open_reader("imagefolder:tiny_imagenet20", split="train")
    val = open_reader("imagefolder:tiny_imagenet20", split="val")
    assert (len(train), len(val)) == (8996, 1000)
    assert train.classes == val.classes and train.classes[:2] == ("Egyptian cat", "golden retriever")
    assert (np.bincount(val.labels) == 50).all() and np.bincount(train.labels).min() >= 448
    sample = train[0]
    assert sample.id == "train/n01443537_10.jpg" and train.classes[sample.targets["label"]] == "goldfish"
    assert all(train[index].image.hw_px == (64, 64) for index in range(0, 8996, 250))


def test_cifar_is_read_from_its_zip():
    val = open_reader("imagefolder:cifar10", split="val")
    assert len(val) == 2000 and (np.bincount(val.labels) == 200).all() and val.classes[0] == "airplane"
    assert val[0].image.hw_px == (32, 32)


def test_camvid_is_read_with_and_without_the_sequence_that_leaks_into_val():
    options = {"classes": CAMVID, "ignore": 11}
    assert len(open_reader("label_maps:camvid", split="train", **options)) == 367
    train = open_reader("label_maps:camvid", split="train", **options, leave_out=("train/0016E5",))
    val = open_reader("label_maps:camvid", split="val", **options, leave_out=("train/0016E5",))
    assert (len(train), len(val)) == (163, 101)
    sample = train[0]
    labels = sample.targets["label_map"].pixels
    assert sample.image.hw_px == tuple(labels.shape) == (360, 480)
    assert set(labels.unique().tolist()) <= {*range(11), 255}


@pytest.mark.parametrize(
    ("name", "split", "length", "classes", "objects"),
    [("coco_small", "val", 140, 80, 1157), ("pennfudan", "val", 25, 1, 67), ("bccd", "val", 87, 3, 1137)],
)
def test_coco_sets_are_read_with_all_their_objects(name, split, length, classes, objects):
    reader = open_reader(f"coco:{name}", split=split, masks=False)
    assert (len(reader), len(reader.classes)) == (length, classes)
    assert sum(len(reader[index].targets["objects"]) for index in range(length)) == objects


def test_masks_of_real_pictures_lie_in_their_boxes():
    reader = open_reader("coco:coco_small", split="val")
    for index in range(0, len(reader), 10):
        objects = reader[index].targets["objects"]
        for box, mask in zip(objects.boxes_xyxy_px, objects.masks, strict=True):
            left, top, right, bottom = box.tolist()
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert top - 2 <= rows[0] and rows[-1] + 1 <= bottom + 2
            assert left - 2 <= columns[0] and columns[-1] + 1 <= right + 2
