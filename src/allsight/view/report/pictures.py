"""Validation samples with truth and answer."""

from __future__ import annotations

import json
import math

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from allsight.draw import draw_label_map, encode_jpeg, encode_png, palette
from allsight.view.figures import count, percent
from allsight.view.markup import Html, data_uri, group, tag
from allsight.view.predictions import Kept, Shown, Tree
from allsight.view.record import TaskRecord

_MOST = 12
_MOST_OPEN = 6
_PAIRED_UP_TO_PX = 160
_IGNORE = 255
_LONGEST_PX = 360
_PNG_UP_TO_PX = 96
_NAMES = 3
_SURE = 0.3


def pictures(kept: Kept, task: TaskRecord) -> Html:
    """The samples kept at the latest evaluation: as many right and wrong ones as there are, up to 12."""
    if not kept.samples:
        return tag("p", "No samples were kept.", class_="empty")
    kinds = {str(sample.answer.get("kind", "")) for sample in kept.samples}
    chosen = _mixed(kept.samples)
    shown = f"{len(chosen)} of {len(kept.samples)}" if len(chosen) < len(kept.samples) else str(len(chosen))
    note = f"{shown} validation samples as the model answered at step {count(kept.step)}"
    if kinds <= {"boxes_3d", "bev_map"}:
        body = tag("div", *(_wide(sample) for sample in chosen), class_="wides")
    elif kinds == {"label_map"}:
        classes = kept.classes or task.classes
        body = _label_maps(chosen, classes)
        note += "; among the mistakes, wrong pixels are orange and those without truth white"
    else:
        body = tag("div", *(_card(sample) for sample in chosen), class_="cards")
        known = [right for sample in kept.samples if (right := is_right(sample)) is not None]
        if known:
            note += f"; {sum(known)} of the {len(known)} kept are right"
    return group([tag("p", f"{note}.", class_="note"), body])


def is_right(sample: Shown) -> bool | None:
    """Whether the likeliest class is the true one; None where that cannot be said."""
    truth, answer = _top(sample.truth), _top(sample.answer)
    return truth[0][0] == answer[0][0] if truth and answer else None


