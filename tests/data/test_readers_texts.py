"""Captions, questions, segments, manifests and plain text: what they become, and what is refused."""

import json

import numpy as np
import pytest
from data.toy_sets import WRITERS, picture, put, values_png

from allsight.config import ConfigError
from allsight.data.readers import open_reader
from allsight.data.readers.lines import Lines
from allsight.types import DataError


def changed(root, file: str, change):
    """A json file after `change` was applied to it."""
    tree = json.loads((root / file).read_text())
    change(tree)
    put(root / file, json.dumps(tree))
    return root


CAPTIONS = "annotations/captions_train.json"


def test_captions_are_stripped_and_pictures_without_any_left_out(tmp_path):
    WRITERS["coco_captions"](tmp_path)
    more = [
        {"id": 8, "image_id": 0, "caption": "\n a dog\t"},
        {"id": 9, "image_id": 0, "caption": "  "},
        {"id": 10, "image_id": 77, "caption": "nobody's"},
    ]
    changed(tmp_path, CAPTIONS, lambda t: (t["annotations"].extend(more), t["annotations"].pop(1)))
    reader = open_reader(f"coco_captions:{tmp_path}")
    assert [reader[n].targets["captions"] for n in range(2)] == [("picture 0", "a dog"), ("picture 2",)]
    assert reader.notes == (
        "1 pictures without captions left out",
        "1 empty captions dropped",
        "1 captions of pictures that are not in the file passed over",
    )


def test_a_caption_of_a_megabyte_is_an_error_of_its_sample(tmp_path):
    WRITERS["coco_captions"](tmp_path)
    changed(tmp_path, CAPTIONS, lambda t: t["annotations"][0].update(caption="x" * 2**20))
    reader = open_reader(f"coco_captions:{tmp_path}")
    with pytest.raises(
        DataError, match=r"^train/0\.png: a text of 1048576 characters.*max_characters"
    ) as caught:
        reader[0]
    assert caught.value.sample_id == "train/0.png" and len(str(caught.value)) < 200
    assert reader[1].targets["captions"] == ("picture 1",)
    long = open_reader(f"coco_captions:{tmp_path}", max_characters=2**20)
    assert len(long[0].targets["captions"][0]) == 2**20


@pytest.mark.parametrize(
    "name", ["../../secret.png", "/etc/passwd", "..\\secret.png", "C:/a.png", "a\0b.png", ""]
)
@pytest.mark.parametrize("format", ["coco", "coco_captions"])
def test_names_in_coco_json_cannot_leave_the_folder(tmp_path, format, name):
    WRITERS[format](tmp_path)
    file = f"annotations/{'instances' if format == 'coco' else 'captions'}_train.json"
    changed(tmp_path, file, lambda t: t["images"][1].update(file_name=name))
    with pytest.raises(DataError, match="leads out of the data set's folder"):
        open_reader(f"{format}:{tmp_path}")


def test_half_characters_and_other_encodings_are_refused(tmp_path):
    WRITERS["coco_captions"](tmp_path)
    changed(tmp_path, CAPTIONS, lambda t: t["annotations"][0].update(caption="a \ud800"))
    with pytest.raises(DataError, match="half a character"):
        open_reader(f"coco_captions:{tmp_path}")
    put(tmp_path / CAPTIONS, '{"images": [], "annotations": [], "caf\u00e9": 1}'.encode("latin-1"))
    with pytest.raises(DataError, match="not COCO json"):
        open_reader(f"coco_captions:{tmp_path}")
    put(tmp_path / CAPTIONS, "[" * 100_000)
    with pytest.raises(DataError, match="not COCO json"):
        open_reader(f"coco_captions:{tmp_path}")


def test_questions_have_all_answers_and_the_one_that_counts(tmp_path):
    WRITERS["coco_vqa"](tmp_path)
    sample = open_reader(f"coco_vqa:{tmp_path}")[0]
    assert sample.id == "train/10" and sample.inputs["question"].string == "what?"
    assert sample.targets == {"answers": ("cat", "dog", "dog"), "answer": "dog"}
    file = "v2_mscoco_train2014_annotations.json"
    changed(tmp_path, file, lambda t: t["annotations"][0].update(multiple_choice_answer="cat"))
    changed(tmp_path, file, lambda t: t["annotations"].pop())
    reader = open_reader(f"coco_vqa:{tmp_path}")
    assert reader[0].targets["answer"] == "cat" and reader[2].targets == {}
    assert reader.notes == ("1 questions without answers",)
    changed(tmp_path, file, lambda t: t["annotations"][0].update(answers=[3]))
    with pytest.raises(DataError, match=r"question 10 has the answers \[3\]; expected texts"):
        open_reader(f"coco_vqa:{tmp_path}")


