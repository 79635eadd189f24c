"""Questions to a generalist: which task answers, what is refused in one line, and what is said of cuts."""

import json

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from text_sets import make_sets

from allsight.backbones import ViT
from allsight.config import ConfigError, Mixture
from allsight.engine.config import RunConfig
from allsight.engine.predictor import Predictor, load
from allsight.engine.schedule import Constant
from allsight.models import MultiHead, UniPerceiver
from allsight.tasks import (
    VQA,
    Captioning,
    Classification,
    ImageTextRetrieval,
    Language,
    MaskedLanguage,
    TextRetrieval,
    VideoClassification,
)
from allsight.types import DataError, Image, Video

COMMON = dict(size_px=16, max_tokens=32, batch_size=4)
TASKS = Mixture(
    captions=Captioning.Config(data="coco_captions:set", **COMMON),
    pairs=ImageTextRetrieval.Config(data="coco_captions:set", group_size=4, **COMMON),
    blanks=MaskedLanguage.Config(data="coco_captions:set", **COMMON),
    questions=VQA.Config(data="coco_vqa:set", **COMMON),
    words=Language.Config(data="manifest:sets", **COMMON),
    replies=TextRetrieval.Config(data="manifest:sets", group_size=4, **COMMON),
    actions=VideoClassification.Config(data="webdataset:clips", num_frames=2, **COMMON),
)
MODEL = dict(depth=1, channels=16, heads=2, hidden=16, image_px=16)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_sets(tmp_path_factory.mktemp("asking"))


@pytest.fixture(scope="module")
def generalist(root):
    config = RunConfig(
        name="asked",
        model=UniPerceiver.Config.variant("micro", **MODEL),
        tasks=TASKS,
        schedule=Constant.Config(steps=1),
        data={"root": str(root)},
    )
    return load(config, weights="random", device="cpu")


@pytest.fixture(scope="module")
def photo(root):
    return root / "set" / "images" / "val" / "0.png"


def clip():
    frames = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 3, 12, 12) * 40
    return Video(frames.contiguous(), torch.arange(3).float())


def test_each_kind_of_question_finds_its_task(generalist, photo):
    names = ["a red square", "a blue circle", "ein grünes Quadrat"]
    for expected, answer in {
        "questions": generalist.ask(photo, text="is it red?"),
        "captions": generalist.ask(photo, task="caption"),
        "pairs": generalist.ask(str(photo), candidates=names),
        "replies": generalist.ask("what?", candidates=names),
        "blanks": generalist.ask("a ___ square"),
        "words": generalist.ask("a red"),
        "actions": generalist.ask(clip(), candidates=["run", "fly"]),
    }.items():
        assert answer.task == expected and answer.notes == ()
        json.dumps(answer.to_json())


def test_scores_are_probabilities_among_the_candidates_whatever_their_order(generalist, photo):
    names = ["red", "blue", "grün", "紅", "أحمر"]
    one = generalist.ask(photo, task="classify", candidates=names)
    other = generalist.ask(photo, task="classify", candidates=names[::-1])
    assert one.scores.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(one.scores, other.scores[::-1], rtol=1e-5)
    best = generalist.ask(photo, task="classify", candidates=names, top=2)
    assert best.top(5) == one.top(2)


def test_answers_of_the_users_own_replace_those_of_the_data(generalist, photo):
    """The list of answers is a setting of the question, not of the model."""
    own = generalist.ask(photo, text="is it red?")
    assert own.classes == ("red", "yes")
    asked = generalist.ask(photo, text="is it red?", candidates=["yes", "no", "maybe"])
    assert asked.classes == ("yes", "no", "maybe") and asked.task == "questions"
    again = generalist.ask(photo, text="is it red?")
    np.testing.assert_array_equal(again.scores, own.scores)


def test_a_text_finds_pictures_by_the_same_similarity_as_a_picture_finds_texts(generalist, root):
    photos = [root / "set" / "images" / "val" / f"{n}.png" for n in range(3)]
    found = generalist.ask("a red square", task="pairs", candidates=photos)
    assert found.classes == tuple(map(str, photos))
    cosines = [generalist.ask(photo, text="a red square", task="pairs").similarity() for photo in photos]
    scale = float(generalist.model.scale("pairs").detach())
    expected = torch.tensor(cosines).mul(scale).softmax(0).numpy()
    np.testing.assert_allclose(found.scores, expected, rtol=1e-3)
    # More than go through the model at once.
    many = [Image(torch.full((3, 8, 8), n, dtype=torch.uint8)) for n in range(70)]
    assert len(generalist.ask("a red square", task="pairs", candidates=many).scores) == 70


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (7, 3)])
def test_pictures_of_any_shape_are_answered(generalist, shape):
    answer = generalist.ask(np.zeros((*shape, 3), np.uint8), text="is it red?")
    assert np.isfinite(answer.scores).all()


