"""What the files of one sample mean, by their endings, and the files that a sample becomes.

| file | meaning |
|---|---|
| `.jpg`, `.png`, ... | input `image` |
| `.000.jpg`, `.001.jpg`, ... | input `video`: its frames; their times from `.json` or the frame rate |
| `.mp4`, `.mkv`, ... | input `video`: so many frames of it as are asked for (extra `video`) |
| `.cls` | target `label`: a number, or the name of a class |
| `.txt` | beside a picture or a video target `captions`, alone input `text` |
| `.label_map.png` | target `label_map`, 255 where nobody labelled |
| `.json` | `{"allsight": {"inputs": ..., "targets": ...}}`: all else, as in `plain`; else target `json` |

Keys end at the first dot, so the file `a.b.jpg` of the sample `a` ends in `.b.jpg`. It counts as what its
last ending says, `.jpg`, unless the sample has such a file without more dots (`a.jpg` beside `a.mask.png`).
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image as PillowImage

from allsight.data.decode import (
    MAX_PIXELS,
    PICTURE_SUFFIXES,
    LeastSize,
    decode_label_map,
    decode_picture,
)
from allsight.data.readers.video import VIDEO_SUFFIXES, decode_video
from allsight.data.shards.plain import from_plain, to_plain
from allsight.types import DataError, Image, LabelMap, Sample, Text, Video

KINDS: Mapping[str, tuple[str, ...]] = {
    "image": ("image",),
    "image-class": ("image", "label"),
    "image-text": ("image", "captions"),
    "text": ("text",),
    "video": ("video",),
    "video-class": ("video", "label"),
    "video-text": ("video", "captions"),
}
"""Kind of a data set -> inputs and targets that each of its samples has at least."""

_PICTURES = tuple(suffix.removeprefix(".") for suffix in PICTURE_SUFFIXES)
_FRAME = re.compile(rf"(\d+)\.({'|'.join(_PICTURES)})")
_CLIPS = tuple(suffix.removeprefix(".") for suffix in VIDEO_SUFFIXES)
_LABEL_MAP = "label_map.png"
_FILE_OF = {"label": ".cls", "captions": ".txt", "text": ".txt", "video": ".000.jpg", "image": ".jpg"}


@dataclass(frozen=True)
class Meaning:
    """How files are understood.

    Args:
        classes: Class names in order of their labels, for `.cls` that hold names and to check numbers.
        fps: Frames a second of videos whose `.json` says nothing of times.
        frames: How many are taken of a video file, evenly spread.
        max_pixels: Larger pictures are refused.
    """

    classes: tuple[str, ...] = ()
    fps: float | None = None
    frames: int = 16
    max_pixels: int = MAX_PIXELS


def understood(endings: Iterable[str], id: str) -> dict[str, str]:
    """Ending in its short form -> the ending as it stands, of the files that say something here.

    Raises:
        DataError: Several files of one kind, all with more dots in their endings, so that it is unclear
            which one counts; names the sample.
    """
    exact = {ending: ending for ending in endings if _kind(ending)}
    kinds = {_kind(ending) for ending in exact}
    longer: dict[str, list[str]] = {}
    for ending in endings:
        short = "" if ending in exact else _short(ending)
        if short and _kind(short) not in kinds:
            # Frames differ in their numbers.
            longer.setdefault(short if _kind(short) == "frame" else _kind(short), []).append(ending)
    several = next((given for given in longer.values() if len(given) > 1), None)
    if several:
        raise DataError(
            f"{id}: several files of one kind (.{', .'.join(several)}); a key ends at the first dot of a "
            "name, so write other letters for dots in keys",
            id,
        )
    return {**exact, **{_short(ending): ending for (ending,) in longer.values()}}


def _kind(ending: str) -> str:
    """What a file of exactly this ending is; empty where it says nothing."""
    if ending in _PICTURES:
        return "picture"
    if ending in _CLIPS:
        return "clip"
    if _FRAME.fullmatch(ending):
        return "frame"
    return ending if ending in ("cls", "txt", "json", _LABEL_MAP) else ""


def _short(ending: str) -> str:
    """The longest end of an ending that is understood, from a dot on; empty without one."""
    while ending and not _kind(ending):
        ending = ending.partition(".")[2]
    return ending


def parts_of(endings: Iterable[str], json_text: bytes | None, id: str = "") -> tuple[str, ...]:
    """Names of the inputs and targets that a sample with these files has, without decoding any.

    Raises:
        DataError: Its `.json` is damaged, or several files are of one kind; names the sample.
    """
    kinds = {_kind(ending) for ending in understood(endings, id)}
    parts = ["image"] if "picture" in kinds else []
    if kinds & {"clip", "frame"}:
        parts.append("video")
    if "txt" in kinds:
        parts.append("captions" if parts else "text")
    parts += [part for part, ending in (("label", "cls"), ("label_map", _LABEL_MAP)) if ending in kinds]
    own = _own(_json(json_text, id)) if json_text else {}
    parts += [*own.get("inputs", {}), *own.get("targets", {})]
    return tuple(dict.fromkeys(parts))


def common_parts(of_samples: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """What all samples of a data set are taken to have, from what some of them have.

    That is what more than half of them have. Inputs and labels count from half on, since a sample is of no
    use without them, whereas texts and what stands in a `.json` may be extras.
    """
    counts = Counter(part for parts in of_samples for part in parts)
    needed = ("image", "video", "text", "label")
    return tuple(part for part, n in counts.items() if 2 * n + (part in needed) > len(of_samples))


def to_sample(
    id: str, files: Mapping[str, bytes], meaning: Meaning, least: LeastSize | None = None
) -> Sample:
    """The sample that these files (ending -> bytes) make up.

    Args:
        least: The picture may be decoded smaller, never below this, where nothing is measured in its pixels.

    Raises:
        DataError: A file is damaged or contradicts another one; names the sample.
    """
    files = {ending: files[given] for ending, given in understood(files, id).items()}
    record = _json(files["json"], id) if "json" in files else {}
    own = _own(record)
    inputs: dict[str, Any] = {}
    targets: dict[str, Any] = {}
    pictures = [ending for ending in files if ending in _PICTURES]
    if len(pictures) > 1:
        raise DataError(f"{id}: several pictures (.{', .'.join(pictures)}); expected one a sample", id)
    if pictures:
        if not files.keys() <= {pictures[0], "cls", "txt"}:
            least = None
        inputs["image"] = decode_picture(
            files[pictures[0]], id, min_hw_px=least, max_pixels=meaning.max_pixels
        )
    frames = sorted((int(match[1]), ending) for ending in files if (match := _FRAME.fullmatch(ending)))
    clips = [ending for ending in files if ending in _CLIPS]
    if len(clips) + bool(frames) > 1:
        raise DataError(f"{id}: several videos (.{', .'.join(clips)}); expected one a sample", id)
    if clips:
        inputs["video"] = decode_video(files[clips[0]], id, meaning.frames, max_pixels=meaning.max_pixels)
    if frames:
        inputs["video"] = _video(id, [files[ending] for _, ending in frames], own, record, meaning)
    if "cls" in files:
        targets["label"] = _label(id, files["cls"], meaning.classes)
    if "txt" in files:
        text = _text(id, files["txt"], "txt")
        if inputs:
            targets["captions"] = (text,)
        else:
            inputs["text"] = Text(text)
    if _LABEL_MAP in files:
        pixels = decode_label_map(files[_LABEL_MAP], id, max_pixels=meaning.max_pixels)
        _check_map(id, pixels, inputs.get("image"))
        targets["label_map"] = LabelMap(pixels)
    try:
        for name, value in own.get("inputs", {}).items():
            if name != "video":
                inputs[name] = from_plain(value)
        targets |= {name: from_plain(value) for name, value in own.get("targets", {}).items()}
    except (ValueError, RuntimeError, TypeError) as error:
        raise DataError(f"{id}: its .json holds {error}", id) from error
    if record and not own:
        targets["json"] = record
    return Sample(id, inputs, targets)


def check_parts(sample: Sample, needed: Sequence[str]) -> None:
    """Refuse a sample without any input, or one that lacks what the others of its data set have.

    Raises:
        DataError: Names the sample and what is missing.
    """
    for part in needed:
        if part not in sample.inputs and part not in sample.targets:
            file = _FILE_OF.get(part, ".json")
            raise DataError(
                f"{sample.id}: no {part}; expected a file {file}, as other samples have", sample.id
            )
    if not sample.inputs:
        raise DataError(
            f"{sample.id}: no picture, video or text; expected such as a file .jpg, .mp4 or .txt", sample.id
        )


def pictures_among(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Those of a sample's files (ending -> bytes) that its inputs `image` and `video` are decoded from."""
    meant = understood(files, "")
    return {e: files[given] for e, given in meant.items() if _kind(e) in ("picture", "clip", "frame")}