def test_questions_in_one_file_name_their_pictures(tmp_path):
    put(tmp_path / "pictures/a.png", picture())
    row = {"question_id": 1, "image_id": 5, "question": "q", "answers": ["yes"], "image": "pictures/a.png"}
    rows = [{**row, "split": "train"}, {**row, "question_id": 2, "split": "val"}]
    put(tmp_path / "annotations/vqa.json", json.dumps({"questions": rows}))
    assert open_reader(f"coco_vqa:{tmp_path}", split="val")[0].id == "val/2"
    rows[0]["image"] = "../a.png"
    put(tmp_path / "annotations/vqa.json", json.dumps({"questions": rows}))
    with pytest.raises(DataError, match="leads out"):
        open_reader(f"coco_vqa:{tmp_path}")


def test_questions_of_some_types_are_read_alone(tmp_path):
    put(tmp_path / "a.png", picture())
    row = {"image_id": 5, "question": "q", "answers": ["yes"], "image": "a.png"}
    kinds = ("how", "is there", "how", None)
    rows = [
        {**row, "question_id": n, **({} if kind is None else {"question_type": kind})}
        for n, kind in enumerate(kinds)
    ]
    put(tmp_path / "annotations/vqa_train.json", json.dumps({"questions": rows}))
    reader = open_reader(f"coco_vqa:{tmp_path}", types=("how",))
    assert [reader[k].id for k in range(len(reader))] == ["train/0", "train/2"]
    assert reader.notes == ("2 questions of other types",) and len(list(reader.common_answers())) == 2
    assert len(open_reader(f"coco_vqa:{tmp_path}", types=("is there", "how"))) == 3
    with pytest.raises(DataError, match="no question of the type 'who'; it has how, is there"):
        open_reader(f"coco_vqa:{tmp_path}", types=("how", "who"))


def test_segments_are_numbered_with_class_kind_and_crowd(tmp_path):
    WRITERS["coco_panoptic"](tmp_path)
    reader = open_reader(f"coco_panoptic:{tmp_path}")
    assert reader.classes == ("cat", "sky") and reader.is_thing == (True, False)
    panoptic = reader[0].targets["panoptic"]
    assert panoptic.pixels[0].tolist() == [-1, -1, 0, 0, 0, 1, 1, 1]
    assert panoptic.labels.tolist() == [0, 1]
    assert panoptic.is_thing.tolist() == [True, False] and panoptic.is_crowd.tolist() == [True, False]


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        (np.full((6, 8), 7), "lacks 1 of its 2"),
        (np.array([[7, 9, 44, 9, 9, 9, 9, 9]] * 6), "has 2 segments that the json has not, and lacks 1"),
        (np.full((5, 8), 7), "is 8 x 5, the picture 8 x 6"),
    ],
)
def test_segments_that_do_not_fit_the_json_are_errors_of_their_sample(tmp_path, ids, reason):
    WRITERS["coco_panoptic"](tmp_path)
    rgb = np.stack((ids % 256, ids // 256, ids * 0), -1)
    put(tmp_path / "annotations/panoptic_train/0.png", values_png(rgb))
    reader = open_reader(f"coco_panoptic:{tmp_path}")
    with pytest.raises(DataError, match=rf"^train/0\.png: .*{reason}"):
        reader[0]
    assert len(reader[1].targets["panoptic"]) == 2


def manifest(root, *rows: dict | str, name: str = "train.jsonl"):
    put(root / "a.png", picture())
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    put(root / name, text)
    return f"manifest:{root}"


def test_manifest_fields_become_inputs_and_targets(tmp_path):
    rows = [
        {"image": "a.png", "label": "dog", "caption": "one", "captions": ["two"], "weather": "fine"},
        {"image": "a.png", "question": "q?", "answers": ["yes", "no"], "id": "mine"},
        {"image": "a.png", "boxes": [[-1, 0, 4, 3.5]], "labels": ["cat"]},
        {"text": "words alone"},
    ]
    reader = open_reader(manifest(tmp_path, rows[0], "", *rows[1:]))
    first, second, third, fourth = (reader[n] for n in range(4))
    assert reader.classes == ("cat", "dog")
    assert [s.id for s in (first, second, third, fourth)] == ["train/1", "train/mine", "train/4", "train/5"]
    assert first.targets == {"captions": ("one", "two"), "label": 1}
    assert second.inputs["question"].string == "q?" and second.targets == {"answers": ("yes", "no")}
    assert third.targets["objects"].boxes_xyxy_px.tolist() == [[0, 0, 4, 3.5]]
    assert third.targets["objects"].labels.tolist() == [0]
    assert fourth.inputs["text"].string == "words alone" and "image" not in fourth.inputs


def test_manifests_in_csv_may_hold_line_breaks_and_lists(tmp_path):
    rows = [
        "image,label,caption,boxes,labels",
        'a.png,3,"two\nlines, one field","[[0,0,4,4]]","[1]"',
        "",
        "a.png,0,,,",
    ]
    reader = open_reader(manifest(tmp_path, *rows, name="train.csv"))
    assert len(reader) == 2 and reader.classes == ("0", "1", "2", "3")
    assert reader[0].targets["captions"] == ("two\nlines, one field",) and reader[0].targets["label"] == 3
    assert reader[0].targets["objects"].labels.tolist() == [1]
    assert reader[1].targets == {"label": 0}


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (["text,label", "t"], "row 2: 1 fields; expected 2, as in the header"),
        (["text,text", "t,t"], "expected names of columns, each once"),
        (["text", '"a"b'], "not CSV"),
        (["text"], r"train\.csv: the file has no rows"),
        ([], r"train\.csv: the file has no rows"),
    ],
)
def test_a_wrong_csv_is_refused_with_its_place(tmp_path, rows, reason):
    with pytest.raises(DataError, match=reason):
        open_reader(manifest(tmp_path, *rows, name="train.csv"))


