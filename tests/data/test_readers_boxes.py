"""Pascal VOC and YOLO: what boxes, polygons and lists become, and what is refused."""

import pytest
from data.toy_sets import WRITERS, picture, put, voc_object, voc_xml

from allsight.data.readers import open_reader
from allsight.types import DataError


@pytest.fixture
def voc(tmp_path):
    WRITERS["voc"](tmp_path)
    return tmp_path


@pytest.fixture
def yolo(tmp_path):
    WRITERS["yolo"](tmp_path)
    return tmp_path


def write_xml(root, text: str | bytes):
    put(root / "Annotations/train0.xml", text)
    return open_reader(f"voc:{root}")


def test_voc_corners_are_pixels_counted_from_one(voc):
    reader = write_xml(voc, voc_xml(voc_object("cat", 2, 1, 8, 6) + voc_object("dog", "3.0", 3, 3, 3)))
    objects = reader[0].targets["objects"]
    assert objects.boxes_xyxy_px.tolist() == [[1, 0, 8, 6], [2, 2, 3, 3]]
    assert [reader.classes[label] for label in objects.labels] == ["cat", "dog"]
    assert len(reader.classes) == 20 and reader.notes == ()
    zero = open_reader(f"voc:{voc}", first_pixel=0)[1].targets["objects"]
    assert zero.boxes_xyxy_px.tolist() == [[2, 2, 6, 5]]


def test_voc_lists_sizes_unless_an_xml_has_none(voc):
    write_xml(voc, "<annotation>")
    assert open_reader(f"voc:{voc}").sizes_hw_px.tolist() == [[1, 1], [6, 8], [6, 8]]
    reader = write_xml(voc, voc_xml("", width=0))
    with pytest.raises(DataError, match=r"^train/train0.jpg: its xml has no size \(1 of 3 have none\)"):
        _ = reader.sizes_hw_px


def test_voc_classes_of_other_sets_are_those_of_train(voc):
    write_xml(voc, voc_xml(voc_object("yak", 1, 1, 2, 2)))
    assert (
        open_reader(f"voc:{voc}").classes == open_reader(f"voc:{voc}", split="val").classes == ("cat", "yak")
    )
    put(voc / "classes.txt", "\ufeffyak\ncat\n")
    assert open_reader(f"voc:{voc}", split="val").classes == ("yak", "cat")


def test_voc_boxes_outside_are_clipped_or_dropped_and_difficult_ones_can_be_left_out(voc):
    things = voc_object("cat", -5, 2, 30, 4) + voc_object("cat", 20, 2, 30, 4) + voc_object("cat", 5, 5, 3, 6)
    things += voc_object("dog", 1, 1, 2, 2, more="<difficult>1</difficult>")
    reader = write_xml(voc, voc_xml(things))
    assert reader[0].targets["objects"].boxes_xyxy_px.tolist() == [[0, 1, 8, 4], [0, 0, 2, 2]]
    assert reader.notes == (
        "2 boxes without area in their picture dropped",
        "1 boxes reaching outside their picture clipped",
    )
    easy = open_reader(f"voc:{voc}", difficult=False)
    assert len(easy[0].targets["objects"]) == 1 and "1 difficult objects left out" in easy.notes


BOMB = "<!DOCTYPE a [<!ENTITY b 'bbbb'><!ENTITY c '&b;&b;&b;&b;'>]>"


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        (BOMB + voc_xml(voc_object("&c;", 1, 1, 2, 2)), "document type"),
        ("<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>" + voc_xml(""), "document type"),
        (voc_xml(voc_object("&b;", 1, 1, 2, 2)), "not xml .*undefined entity"),
        ("<annotation>", "not xml"),
        ("<html></html>", "begins with <html>"),
        (voc_xml("<object><name>cat</name></object>"), "no <name> or no <bndbox>"),
        (voc_xml(voc_object("cat", 1, 1, "two", 2)), "<xmax> 'two'; expected a number"),
        (voc_xml(voc_object("cat", 1, 1, "nan", 2)), "box of object 1 is not finite"),
        (voc_xml("", width=9), "the picture is 8 x 6 .* xml says 9 x 6"),
        (b"<?xml version='1.0' encoding='utf-8'?><annotation>\xff</annotation>", "not xml"),
        (b"<?xml version='1.0' encoding='klingon'?><annotation/>", "not xml .*encoding"),
    ],
)
def test_voc_faults_are_errors_of_their_sample(voc, xml, reason):
    reader = write_xml(voc, xml)
    with pytest.raises(DataError, match=rf"^train/train0\.jpg: .*{reason}") as caught:
        reader[0]
    assert caught.value.sample_id == "train/train0.jpg" and len(reader[1].targets["objects"]) == 1


def test_a_voc_object_of_no_class_is_an_error_of_its_sample(voc):
    put(voc / "classes.txt", "dog\n")
    reader = open_reader(f"voc:{voc}")
    with pytest.raises(DataError, match=r"an object is called 'cat', which is none of the 1 classes"):
        reader[0]
    assert reader.notes == ("3 pictures with damaged annotations, refused when read",)


def test_a_voc_xml_without_a_size_must_fit_the_picture(voc):
    bare = f"<annotation>{voc_object('cat', 2, 2, 5, 4)}</annotation>"
    assert write_xml(voc, bare)[0].targets["objects"].boxes_xyxy_px.tolist() == [[1, 1, 5, 4]]
    reader = write_xml(voc, f"<annotation>{voc_object('cat', 2, 2, 50, 4)}</annotation>")
    with pytest.raises(DataError, match="reaches outside the picture of 8 x 6, and the xml has no size"):
        reader[0]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b"])
