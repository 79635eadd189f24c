"""COCO json: boxes, masks in all three writings, and what is refused."""

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from allsight.data.readers import open_reader
from allsight.data.readers.coco_masks import parse_run_lengths, segmentation_to_mask
from allsight.data.transforms.carry import tight_boxes
from allsight.data.world.masks import run_lengths, to_segmentation
from allsight.types import DataError

# What pycocotools 2.0.11 makes of this polygon on a picture of 9 x 10, and how it writes that.
POLYGON = [2.3, 1.1, 8.7, 2.2, 6.1, 7.9, 3.3, 5.0]
POLYGON_ROWS = ["", "...1", "...111111", "...11111", "...11111", "....111", ".....11", "", ""]
POLYGON_TEXT = "l0460O1O00N2N9"


def expected_polygon() -> np.ndarray:
    rows = [[letter == "1" for letter in row.ljust(10, ".")] for row in POLYGON_ROWS]
    return np.array(rows, dtype=bool)


def annotation(id: int, image_id: int, bbox: list, **more) -> dict:
    return {"id": id, "image_id": image_id, "category_id": 7, "bbox": bbox, "iscrowd": 0, **more}


def tree() -> dict:
    image = {"height": 9, "width": 10}
    return {
        "images": [{"id": 5, "file_name": "five.png", **image}, {"id": 3, "file_name": "three.png", **image}],
        "categories": [{"id": 9, "name": "zebra"}, {"id": 7, "name": "cat"}],
        "annotations": [
            annotation(1, 3, [1, 2, 3, 4], category_id=9, segmentation=[[1, 2, 4, 2, 4, 6, 1, 6]]),
            annotation(2, 5, [2, 1, 7, 7], segmentation=[POLYGON]),
            annotation(3, 5, [0, 0, 10, 9], iscrowd=1, segmentation={"size": [9, 10], "counts": [80, 10]}),
            annotation(4, 5, [2, 1, 7, 7], segmentation={"size": [9, 10], "counts": POLYGON_TEXT}),
        ],
    }


def write(root, content: dict | str, *, pictures: bool = True):
    (root / "annotations").mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (root / "annotations/instances_train.json").write_text(text)
    (root / "images/train").mkdir(parents=True, exist_ok=True)
    if pictures:
        for image in content["images"]:
            size = (image["width"], image["height"])
            PillowImage.new("RGB", size, (1, 2, 3)).save(root / "images/train" / image["file_name"])
    return root


def opened(root, **options):
    return open_reader(f"coco:{root}", None, "train", **options)


def test_boxes_masks_crowds_and_classes_are_read(tmp_path):
    reader = opened(write(tmp_path, tree()))
    assert reader.classes == ("cat", "zebra") and len(reader) == 2 and reader.notes == ()
    assert reader.image_ids.tolist() == [5, 3] and reader.annotation_ids.tolist() == [2, 3, 4, 1]
    five, three = reader[0], reader[1]
    assert (five.id, three.id) == ("train/five.png", "train/three.png")
    objects = five.targets["objects"]
    assert objects.boxes_xyxy_px.tolist() == [[2, 1, 9, 8], [0, 0, 10, 9], [2, 1, 9, 8]]
    assert objects.labels.tolist() == [0, 0, 0] and objects.is_crowd.tolist() == [False, True, False]
    np.testing.assert_array_equal(objects.masks[0].numpy(), expected_polygon())
    np.testing.assert_array_equal(objects.masks[2].numpy(), expected_polygon())
    assert objects.masks[1].sum() == 10 and objects.masks[1][:, 9].sum() == 9
    assert three.targets["objects"].labels.tolist() == [1]
    again = pickle.loads(pickle.dumps(reader))[0].targets["objects"]
    assert torch.equal(again.masks, objects.masks)


def test_options_leave_out_masks_crowds_and_pictures_without_objects(tmp_path):
    content = tree()
    content["annotations"] = content["annotations"][1:]
    write(tmp_path, content)
    assert opened(tmp_path, masks=False)[0].targets["objects"].masks is None
    assert len(opened(tmp_path, crowd=False)[0].targets["objects"]) == 2
    empty = opened(tmp_path)[1].targets["objects"]
    assert len(empty) == 0 and empty.masks.shape == (0, 9, 10)
    only = opened(tmp_path, only_annotated=True)
    assert [only[k].id for k in range(len(only))] == ["train/five.png"] and len(
        only[0].targets["objects"]
    ) == 3
    left = opened(tmp_path, leave_out=("train/fi",))
    assert [left[k].id for k in range(len(left))] == ["train/three.png"] and left.notes == (
        "1 pictures left out",
    )


