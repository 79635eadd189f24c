"""The language world: its split keeps its promises, its texts say what the pictures show."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from allsight.config import ConfigError
from allsight.data.readers import open_reader
from allsight.data.text import Tokenizer
from allsight.data.world import Language, World, generate_world
from allsight.data.world.language import Thing, caption_of, generate_language, read_pictures
from allsight.data.world.language.arranging import arrange
from allsight.data.world.language.export import make_folders, write_picture
from allsight.data.world.language.questions import SIMPLER, TYPES, questions_of
from allsight.data.world.language.sentences import reordered, shortened
from allsight.data.world.language.split import PAIRS, SPLITS
from allsight.data.world.language.vocabulary import (
    ANSWERS,
    COLOURS,
    NAMES,
    PLACES,
    SIMPLER_ANSWERS,
    SIZES,
    tokens,
)
from allsight.data.world.sampling import Draws
from allsight.data.world.vocabulary import CAPTION_SHAPES, SHAPES

SMALL = Language.Config(seed=3, size_px=48, train=224, val=27, pairs=12, per_shard=100)
PLAIN = World.Config(seed=7, size_px=32, train=12, val=12)


def files_below(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_world(tmp_path_factory.mktemp("made") / "world", PLAIN, language=SMALL)


@pytest.fixture(scope="module", params=[0, 987_654_321])
def arranged(request: pytest.FixtureRequest) -> dict[str, list[tuple[Thing, ...]]]:
    config = Language.Config(seed=request.param, train=1500, val=400, pairs=300)
    return {split: list(arrange(config, split)) for split in SPLITS}


def triples(pictures: list[tuple[Thing, ...]]) -> set[tuple[str, str, str]]:
    return {(thing.name, thing.colour, thing.place) for things in pictures for thing in things}


def test_no_combination_of_val_is_in_train_and_each_of_its_pairs_is(arranged: dict):
    train, val = triples(arranged["train"]), triples(arranged["val"])
    assert val and not train & val
    assert {triple[:2] for triple in val} <= {triple[:2] for triple in train}
    assert {triple[:2] for triple in train} == set(PAIRS["train"])


def test_held_out_pairs_are_nowhere_but_in_their_own_split(arranged: dict):
    held_out = set(PAIRS["pairs"])
    assert {triple[:2] for triple in triples(arranged["pairs"])} == held_out
    for split in ("train", "val"):
        assert not held_out & {triple[:2] for triple in triples(arranged[split])}
    assert max(Counter(name for name, _ in held_out).values()) * 8 <= len(COLOURS)
    assert {name for name, _ in held_out} == set(NAMES)


def test_no_two_pictures_of_a_split_have_the_same_caption(arranged: dict):
    for pictures in arranged.values():
        assert len({caption_of(things) for things in pictures}) == len(pictures)


def test_objects_stand_apart_in_reading_order_and_one_is_large(arranged: dict):
    for pictures in arranged.values():
        assert {len(things) for things in pictures} == {1, 2, 3}
        for things in pictures:
            places = [PLACES.index(thing.place) for thing in things]
            assert places == sorted(set(places))
            assert [thing.size for thing in things].count("large") == 1


def test_the_least_training_set_already_has_every_pair():
    least = Language.Config(seed=9, train=224, objects=(1, 1))
    assert {triple[:2] for triple in triples(list(arrange(least, "train")))} == set(PAIRS["train"])


def test_a_picture_depends_on_those_before_it_and_not_on_how_many_follow():
    few, many = (list(arrange(Language.Config(val=count), "val")) for count in (50, 80))
    assert many[:50] == few


def test_names_of_captions_are_in_nothing_else(root: Path):
    captions = 0
    for split in SPLITS:
        questions = (root / "language" / "annotations" / f"vqa_{split}.json").read_text()
        rows = [json.loads(line) for line in (root / "language" / f"{split}.jsonl").read_text().splitlines()]
        answers = {answer for row in rows for answer in row["answers"]}
        folders = {folder.name for folder in (root / "language" / "classes" / split).iterdir()}
        tree = json.loads((root / "language" / "annotations" / f"captions_{split}.json").read_text())
        for name in CAPTION_SHAPES:
            assert not re.search(rf"\b{name}\b", questions)
        assert not answers & set(CAPTION_SHAPES) and folders == set(SHAPES)
        captions += sum(name in a["caption"] for a in tree["annotations"] for name in CAPTION_SHAPES)
    assert captions > 100
    assert not {*ANSWERS, *SIMPLER_ANSWERS} & set(CAPTION_SHAPES)


def test_no_training_text_speaks_of_a_held_out_pair(root: Path):
    folder = root / "language"
    captions = json.loads((folder / "annotations" / "captions_train.json").read_text())["annotations"]
    questions = json.loads((folder / "annotations" / "vqa_train.json").read_text())["questions"]
    tars = b"".join(tar.read_bytes() for tar in sorted((folder / "image_text").glob("train-*.tar")))
    short = re.findall(rb'"captions":\["[^"]*","([^"]*)"\]', tars)
    texts = [entry["caption"] for entry in captions] + [text.decode() for text in short]
    assert len(texts) == 3 * SMALL.train
    objects = [set(part.split()) for text in texts for part in text.split(" and ")]
    # A question names one object with both its name and its colour only where it asks whether there is one.
    asked = [set(re.findall(r"\w+", q["question"])) for q in questions if q["question_type"] == "exist"]
    for name, colour in PAIRS["pairs"]:
        assert not any({name, colour} <= words for words in objects + asked)


def test_a_name_never_stands_alone_in_a_caption(arranged: dict):
    draws = Draws(0, "train", "pictures", 5)
    for things in arranged["train"][:400]:
        parts = shortened(draws, things).split(" and ")
        assert all(len(part.split()) >= 2 for part in parts) and len(parts) <= len(things)
        own = [set(thing.words) for thing in things]
        assert all(any(set(part.split()) <= words for words in own) for part in parts)
        again = reordered(draws, things).split(" and ")
        assert [set(part.split()) for part in again] == own


def test_pictures_show_what_is_said(root: Path):
    extents: dict[str, list[int]] = {size: [] for size in SIZES}
    for split in SPLITS:
        for things, scene in read_pictures(root / "language", split):
            for thing, toy in zip(things, scene.toys, strict=True):
                left, top, right, low = toy.box_xyxy_px
                row, column = (int(1.5 * edge / SMALL.size_px) for edge in (top + low, left + right))
                assert PLACES[3 * row + column] == thing.place
                assert (toy.shape, toy.colour, toy.size) == (thing.name, thing.colour, thing.size)
                assert toy.visible > 0.85
                extents[thing.size].append(max(right - left, low - top))
    assert max(extents["small"]) < min(extents["medium"]) and max(extents["medium"]) < min(extents["large"])


def answer_of(text: str, things: tuple[Thing, ...]) -> str:
    """The answer that follows from the words of a question, found another way than they were made."""

    def fitting(words: str) -> list[Thing]:
        wanted = [word for word in words.split() if word not in ("object", "objects", "the", "a", "at")]
        return [thing for thing in things if set(wanted) <= set(thing.words)]

    def place(words: str) -> tuple[int, int]:
        (thing,) = fitting(words)
        return divmod(PLACES.index(thing.place), 3)

    text = text.removesuffix("?")
    if match := re.fullmatch(r"where is (.*)", text):
        (thing,) = fitting(match[1])
        return thing.place
    if match := re.fullmatch(r"is (.*) (left or right of|above or below) (.*)", text):
        (row_a, column_a), (row_b, column_b) = place(match[1]), place(match[3])
        if match[2] == "above or below":
            assert row_a != row_b
            return "above" if row_a < row_b else "below"
        assert column_a != column_b
        return "left" if column_a < column_b else "right"
    if match := re.fullmatch(r"is there (.*)", text):
        return "yes" if fitting(match[1]) else "no"
    if match := re.fullmatch(r"how many (.*) are there", text):
        return str(len(fitting(match[1])))
    if match := re.fullmatch(r"what colour is (.*)", text):
        (thing,) = fitting(match[1])
        return thing.colour
    if match := re.fullmatch(r"what is (.*)", text):
        (thing,) = fitting(match[1])
        return thing.name
    match = re.fullmatch(r"is (.*) (left of|right of|above|below) (.*)", text)
    (row_a, column_a), (row_b, column_b) = place(match[1]), place(match[3])
    holds = {
        "left of": column_a < column_b,
        "right of": column_a > column_b,
        "above": row_a < row_b,
        "below": row_a > row_b,
    }
    return "yes" if holds[match[2]] else "no"


def test_answers_follow_from_the_scene_and_no_wording_gives_them_away(arranged: dict):
    asked: dict[str, list[str]] = {type: [] for type in TYPES + SIMPLER}
    for split, pictures in arranged.items():
        for number, things in enumerate(pictures[:300]):
            found = questions_of(Draws(1, split, "pictures", number), split, things)
            assert len({question.type for question in found}) == len(found)
            for question in found:
                possible = SIMPLER_ANSWERS if question.type in SIMPLER else ANSWERS
                assert answer_of(question.text, things) == question.answer in possible, question
                asked[question.type].append(question.answer)
    most = {"exist": 0.54, "relation": 0.54, "count": 0.6, "colour": 0.2, "shape": 0.15}
    most |= {"there": 0.57, "where": 0.2, "side": 0.35}
    for type, answers in asked.items():
        share = Counter(answers).most_common(1)[0][1] / len(answers)
        assert len(answers) > 400
        assert share < most[type], type


def test_readers_of_real_data_read_all_of_it(root: Path):
    for split in SPLITS:
        pictures = list(read_pictures(root / "language", split))
        captions, pairs, sentences = (
            open_reader(data, root=root, split=split)
            for data in ("coco_captions:language", "webdataset:language/image_text", "manifest:language")
        )
        assert len(captions) == len(pairs) == len(sentences) == len(pictures) == getattr(SMALL, split)
        for n in (0, len(pictures) - 1):
            things, scene = pictures[n]
            canonical = caption_of(things)
            assert captions[n].targets["captions"][0] == pairs[n].targets["captions"][0] == canonical
            assert captions[n].id == f"{split}/{scene.name}.jpg"
            assert (captions[n].image.pixels == pairs[n].image.pixels).all()
            filled = sentences[n].inputs["text"].string
            for answer in sentences[n].targets["answers"]:
                filled = filled.replace("___", answer, 1)
            assert filled == canonical
        classes = open_reader("imagefolder:language/classes", root=root, split=split)
        assert classes.classes == SHAPES
        mains = Counter(things[scene.main].name for things, scene in pictures)
        counted = Counter(SHAPES[label] for label in np.asarray(classes.labels))
        assert counted == Counter({name: mains[name] for name in SHAPES if mains[name]})
        questions = open_reader("coco_vqa:language", root=root, split=split)
        assert set(questions.common_answers()) <= {*ANSWERS, *SIMPLER_ANSWERS}


def test_a_picture_and_its_texts_are_the_same_whenever_they_are_made(root: Path, tmp_path: Path):
    make_folders(tmp_path)
    for index, things in enumerate(arrange(SMALL, "val")):
        if index % 13 == 0:
            written = write_picture(SMALL, tmp_path, "val", index, things)
            name = f"images/val/picture_{index:06d}.jpg"
            assert (tmp_path / name).read_bytes() == (root / "language" / name).read_bytes()
            line = (root / "language" / "pictures_val.jsonl").read_text().splitlines()[index]
            assert written.graph == line
    other = list(arrange(SMALL.model_copy(update={"seed": 4}), "val"))
    assert other != [things for things, _ in read_pictures(root / "language", "val")]


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path: Path):
    one, two = (generate_language(tmp_path / str(n), SMALL, workers=n) for n in (1, 2))
    assert files_below(one) == files_below(two)


def test_the_other_files_of_a_world_stay_the_same(root: Path, tmp_path: Path):
    without = files_below(generate_world(tmp_path / "world", PLAIN))
    assert without == {k: v for k, v in files_below(root).items() if not k.startswith("language/")}


def test_every_word_is_one_token_and_comes_back(root: Path):
    tokenizer = Tokenizer.from_file(root / "language" / "tokenizer.json")
    assert all(len(tokenizer.encode(word)) == 1 for word in tokens())
    text = "small red cube top-left and large blue fish bottom"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    ids = tokenizer.encode("Is the cube left of the red object?")
    assert tokenizer.decode(ids) == "is the cube left of the red object ?"
    assert tokenizer.decode(tokenizer.encode("a zebra")) == "a <UNK>"


@pytest.mark.parametrize("wrong", [{"train": 100}, {"objects": (0, 2)}, {"objects": (2, 4)}, {"size_px": 16}])
def test_wrong_options_are_refused(wrong: dict):
    with pytest.raises(ConfigError):
        Language.Config(**wrong)


def test_more_pictures_than_there_are_captions_are_refused():
    with pytest.raises(ConfigError, match=r"config\.val: .*no two may have the same caption; got 500"):
        list(arrange(Language.Config(val=500, objects=(1, 1)), "val"))
    with pytest.raises(ConfigError, match="no such file; expected the folder `language`"):
        next(read_pictures("nowhere", "val"))
