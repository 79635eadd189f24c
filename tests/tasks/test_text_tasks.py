"""Tasks with texts: what reaches the model, what is refused, and scores checked by hand."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from text_sets import CAPTIONS, make_sets

from allsight.config import ConfigError
from allsight.config.base import import_file
from allsight.models import UniPerceiver
from allsight.tasks import (
    VQA,
    Captioning,
    Classification,
    ImageTextRetrieval,
    Language,
    MaskedLanguage,
    TextClassification,
    TextRetrieval,
    VideoClassification,
    VideoTextRetrieval,
)
from allsight.tasks.checking import check_task
from allsight.tasks.metrics import CaptionScores, RetrievalScores, VQAScores
from allsight.tasks.metrics.captions import bleu, cider_d
from allsight.types import Batch, ClassScores, DataError, PairAnswer, Sample, Text, TextAnswer


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_sets(tmp_path_factory.mktemp("texts"))


COMMON = dict(size_px=16, max_tokens=32, batch_size=4)
TASKS = {
    "caption": Captioning.Config(data="coco_captions:set", **COMMON),
    "retrieval": ImageTextRetrieval.Config(data="coco_captions:set", group_size=4, **COMMON),
    "masked": MaskedLanguage.Config(data="coco_captions:set", with_image=True, **COMMON),
    "vqa": VQA.Config(data="coco_vqa:set", **COMMON),
    "language": Language.Config(data="manifest:sets", **COMMON),
    "sentiment": TextClassification.Config(data="manifest:sets", names=("terrible", "great"), **COMMON),
    "entailment": TextClassification.Config(data="manifest:sets", pairs=True, **COMMON),
    "answers": TextRetrieval.Config(data="manifest:sets", group_size=4, **COMMON),
    "actions": VideoClassification.Config(data="webdataset:clips", num_frames=2, **COMMON),
    "clips": VideoTextRetrieval.Config(data="webdataset:clips", num_frames=2, group_size=4, **COMMON),
    "clip caption": Captioning.Config(data="webdataset:clips", num_frames=2, **COMMON),
}
SMALL = dict(depth=1, channels=16, heads=2, hidden=16, image_px=16)


def build(config, root, name="task", **changes):
    return config.model_copy(update=changes).build(name=name, root=root)


def batch_of(task, split="train"):
    reader, transform = task.reader(split), task.transform(split)
    samples = [transform(reader[i], np.random.default_rng(i)) for i in range(4)]
    return task.collate(samples)


@pytest.mark.parametrize("kind", TASKS)
def test_every_task_learns_and_answers(root, kind):
    task = build(TASKS[kind], root, kind)
    torch.manual_seed(0)
    model = UniPerceiver(UniPerceiver.Config.variant("micro", **SMALL), {kind: task}).train()
    batch = batch_of(task)
    batch = Batch(kind, batch.ids, batch.inputs, batch.targets, group_size=task.config.group_size)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    values = []
    for step in range(30):
        optimizer.zero_grad()
        losses = task.loss(model(batch)[0], batch)
        sum(losses.values()).backward()
        optimizer.step()
        model.after_step(step)
        values.append(sum(loss.item() for loss in losses.values()))
    assert values[-1] < values[0]
    assert set(task.counted) <= set(losses) and set(task.counts(batch)) == set(task.counted)
    model.eval()
    judged = batch_of(task, "val")
    with torch.no_grad():
        answers = task.decode(model(judged)[0], judged)
    assert [answer.id for answer in answers] == list(judged.ids)
    metric, right = task.metric(), task.metric()
    metric.update(answers, judged)
    assert all(math.isfinite(value) for value in metric.compute().values())
    assert task.main_metric() in metric.compute()
    right.update(task.truth(judged), judged)
    assert right.compute()[task.main_metric()] >= metric.compute()[task.main_metric()]
    json.dumps([answer.to_json() for answer in answers])


def test_masks_are_whole_words_and_stay_the_same_in_evaluation(root):
    task = build(TASKS["masked"], root, share_masked=0.4)
    a, b = batch_of(task, "val"), batch_of(task, "val")
    assert torch.equal(a.targets["labels"], b.targets["labels"])
    words = {f" {word}" for text in CAPTIONS for word in text.split()} | {
        text.split()[0] for text in CAPTIONS
    }
    for labels in a.targets["labels"]:
        taken = task.tokenizer.decode(labels[labels != -100])
        rest = taken
        for word in sorted(words, key=len, reverse=True):
            rest = rest.replace(word, "")
        assert taken and not rest.strip(), taken


def test_what_becomes_of_a_masked_word_is_drawn_once_for_all_of_it(root):
    """A part of it that stayed readable would tell the rest."""
    task = build(TASKS["masked"], root, share_masked=1.0)
    reader, transform = task.reader("train"), task.transform("train")
    spe, fates = task.tokenizer.spe_id, set()
    for seed in range(40):
        sample = transform(reader[0], np.random.default_rng(seed))
        seen, labels = sample.inputs["text"].tokens[:-1], sample.targets["masked_labels"]
        start = 0
        for word in re.findall(r"\s*\S+", sample.inputs["text"].string):
            count = len(task.tokenizer.encode(word))
            own = slice(start, start + count)
            hidden, kept = seen[own] == spe, seen[own] == labels[own]
            fates.add("hidden" if hidden.all() else "kept" if kept.all() else "other")
            assert hidden.all() or not hidden.any()
            start += count
    assert fates == {"hidden", "kept", "other"}


@pytest.mark.parametrize("text", ["a ___ square ___", "___ red square", "a red ___"])
@pytest.mark.parametrize("cut", [False, True])
def test_given_blanks_are_the_words_taken_out(root, text, cut):
    answers = {"a ___ square ___": ("blue", "left"), "___ red square": ("a",), "a red ___": ("circle",)}[text]
    long_texts, most = ("cut", 3) if cut else ("refuse", 32)
    task = build(TASKS["masked"], root, with_image=False, long_texts=long_texts, max_tokens=most)
    sample = Sample("x", {"text": Text(text)}, {"answers": answers})
    found = task.transform("train")(sample, np.random.default_rng(0))
    labels, seen = found.targets["masked_labels"], found.inputs["text"].tokens
    whole = text
    for answer in answers:
        whole = whole.replace("___", answer, 1)
    kept = torch.where(labels == -100, seen[:-1], labels)
    tokens = torch.cat([task.tokenizer.encode(word) for word in re.findall(r"\s*\S+", whole)])
    assert kept.tolist() == tokens.tolist()[: most - 1] and seen[-1] == task.tokenizer.eos_id
    assert (seen[:-1][labels != -100] == task.tokenizer.spe_id).all()
    if not cut:
        assert task.tokenizer.decode(labels[labels != -100]).split() == list(answers)


def test_blanks_without_as_many_answers_are_refused(root):
    task = build(TASKS["masked"], root, with_image=False)
    sample = Sample("x", {"text": Text("a ___ ___ left")}, {"answers": ("red",)})
    with pytest.raises(DataError, match="x: 2 blanks in 'a ___ ___ left' and 1 answers; expected as many"):
        task.transform("val")(sample, np.random.default_rng(0))


def test_a_long_text_is_refused_in_one_line_or_cut_on_request(root):
    task = build(TASKS["caption"], root, max_tokens=4)
    with pytest.raises(DataError, match=r"train/2.png: a text of \d+ tokens, .*at most 3 and the end"):
        task.transform("train")(task.reader("train")[2], np.random.default_rng(0))
    cut = build(TASKS["caption"], root, max_tokens=4, long_texts="cut")
    sample = cut.transform("train")(cut.reader("train")[2], np.random.default_rng(0))
    assert len(sample.inputs["text"].tokens) == 4
    assert sample.inputs["text"].tokens[-1] == cut.tokenizer.eos_id


def test_answers_are_the_frequent_ones_and_others_do_not_count(root):
    task = build(TASKS["vqa"], root)
    assert task.classes == ("red", "yes")
    few = build(TASKS["vqa"], root, num_answers=2)
    few.given_classes = ("yes",)
    assert few.counts(batch_of(few)) == {"likelihood": 2.0}


def test_classification_by_names_needs_a_tokenizer(root, tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "polar_bear"):
            (tmp_path / split / name).mkdir(parents=True)
            Picture.new("RGB", (16, 16)).save(tmp_path / split / name / "a.png")
    config = Classification.Config(data=f"imagefolder:{tmp_path}", size_px=16, batch_size=2)
    task = config.build(name="animals", root=root)
    image = torch.zeros(2, 3, 16, 16)
    with pytest.raises(ConfigError, match="tokenizer: required"):
        task.cast(Batch("animals", ("a", "b"), {"image": image}))
    named = config.model_copy(update={"tokenizer": "tokenizer.json"}).build(name="animals", root=root)
    model = UniPerceiver(UniPerceiver.Config.variant("micro", **SMALL), {"animals": named}).eval()
    with torch.no_grad():
        outputs, _ = model(Batch("animals", ("a", "b"), {"image": image}))
    assert outputs["logits"].shape == (2, 2)
    words = named.cast(Batch("animals", ("a", "b"), {"image": image})).among.candidates[0]
    texts = [named.tokenizer.decode(row[mask]) for row, mask in zip(words.content, words.mask, strict=True)]
    assert texts == ["cat", "polar bear"]


def test_consensus_accuracy_by_hand():
    people = ("red",) * 2 + ("blue",) * 8
    metric = VQAScores()
    scores = [np.array(row, dtype=np.float32) for row in ([0.9, 0.1], [0.1, 0.9])]
    answers = [ClassScores(str(i), "t", row, ("red", "blue")) for i, row in enumerate(scores)]
    metric.update(answers, Batch("t", ("0", "1"), {}, {"answers": (people, people)}))
    # Two of ten: leaving one of the two out (twice) 1/3, else (8 times) 2/3.
    assert metric.compute()["accuracy"] == pytest.approx(((2 / 3 + 16 / 3) / 10 + 1) / 2)


def test_recall_counts_equal_texts_and_punishes_saying_always_the_same():
    eye = np.eye(3, dtype=np.float32)
    metric = RetrievalScores()
    pairs = [PairAnswer("a", "t", eye[0], eye[1], "x"), PairAnswer("b", "t", eye[1], eye[0], "x")]
    metric.update([*pairs, PairAnswer("c", "t", eye[2], eye[2], "y")], Batch("t", ("a", "b", "c"), {}))
    assert metric.compute()["to_text_r1"] == 1.0
    constant = RetrievalScores()
    rows = [PairAnswer(str(i), "t", eye[0], eye[0], str(i)) for i in range(12)]
    constant.update(rows, Batch("t", tuple(map(str, range(12))), {}))
    assert constant.compute()["mean_recall"] == 0.0


def test_caption_scores_by_hand():
    text, other = ["a", "red", "car", "on", "the", "road"], ["two", "dogs", "in", "a", "park", "today"]
    assert bleu([text], [[text]]) == pytest.approx(1.0)
    assert bleu([text[:5]], [[text]]) == pytest.approx(math.exp(1 - 6 / 5))
    # Each picture's own words occur with no other: identical texts reach 10.
    assert cider_d([text, other], [[text], [other]]) == pytest.approx(10.0)
    assert cider_d([other, text], [[text], [other]]) < 0.5
    metric = CaptionScores()
    answers = [TextAnswer("0", "t", "A red car."), TextAnswer("1", "t", "nothing")]
    metric.update(answers, Batch("t", ("0", "1"), {}, {"captions": (("a red car",), ("a dog",))}))
    assert metric.compute()["exact"] == 0.5


@pytest.mark.parametrize("kind", TASKS)
def test_the_tasks_keep_their_promises(root, kind):
    """Those of every task, with a model that reads their queries in place of a head."""
    task = build(TASKS[kind], root, kind)
    torch.manual_seed(0)
    model = UniPerceiver(
        UniPerceiver.Config.variant("micro", **SMALL, random_frames=False), {kind: task}
    ).double()

    def answering(batch):
        """What training and evaluation give, since both losses and answers are looked at."""
        if not batch.targets:
            return model.eval()(batch)[0]
        return {**model.train()(batch)[0], **model.eval()(batch)[0]}

    assert [str(finding) for finding in check_task(task, answering) if finding.problem] == []


def test_a_task_of_ones_own_is_a_few_lines_and_needs_no_change_of_the_model(root):
    """What the page of the documentation shows, taken from there."""
    page = Path(__file__).parents[2] / "docs" / "uniperceiver.md"
    code = re.search(r"```python\n([^`]*class Weather.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (root / "weather_task.py").write_text(code[1])
    weather = import_file(root / "weather_task.py").Weather
    for split in ("train", "val"):
        for name in ("fog", "rain", "sun"):
            (root / "weather" / split / name).mkdir(parents=True)
            Picture.new("RGB", (16, 16), (len(name) * 40,) * 3).save(
                root / "weather" / split / name / "a.png"
            )
    task = weather.Config(data="imagefolder:weather", **COMMON).build(name="weather", root=root)
    torch.manual_seed(0)
    model = UniPerceiver(UniPerceiver.Config.variant("micro", **SMALL), {"weather": task}).double()
    findings = list(check_task(task, lambda batch: model.eval()(batch)[0]))
    assert [str(finding) for finding in findings if finding.problem] == []
    assert len(code[1].splitlines()) <= 60