REFUSED = {
    "no task 'clasify'; did you mean 'classify'?": dict(task="clasify", candidates=["a", "b"]),
    "candidates: there are none": dict(candidates=[]),
    "candidates: number 2 of 2 is empty": dict(candidates=["a", "  "]),
    "candidates: 'a' is there 2 times": dict(candidates=["a", "b", " a"]),
    "candidates: expected several, got one text": dict(candidates="cat"),
    "candidates: expected all of one kind": dict(candidates=["a", Image(torch.zeros(3, 4, 4))]),
    "text: it is empty": dict(text=" \n"),
    "candidates: 'word word": dict(candidates=["word " * 10_000, "b"]),
    "question: a text of": dict(text="word " * 10_000),
    "task 'captions' writes its answers": dict(task="caption", candidates=["a", "b"]),
    "task 'blanks' takes a text; got a picture and a text": dict(task="fill", text="a ___"),
    "top: expected 1 or more": dict(candidates=["a"], top=0),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_answered_is_one_line(generalist, photo, said):
    with pytest.raises((ConfigError, DataError)) as caught:
        generalist.ask(photo, **REFUSED[said])
    assert said in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ((), "nothing to ask about"),
        (("none.jpg",), "none.jpg"),
        (("a text", "another"), "2 texts; expected one"),
        ((clip(), "what is this?"), "no task fits a clip and a text: 'captions' takes a picture; "),
    ],
)
def test_inputs_that_are_no_question_are_one_line(generalist, inputs, said):
    with pytest.raises((ConfigError, DataError), match=said) as caught:
        generalist.ask(*inputs)
    assert "\n" not in str(caught.value)


def test_what_is_cut_is_said_in_the_answer_and_counted_in_the_run(generalist, photo, tmp_path):
    (tmp_path / "run").mkdir()
    asked = Predictor(
        generalist.config,
        generalist.model,
        generalist.tasks,
        generalist.device,
        weights="random",
        folder=tmp_path / "run",
    )
    short = asked.ask(photo, text="is it red?", cut=True)
    long = asked.ask(photo, text="is it red? " * 10_000, cut=True)
    assert short.notes == () and "notes" not in short.to_json()
    (note,) = long.to_json()["notes"]
    count = len(generalist.tasks["questions"].tokenizer.encode("is it red? " * 10_000))
    assert note.startswith(f"question: {count - 30:,} of {count:,} tokens left out")
    (event,) = map(json.loads, (tmp_path / "run" / "events.jsonl").read_text().splitlines())
    assert (event["kind"], event["task"], event["values"]) == ("ask", "questions", {"texts_cut": 1})
    assert asked.texts_cut == 1


def test_a_model_with_heads_reads_no_questions(root):
    data = root / "folder"
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (data / split / name).mkdir(parents=True)
            Picture.new("RGB", (16, 16)).save(data / split / name / "a.png")
    config = RunConfig(
        name="heads",
        model=MultiHead.Config(backbone=ViT.Config(channels=16, depth=1, heads=2, patch_px=8)),
        tasks=Mixture(animals=Classification.Config(data=f"imagefolder:{data}", size_px=16, batch_size=2)),
        schedule=Constant.Config(steps=1),
    )
    with pytest.raises(ConfigError, match="reads no questions; use `allsight predict`"):
        load(config, weights="random").ask(np.zeros((4, 4, 3), np.uint8), text="what?")


def test_interference_of_a_whole_model_is_measured_and_leaves_it_alone(generalist, tmp_path):
    """Losses that need training mode are computed in it, without anything random."""
    few = {name: generalist.tasks[name] for name in ("captions", "pairs", "questions")}
    asked = Predictor(generalist.config, generalist.model, few, generalist.device, weights="random")
    before = {name: tensor.clone() for name, tensor in generalist.model.state_dict().items()}
    found = asked.interference(batches=1, batch_size=4)
    again = asked.interference(batches=1, batch_size=4)
    assert found == again or found.whole == again.whole
    assert all(found.whole[n][n] == pytest.approx(1.0) for n in range(3))
    assert {"block 0 attention", "block 0 MLP", "text", "vision", "output"} <= set(found.parts)
    assert all(torch.equal(before[n], tensor) for n, tensor in generalist.model.state_dict().items())
    assert not any(module.training for module in generalist.model.modules())
    found.note(tmp_path, 7)
    (event,) = map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines())
    assert (event["kind"], event["step"]) == ("interference", 7)
    assert event["values"]["whole/captions<captions"] == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="one task"):
        Predictor(
            generalist.config, generalist.model, {"a": few["pairs"]}, generalist.device, weights="random"
        ).interference()