def test_voc_lists_cannot_leave_the_folder(voc, name):
    put(voc / "ImageSets/Main/train.txt", f"train0\n{name}\n")
    with pytest.raises(DataError, match="leads out of the data set's folder"):
        open_reader(f"voc:{voc}")


def test_voc_is_found_below_a_folder_around_it_unless_there_are_two(tmp_path):
    WRITERS["voc"](tmp_path / "VOCdevkit/VOC2007")
    assert len(open_reader(f"voc:{tmp_path}")) == len(open_reader(str(tmp_path))) == 3
    WRITERS["voc"](tmp_path / "VOCdevkit/VOC2012")
    with pytest.raises(
        DataError, match=r"several folders of Pascal VOC: VOCdevkit/VOC2007, VOCdevkit/VOC2012"
    ):
        open_reader(f"voc:{tmp_path}")


def write_label(root, text: str | bytes):
    put(root / "labels/train/0.txt", text)
    return open_reader(f"yolo:{root}")


def test_yolo_boxes_are_shares_of_the_picture_around_a_middle(yolo):
    reader = write_label(yolo, "1 0.5 0.5 0.25 0.5\n\n0 0 0 1 1\n")
    objects = reader[0].targets["objects"]
    assert objects.boxes_xyxy_px.tolist() == [[3, 1.5, 5, 4.5], [0, 0, 4, 3]]
    assert objects.labels.tolist() == [1, 0] and reader.classes == ("cat", "dog")
    assert reader.notes == ("1 boxes reaching outside their picture clipped",)


def test_yolo_polygons_become_masks_and_the_boxes_around_them(yolo):
    objects = write_label(yolo, "0 0.25 0 0.75 0 0.75 1 0.25 1\n")[0].targets["objects"]
    assert objects.boxes_xyxy_px.tolist() == [[2, 0, 6, 6]]
    assert objects.masks[0, :, 2:6].all() and objects.masks.sum() == 24
    assert open_reader(f"yolo:{yolo}", masks=False)[0].targets["objects"].masks is None
    mixed = write_label(yolo, "0 0.25 0 0.75 0 0.75 1 0.25 1\n0 0.5 0.5 1 1")[0].targets["objects"]
    assert mixed.masks is None and len(mixed) == 2


def test_yolo_keypoints_are_read_where_the_yaml_announces_them(yolo):
    put(yolo / "data.yaml", "names: [cat, dog]\nkpt_shape: [2, 3]\nflip_idx: [1, 0]\n")
    for split, count in (("train", 3), ("val", 2)):
        for n in range(count):
            put(yolo / f"labels/{split}/{n}.txt", "0 0.5 0.5 1 1 0.25 0.5 2 0 0 0\n")
    objects = open_reader(f"yolo:{yolo}")[0].targets["objects"]
    assert objects.keypoints.tolist() == [[[2, 3, 2], [0, 0, 0]]] and objects.keypoint_pairs == ((0, 1),)


def test_a_yolo_picture_without_a_text_has_no_objects(yolo):
    (yolo / "labels/train/0.txt").rename(yolo / "labels/train/7.txt")
    reader = open_reader(f"yolo:{yolo}")
    assert len(reader[0].targets["objects"]) == 0
    assert reader.notes == (
        "1 pictures without a text: taken to have no objects",
        "1 texts without a picture passed over",
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0 0.5 0.5 0.5\n", "line 1: 3 numbers after the class; expected 4"),
        ("\n2 0.5 0.5 0.5 0.5\n", "line 2: class 2; expected 0 to 1"),
        ("0.5 0.5 0.5 0.5 0.5\n", r"class 0\.5; expected 0 to 1"),
        ("cat 0.5 0.5 0.5 0.5\n", "expected numbers, got 'cat"),
        ("0 nan 0.5 0.5 0.5\n", "NaN or infinite"),
        (b"0 0.5 \xff\n", "not UTF-8"),
    ],
)
def test_yolo_faults_are_errors_of_their_sample(yolo, text, reason):
    reader = write_label(yolo, text)
    with pytest.raises(DataError, match=rf"^train/0\.png: .*0\.txt.*{reason}") as caught:
        reader[0]
    assert caught.value.sample_id == "train/0.png" and len(reader[1].targets["objects"]) == 1


@pytest.mark.parametrize(
    ("yaml", "reason"),
    [
        ("names: 5", "'names' is 5; expected a list"),
        ("names: {0: cat, 2: dog}", "expected a list, or 0: name"),
        ("names: [cat]\nkpt_shape: 17", "'kpt_shape' is 17"),
        ("names: [cat]\nkpt_shape: [2, 3]\nflip_idx: [0, 0]", "'flip_idx' is"),
        ("names: !!python/object/apply:os.system [ls]", "not yaml"),
    ],
)
def test_a_wrong_yolo_yaml_is_refused_with_the_reason(yolo, yaml, reason):
    put(yolo / "data.yaml", yaml)
    with pytest.raises(DataError, match=rf"data\.yaml: .*{reason}"):
        open_reader(f"yolo:{yolo}")


def test_yolo_without_names_is_refused_unless_they_are_given(yolo):
    (yolo / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"no class names; write data\.yaml with 'names'"):
        open_reader(f"yolo:{yolo}")
    assert open_reader(f"yolo:{yolo}", classes=("a", "b")).classes == ("a", "b")


def test_the_other_yolo_layout_is_found(tmp_path):
    put(tmp_path / "data.yaml", "train: ../train/images\nval: ../valid/images\nnames: [cat]\n")
    for split in ("train", "valid"):
        put(tmp_path / f"{split}/images/a.png", picture())
        put(tmp_path / f"{split}/labels/a.txt", "0 0.5 0.5 1 1\n")
    assert open_reader(str(tmp_path), split="val")[0].id == "val/a.png"
    assert len(open_reader(str(tmp_path))[0].targets["objects"]) == 1