def _mixed(samples: tuple[Shown, ...]) -> list[Shown]:
    """At most 12 in their order, half of them wrong where there are so many."""
    if len(samples) <= _MOST:
        return list(samples)
    wrong = [i for i, sample in enumerate(samples) if is_right(sample) is False]
    others = [i for i in range(len(samples)) if i not in set(wrong)]
    num_wrong = max(min(len(wrong), _MOST // 2), _MOST - len(others))
    return [samples[i] for i in sorted([*wrong[:num_wrong], *others[: _MOST - num_wrong]])]


def _card(sample: Shown) -> Html:
    """A picture with what is true and what was answered below it."""
    right = is_right(sample)
    mark = {
        True: tag("span", "✓ right", class_="mark right"),
        False: tag("span", "✗ wrong", class_="mark wrong"),
    }
    return tag(
        "figure",
        _image(sample.picture(), sample.id),
        tag("figcaption", mark[right] if right is not None else None, *_words(sample)),
        class_=f"card {'wrong' if right is False else ''}".strip(),
    )


def _wide(sample: Shown) -> Html:
    """A sheet of cameras and panels, on which truth and answer are drawn already."""
    picture = sample.picture()
    caption = tag("figcaption", *_counts(sample), tag("span", sample.id, class_="id", title=sample.id))
    if picture is None:
        return tag("figure", tag("div", "no picture", class_="missing"), caption)
    height, width = picture.shape[:2]
    uri = data_uri(encode_jpeg(picture, quality=82), "image/jpeg")
    return tag(
        "figure", tag("img", src=uri, alt=sample.id, width=width, height=height, loading="lazy"), caption
    )


def _counts(sample: Shown) -> list[Html]:
    """How many boxes there are and were answered; nothing for maps."""
    truth, answer = sample.truth.get("boxes"), sample.answer.get("boxes")
    if not isinstance(truth, list) or not isinstance(answer, list):
        return []
    scores = [box.get("score") for box in answer if isinstance(box, dict)]
    sure = sum(isinstance(score, int | float) and score >= _SURE for score in scores)
    return [tag("span", f"{len(truth)} boxes, {sure} answered with {_SURE:g} or more. ")]


def _words(sample: Shown) -> list[Html]:
    truth, answer = _top(sample.truth), _top(sample.answer)
    ident = tag("p", sample.id, class_="id", title=sample.id)
    if not answer:
        return [
            _line("truth", _plainly(sample.truth)),
            _line("answer", _plainly(sample.answer)),
            ident,
        ]
    name = truth[0][0] if truth else None
    bars = [
        tag(
            "li",
            tag("span", label, class_="label true" if label == name else "label", title=label),
            tag("span", percent(score), class_="n"),
            tag("span", tag("i", class_="bar", style=f"width:{_width(score):.1f}%"), class_="rail"),
        )
        for label, score in answer[:_NAMES]
    ]
    return [_line("truth", name or "–"), tag("ol", *bars), ident]


def _line(term: str, text: str) -> Html:
    return tag("p", tag("span", term, class_="quiet"), " ", tag("b", text))


def _top(answer: Tree) -> list[tuple[str, float]]:
    """Classes with their probabilities, best first; empty if it is not a classification."""
    pairs = answer.get("top")
    if not isinstance(pairs, list):
        return []
    found = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            return []
        score = pair[1] if isinstance(pair[1], int | float) else math.nan
        found.append((str(pair[0]), float(score)))
    return found


def _plainly(answer: Tree) -> str:
    """Any other kind of answer, in words."""
    if isinstance(answer.get("text"), str):
        return answer["text"]
    rest = {key: value for key, value in answer.items() if key not in ("kind", "id", "task", "files")}
    text = json.dumps(rest, ensure_ascii=False) if rest else "–"
    return text if len(text) <= 240 else text[:239] + "…"


def _label_maps(samples: list[Shown], classes: tuple[str, ...]) -> Html:
    """Rows of picture, truth, answer and mistakes, and a legend of the classes that occur."""
    rows, seen = [], set[int]()
    for sample in samples:
        row, labels = _label_map_row(sample, classes)
        rows.append(row)
        seen |= labels
    colors = palette(256)
    entries = [
        tag(
            "span",
            tag("i", class_="block", style=f"background:rgb{colors[label % 256]}"),
            _name(label, classes),
        )
        for label in sorted(seen)
    ]
    # Small pictures fit twice in a row.
    widths = [size[0] for sample in samples if (size := sample.size()) is not None]
    kind = "quads small" if widths and max(widths) <= _PAIRED_UP_TO_PX else "quads"
    parts = [tag("p", *entries, class_="legend classes"), tag("div", *rows[:_MOST_OPEN], class_=kind)]
    if len(rows) > _MOST_OPEN:
        more = tag("summary", f"{len(rows) - _MOST_OPEN} more")
        parts.append(tag("details", more, tag("div", *rows[_MOST_OPEN:], class_=kind)))
    return group(parts)


def _label_map_row(sample: Shown, classes: tuple[str, ...]) -> tuple[Html, set[int]]:
    picture = sample.picture()
    truth, answer = sample.label_maps()
    known = [found for found in (truth, answer) if found is not None]
    if picture is None and known:
        picture = np.full((*known[0].shape, 3), 128, dtype=np.uint8)
    if picture is None:
        return tag("p", f"{sample.id}: the pictures cannot be read", class_="empty"), set()
    size = _display_size(picture)
    small = _resized(picture, size)
    maps = [None if found is None else _resized_labels(found, size) for found in (truth, answer)]
    panels = [_panel("picture", small, sample.id)]
    for term, found in zip(("truth", "answer"), maps, strict=True):
        if found is not None:
            panels.append(_panel(term, draw_label_map(small, found, palette(255), ignore=_IGNORE), sample.id))
    head = [tag("span", sample.id, class_="id", title=sample.id)]
    if maps[0] is not None and maps[1] is not None:
        labelled = maps[0] != _IGNORE
        wrong = labelled & (maps[0] != maps[1])
        panels.append(_panel("mistakes", _mistakes(small, labelled, wrong), sample.id))
        if labelled.any():
            share = 1 - float(wrong.sum() / labelled.sum())
            head.append(tag("span", f"{percent(share)} of the labelled pixels right", class_="quiet"))
    labels = {int(label) for found in known for label in np.unique(found)} - {_IGNORE}
    return tag("div", tag("p", *head), tag("div", *panels, class_="quad")), labels


def _panel(term: str, image: UInt8[np.ndarray, "h w 3"], sample_id: str) -> Html:
    return tag("figure", _image(image, f"{sample_id}: {term}"), tag("figcaption", term))


def _mistakes(
    image: UInt8[np.ndarray, "h w 3"], labelled: Bool[np.ndarray, "h w"], wrong: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture in pale grey, wrong pixels vermilion, unlabelled ones white."""
    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2) * 0.5 + 127
    grey[wrong] = 0.25 * grey[wrong] + 0.75 * np.array((213, 94, 0))
    grey[~labelled] = 255
    return grey.astype(np.uint8)


def _image(image: UInt8[np.ndarray, "h w 3"] | None, words: str) -> Html:
    if image is None:
        return tag("div", "no picture", class_="missing")
    image = _resized(image, _display_size(image))
    height, width = image.shape[:2]
    # Small pictures lose visibly in JPEG and are small as PNG.
    is_small = max(height, width) <= _PNG_UP_TO_PX
    uri = (
        data_uri(encode_png(image), "image/png")
        if is_small
        else data_uri(encode_jpeg(image, quality=82), "image/jpeg")
    )
    return tag("img", src=uri, alt=words, width=width, height=height, loading="lazy")


def _display_size(image: UInt8[np.ndarray, "h w 3"]) -> tuple[int, int]:
    """(width, height) at which a picture is kept in the page."""
    height, width = image.shape[:2]
    factor = min(1.0, _LONGEST_PX / max(height, width))
    return max(1, round(width * factor)), max(1, round(height * factor))


def _resized(image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 3"]:
    if size == (image.shape[1], image.shape[0]):
        return image
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def _resized_labels(labels: UInt8[np.ndarray, "h w"], size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2"]:
    return np.array(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))


def _name(label: int, classes: tuple[str, ...]) -> str:
    return classes[label] if label < len(classes) else f"class {label}"


def _width(score: float) -> float:
    return 100 * min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0