def test_masks_are_given_only_where_every_object_has_one(tmp_path):
    content = tree()
    del content["annotations"][1]["segmentation"]
    reader = opened(write(tmp_path, content))
    assert reader[0].targets["objects"].masks is None and reader[1].targets["objects"].masks is not None


def test_boxes_are_clipped_and_those_without_area_dropped_and_counted(tmp_path):
    content = tree()
    content["annotations"] = [
        annotation(1, 5, [-3, 2, 5, 100]),
        annotation(2, 5, [4, 4, 0, 3]),
        annotation(3, 5, [4, 4, -2, 3]),
        annotation(4, 5, [11, 1, 5, 5]),
        annotation(5, 77, [1, 1, 1, 1]),
    ]
    reader = opened(write(tmp_path, content))
    assert reader[0].targets["objects"].boxes_xyxy_px.tolist() == [[0, 2, 2, 9]]
    assert reader.notes == (
        "3 boxes without area in their picture dropped",
        "1 boxes reaching outside their picture clipped",
        "1 annotations of pictures that are not in the file passed over",
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_boxes_that_are_not_finite_are_errors_of_their_sample(tmp_path, bad):
    content = tree()
    content["annotations"][1]["bbox"] = [bad, 1, 2, 3]
    reader = opened(write(tmp_path, content))
    with pytest.raises(DataError, match=r"^train/five\.png: the box of annotation 2 is not finite") as caught:
        reader[0]
    assert caught.value.sample_id == "train/five.png" and len(reader[1].targets["objects"]) == 1


def test_a_missing_or_resized_picture_is_an_error_of_its_sample(tmp_path):
    write(tmp_path, tree())
    reader = opened(tmp_path)
    PillowImage.new("RGB", (9, 10)).save(tmp_path / "images/train/three.png")
    (tmp_path / "images/train/five.png").unlink()
    with pytest.raises(
        DataError, match=r"^train/five\.png: no such picture: .*instances_train\.json"
    ) as caught:
        reader[0]
    assert caught.value.sample_id == "train/five.png"
    with pytest.raises(DataError, match=r"^train/three\.png: the picture is 9 x 10 .* says 10 x 9"):
        reader[1]


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([[1, 2, 3, 4]], "three corners"),
        ([[1, 2, 3, 4, 5, "x"]], "could not convert|three corners"),
        ([[1, 2, 3, 4, 5]], "three corners"),
        ({"size": [10, 9], "counts": [90]}, "expected \\[9, 10\\]"),
        ({"size": [9, 10], "counts": [80, 9]}, "add up to 89"),
        ({"size": [9, 10], "counts": [100, -10]}, "expected 9 x 10"),
        ({"size": [9, 10], "counts": POLYGON_TEXT + "q"}, "damaged"),
        ({"size": [9, 10], "counts": "\x00"}, "damaged"),
        ("mask.png", "neither polygons nor run lengths"),
    ],
)
def test_malformed_masks_are_errors_of_their_sample(tmp_path, segmentation, reason):
    content = tree()
    content["annotations"][1]["segmentation"] = segmentation
    reader = opened(write(tmp_path, content))
    with pytest.raises(DataError, match=rf"^train/five\.png: the mask of annotation 2: .*({reason})"):
        reader[0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t["images"].append(t["images"][0]), "image id 5 occurs more than once"),
        (lambda t: t["images"][1].update(file_name="five.png"), "file_name 'five.png' occurs more than once"),
        (lambda t: t["annotations"].append(t["annotations"][0]), "annotation id 1 occurs more than once"),
        (lambda t: t["categories"].append(t["categories"][0]), "category id 9 occurs more than once"),
        (lambda t: t["annotations"][0].update(category_id=8), "annotation 1 has category 8"),
        (lambda t: t["annotations"][0].pop("bbox"), r"entry 1 of 'annotations' \(id 1\) has no 'bbox'"),
        (lambda t: t["annotations"][1].pop("id"), "entry 2 of 'annotations' has no 'id'"),
        (lambda t: t["annotations"][0].update(bbox=[1, 2, 3]), "not four numbers"),
        (lambda t: t.update(images=[]), "no pictures"),
        (lambda t: t.update(images=["a.jpg"]), "entry 1 of 'images' is 'a.jpg'; expected an object"),
        (lambda t: t["images"][0].update(height=None), "has 'height' None; expected a number"),
        (lambda t: t["images"][0].update(file_name=3), "has 'file_name' 3; expected a text"),
        (lambda t: t["categories"][0].update(id="one"), "has 'id' 'one'; expected a whole number"),
        (lambda t: t.pop("categories"), "no list 'categories'"),
    ],
)
def test_a_wrong_json_is_refused_with_the_reason(tmp_path, change, reason):
    content = tree()
    write(tmp_path, content)
    change(content)
    write(tmp_path, content, pictures=False)
    with pytest.raises(DataError, match=rf"instances_train\.json: .*{reason}"):
        opened(tmp_path)