@pytest.mark.parametrize("name", ["train.jsonl", "train.csv"])
def test_a_bad_row_is_a_sample_that_cannot_be_read(tmp_path, name):
    lines = {
        "train.jsonl": [b'{"text": "one"}', b"{oops", b'{"text": "caf\xe9"}', b"[1]", b'{"text": "five"}'],
        "train.csv": [b"text", b"one", b"two,2", b"caf\xe9", b"3,3", b"five"],
    }[name]
    put(tmp_path / name, b"\n".join(lines))
    reader = open_reader(f"manifest:{tmp_path}")
    first = 2 if name == "train.csv" else 1
    assert [reader[n].inputs["text"].string for n in (0, 4)] == ["one", "five"] and len(reader) == 5
    for n in (1, 2, 3):
        row = rf"^train/{n + first}: .*{name}, (line|row) {n + first}(:|,) "
        with pytest.raises(DataError, match=row) as caught:
            reader[n]
        assert caught.value.sample_id == f"train/{n + first}"
    assert reader.notes[0].startswith("3 rows cannot be read, the first: ")


def test_bad_rows_of_one_file_for_all_splits_count_in_each(tmp_path):
    rows = [json.dumps({"text": s, "split": s}) for s in ("train", "val")]
    put(tmp_path / "all.jsonl", "\n".join([rows[0], "{", rows[1]]))
    for split in ("train", "val"):
        assert len(open_reader(str(tmp_path / "all.jsonl"), split=split)) == 2
    with pytest.raises(DataError, match="no split 'test'; there are: train, val"):
        open_reader(str(tmp_path / "all.jsonl"), split="test")


def test_a_long_field_of_a_csv_is_refused_with_its_sample_as_in_jsonl(tmp_path):
    reader = open_reader(manifest(tmp_path, "text", "x" * 200_000, "short", name="train.csv"))
    with pytest.raises(DataError, match=r"^train/2: a text of 200000 characters.*max_characters"):
        reader[0]
    assert reader[1].inputs["text"].string == "short"