def to_files(sample: Sample, originals: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files that a sample becomes, sorted by ending.

    Args:
        originals: The files (ending -> bytes) that the inputs `image` and `video` were decoded from. Without
            them these are written as PNG, which keeps their pixels but not their files.

    Raises:
        DataError: A target of a kind that cannot be written.
    """
    files: dict[str, bytes] = dict(originals)
    inputs: dict[str, Any] = {}
    targets = dict(sample.targets)
    for name, value in sample.inputs.items():
        if name == "image" and isinstance(value, Image):
            if not any(ending in _PICTURES for ending in originals):
                files["png"] = _png(value.pixels)
        elif name == "video" and isinstance(value, Video):
            if any(ending in _CLIPS for ending in originals):
                continue
            if not any(_FRAME.fullmatch(ending) for ending in originals):
                digits = max(3, len(str(len(value.frames) - 1)))
                files |= {f"{n:0{digits}}.png": _png(frame) for n, frame in enumerate(value.frames)}
            inputs[name] = {"times_s": [float(time) for time in value.times_s]}
        elif name == "text" and isinstance(value, Text) and len(sample.inputs) == 1 and value.tokens is None:
            files["txt"] = value.string.encode("utf-8", "surrogatepass")
        else:
            inputs[name] = _plain(sample.id, "input", name, value)
    label, captions, label_map = (targets.get(name) for name in ("label", "captions", "label_map"))
    if type(label) is int and label >= 0:
        files["cls"] = str(targets.pop("label")).encode()
    if isinstance(captions, tuple) and len(captions) == 1 and "txt" not in files:
        files["txt"] = str(targets.pop("captions")[0]).encode("utf-8", "surrogatepass")
    if isinstance(label_map, LabelMap) and label_map.ignore == 255:
        files[_LABEL_MAP] = _png(targets.pop("label_map").pixels)
    rest = {name: _plain(sample.id, "target", name, value) for name, value in targets.items()}
    if inputs or rest:
        own = {"inputs": inputs, "targets": rest}
        text = json.dumps({"allsight": own}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        files["json"] = text.encode("utf-8", "surrogatepass")
    return dict(sorted(files.items()))


def _plain(id: str, what: str, name: str, value: Any) -> Any:
    try:
        return to_plain(value)
    except TypeError as error:
        raise DataError(
            f"{id}: {what} {name!r}: {error}; expected numbers, texts, tensors or allsight's types",
            id,
        ) from error


def _png(pixels: torch.Tensor) -> bytes:
    """Pixels [3, h, w] or [h, w], uint8, without loss."""
    array = pixels.movedim(0, -1) if pixels.ndim == 3 else pixels
    buffer = io.BytesIO()
    PillowImage.fromarray(array.contiguous().numpy()).save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _json(data: bytes, id: str) -> dict[str, Any]:
    try:
        record = json.loads(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{id}: its .json cannot be read ({error})", id) from error
    return record if isinstance(record, dict) else {"value": record}


def _own(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The part of a `.json` that `to_files` wrote; empty for those of others."""
    own = record.get("allsight")
    if not isinstance(own, dict):
        return {}
    return {name: own[name] for name in ("inputs", "targets") if isinstance(own.get(name), dict)}


def _text(id: str, data: bytes, ending: str) -> str:
    try:
        return data.decode("utf-8-sig", "surrogatepass")
    except UnicodeDecodeError as error:
        raise DataError(f"{id}: its .{ending} is not UTF-8 ({error})", id) from error


def _label(id: str, data: bytes, classes: tuple[str, ...]) -> int:
    text = _text(id, data, "cls").strip()
    if text.isdecimal() and (not classes or int(text) < len(classes)):
        return int(text)
    if text in classes:
        return classes.index(text)
    expected = (
        f"a number below {len(classes)} or one of the {len(classes)} class names" if classes else "a number"
    )
    raise DataError(f"{id}: its .cls holds {text[:40]!r}; expected {expected}", id)


def _video(
    id: str, frames: list[bytes], own: Mapping[str, Any], record: Mapping[str, Any], meaning: Meaning
) -> Video:
    times = own.get("inputs", {}).get("video", record)
    seconds = times.get("times_s") if isinstance(times, dict) else None
    fps = record.get("fps", meaning.fps)
    if seconds is None and isinstance(fps, int | float) and fps > 0:
        seconds = [n / fps for n in range(len(frames))]
    if not isinstance(seconds, list) or len(seconds) != len(frames):
        raise DataError(
            f"{id}: no times for its {len(frames)} frames; put 'fps' or 'times_s' into its .json, or set fps",
            id,
        )
    pictures = [decode_picture(frame, id, max_pixels=meaning.max_pixels).pixels for frame in frames]
    sizes = {tuple(picture.shape[-2:]) for picture in pictures}
    if len(sizes) > 1:
        raise DataError(f"{id}: frames of different sizes {sorted(sizes)[:2]}; expected one size a video", id)
    return Video(torch.stack(pictures), torch.tensor(seconds, dtype=torch.float32))


def _check_map(id: str, pixels: torch.Tensor, image: Image | None) -> None:
    if image is not None and tuple(pixels.shape) != image.hw_px:
        raise DataError(
            f"{id}: the label map is {pixels.shape[1]} x {pixels.shape[0]}, the picture {image.hw_px[1]} x "
            f"{image.hw_px[0]}; expected the same size",
            id,
        )