def test_what_is_not_there_is_named(tmp_path):
    write(tmp_path, tree())
    with pytest.raises(DataError, match=r"no split 'val'; there are: train; expected .*instances_val\.json"):
        open_reader(f"coco:{tmp_path}", None, "val")
    (tmp_path / "annotations/instances_val.json").write_text("{}")
    (tmp_path / "images").rename(tmp_path / "pictures")
    with pytest.raises(
        DataError, match=r"is there, but not the folder of its pictures; expected .*images/val"
    ):
        open_reader(f"coco:{tmp_path}", None, "val")
    (tmp_path / "pictures").rename(tmp_path / "images")
    write(tmp_path, "{", pictures=False)
    with pytest.raises(DataError, match="not COCO json"):
        opened(tmp_path)


@pytest.mark.parametrize("layout", ["{split}2017", "images"])
def test_other_layouts_are_found(tmp_path, layout):
    write(tmp_path, tree())
    if "2017" in layout:
        (tmp_path / "annotations/instances_train.json").rename(
            tmp_path / "annotations/instances_train2017.json"
        )
        (tmp_path / "images/train").rename(tmp_path / "train2017")
    else:
        for picture in (tmp_path / "images/train").iterdir():
            picture.rename(tmp_path / "images" / picture.name)
        (tmp_path / "images/train").rmdir()
    assert opened(tmp_path)[0].id == "train/five.png"


def test_polygons_become_the_pixels_pycocotools_gives():
    np.testing.assert_array_equal(segmentation_to_mask([POLYGON], 9, 10), expected_polygon())
    outside = [[-5.0, -5.0, 30.0, -5.0, 30.0, 4.0, -5.0, 4.0]]
    np.testing.assert_array_equal(np.flatnonzero(segmentation_to_mask(outside, 9, 10).all(1)), np.arange(4))
    assert not segmentation_to_mask([[1.0, 1.0, 1.2, 1.0, 1.2, 1.2]], 9, 10).any()
    both = segmentation_to_mask([[0, 0, 2, 0, 2, 2, 0, 2], [1, 1, 4, 1, 4, 3, 1, 3]], 9, 10)
    assert both.sum() == 4 + 6 - 1


def test_run_lengths_read_what_the_world_writes():
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(1, 40, 2).tolist()
        mask = rng.random((height, width)) < rng.random()
        text = run_lengths(mask)
        np.testing.assert_array_equal(segmentation_to_mask(text, height, width), mask)
        counts = parse_run_lengths(text["counts"]).tolist()
        np.testing.assert_array_equal(
            segmentation_to_mask({"size": [height, width], "counts": counts}, height, width), mask
        )
    assert parse_run_lengths("").tolist() == []


def test_outlines_of_masks_come_back_as_the_masks():
    rng = np.random.default_rng(1)
    for _ in range(30):
        mask = np.zeros((30, 40), dtype=bool)
        for _ in range(3):
            top, left = rng.integers(0, 25), rng.integers(0, 35)
            mask[top : top + rng.integers(1, 9), left : left + rng.integers(1, 9)] = True
        found = segmentation_to_mask(to_segmentation(mask), 30, 40)
        np.testing.assert_array_equal(found, mask)
        assert torch.equal(
            tight_boxes(torch.from_numpy(found.copy())[None]), tight_boxes(torch.from_numpy(mask)[None])
        )