def test_one_manifest_may_name_the_split_of_each_row(tmp_path):
    manifest(
        tmp_path,
        {"image": "a.png", "label": "x", "split": "train"},
        {"text": "t", "split": "val"},
        name="all.jsonl",
    )
    reader = open_reader(str(tmp_path / "all.jsonl"), split="val")
    assert len(reader) == 1 and reader[0].id == "val/2" and reader.classes == ("x",)
    assert reader.notes == ("1 rows of other splits passed over",)
    with pytest.raises(DataError, match="no split 'test'; there are: train, val"):
        open_reader(str(tmp_path / "all.jsonl"), split="test")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "expected an object"),
        ({"label": "x"}, "neither 'image' nor 'text'"),
        ({"image": 3}, "'image' is 3; expected a text"),
        ({"text": "t", "captions": "one"}, "'captions' is 'one'; expected a list"),
        ({"text": "t", "captions": [1]}, "1 among 'captions'"),
        ({"text": "t", "label": 1.5}, "expected a name, or a number"),
        ({"text": "t", "label": -1}, "expected a name, or a number"),
        ({"image": "a.png", "boxes": [[0, 0, 1, 1]]}, "1 boxes; expected as many 'labels'"),
        ({"image": "a.png", "boxes": [[0, 0, 1]], "labels": ["x"]}, "not four numbers"),
        ({"text": "t", "boxes": [[0, 0, 1, 1]], "labels": ["x"]}, "'boxes' without 'image'"),
        ({"image": "../a.png"}, "leads out of the data set's folder"),
    ],
)
def test_a_wrong_manifest_row_is_refused_with_its_place(tmp_path, row, reason):
    with pytest.raises(DataError, match=rf"train\.jsonl, (line|row) 1.*{reason}"):
        open_reader(manifest(tmp_path, row))


@pytest.mark.parametrize("box", [[3, 0, 3, 4], [9, 0, 12, 4], [float("nan"), 0, 3, 4]])
def test_boxes_without_area_in_the_picture_are_errors_of_their_sample(tmp_path, box):
    reader = open_reader(manifest(tmp_path, {"image": "a.png", "boxes": [box], "labels": ["x"]}))
    with pytest.raises(DataError, match=r"^train/1: box 1 is"):
        reader[0]


def test_pictures_outside_are_read_only_when_allowed(tmp_path):
    place = manifest(tmp_path / "inner", {"image": "../b.png"})
    put(tmp_path / "b.png", picture())
    assert open_reader(place, outside=True)[0].image.hw_px == (6, 8)


def test_classes_beside_a_manifest_give_names_to_numbers(tmp_path):
    place = manifest(tmp_path, {"text": "t", "label": 1}, {"text": "t", "label": "sea"})
    put(tmp_path / "classes.json", '["sea", "sky"]')
    reader = open_reader(place)
    assert reader.classes == ("sea", "sky") and [reader[n].targets["label"] for n in (0, 1)] == [1, 0]
    manifest(tmp_path, {"text": "t", "label": 2})
    with pytest.raises(DataError, match="class 2 is none of the 2 classes"):
        open_reader(place)


def test_lines_are_documents_found_by_their_place(tmp_path):
    put(tmp_path / "train.txt", "\ufefffirst\r\n\n  \nmitte \u00fc\nlast without an end")
    reader = open_reader(f"text:{tmp_path}")
    assert [reader[n].inputs["text"].string for n in range(3)] == [
        "first",
        "mitte \u00fc",
        "last without an end",
    ]
    assert [reader[n].id for n in range(3)] == ["train/1", "train/4", "train/5"]
    assert reader.notes == ("2 lines without text passed over",)


def test_files_are_documents_too(tmp_path):
    put(tmp_path / "train/b.txt", "two\nlines")
    put(tmp_path / "train/a.txt", "one")
    reader = open_reader(f"text:{tmp_path}")
    assert [(reader[n].id, reader[n].inputs["text"].string) for n in range(2)] == [
        ("train/a.txt", "one"),
        ("train/b.txt", "two\nlines"),
    ]


def test_another_encoding_must_be_named(tmp_path):
    put(tmp_path / "train.txt", "caf\u00e9\nplain\n".encode("latin-1"))
    reader = open_reader(f"text:{tmp_path}")
    with pytest.raises(DataError, match=r"^train/1: not utf-8 .* at byte 3\); set encoding="):
        reader[0]
    assert reader[1].inputs["text"].string == "plain"
    assert open_reader(f"text:{tmp_path}", encoding="latin-1")[0].inputs["text"].string == "caf\u00e9"
    with pytest.raises(ConfigError, match="unknown encoding 'utf8000'"):
        open_reader(f"text:{tmp_path}", encoding="utf8000")


@pytest.mark.parametrize("text", [b"", b"\n", b"a", b"a\n", b"\n\na", b"\xef\xbb\xbfa\nb"])
def test_lines_are_those_of_python(tmp_path, text):
    lines = Lines(put(tmp_path / "f", text))
    expected = text.decode("utf-8-sig").encode().split(b"\n")
    expected = expected[:-1] if expected[-1] == b"" else expected
    assert [lines[n] for n in range(len(lines))] == list(lines) == expected
    with pytest.raises(IndexError):
        lines[len(lines)]
