"""Video files with one class each: the format `video:PATH`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64

from allsight.config import ConfigError
from allsight.data.decode import MAX_PIXELS
from allsight.data.listings import SampleClasses
from allsight.data.readers.extras import needed_module
from allsight.data.readers.files import Files, SomeFiles, has_split, open_split
from allsight.data.readers.found import Found, parts_of_splits
from allsight.data.readers.pictures import leave_out_of, link_notes, notes, read_or_refuse
from allsight.data.readers.tree import Tree
from allsight.types import DataError, Sample, Video

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg")


class VideoFolder:
    """Reads PATH/SPLIT/CLASS/CLIP.mp4, from folders, zips or tars. Needs the extra `video` (PyAV).

    Samples are called `SPLIT/CLASS/CLIP.mp4`; the input `video` has `frames` frames, evenly spread over the
    clip (the middle of each of so many equal parts) with the time of each, the target is `label`. Clips
    directly in PATH/SPLIT have no label. A transform picks fewer frames at random (`PickFrames`). Classes are
    the folders of `train` (of this split, where there is no `train`), sorted.

    Args:
        path: The data set's folder, or an archive of it.
        split: Which split.
        frames: How many; a clip with fewer shows some of them more than once.
        leave_out: Clips whose id begins with one of these are left out.
        max_pixels: Clips of larger pictures are refused when they are read.

    Raises:
        ConfigError: PyAV is not installed; `frames` is below 1.
        DataError: No such split, no clips, an unknown class. On reading: the clip is damaged or has no
            frames.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        *,
        frames: int = 16,
        leave_out: tuple[str, ...] = (),
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if frames < 1:
            raise ConfigError(f"video: frames is {frames}; expected at least 1")
        needed_module("av", "video", "video")
        self.name = f"video:{path.name}"
        self.split = split
        self._frames, self._max_pixels = frames, max_pixels
        every = open_split(path, split)
        clips = _clips(every, f"{path} ({split})")
        self._files, left_out = leave_out_of(clips, split, leave_out)
        classes = _classes(self._files)
        if split != "train" and has_split(path, "train"):
            classes = _classes(_clips(open_split(path, "train"), f"{path} (train)"))
        self.classes = tuple(sorted(classes))
        index_of = {name: index for index, name in enumerate(self.classes)}
        keys = [name.split("/")[0] if "/" in name else None for name in self._files.names]
        unknown = next((key for key in keys if key is not None and key not in index_of), None)
        if unknown is not None:
            raise DataError(f"{path} ({split}): class {unknown!r} is none of the {len(index_of)} of train")
        self._labels = np.array([-1 if key is None else index_of[key] for key in keys], dtype=np.int64)
        self.notes = (
            *notes(
                (len(every.names) - len(clips.names), "files that are no clips passed over"),
                (left_out, "clips left out"),
                (int((self._labels < 0).sum()), "clips without a class folder: no label"),
            ),
            *link_notes(every),
        )

    @classmethod
    def found_in(cls, path: Path, tree: Tree) -> Found | None:
        splits = [split for split, parts in parts_of_splits(tree).items() if _has_clips(tree, parts[0])]
        return Found(f"video files for {', '.join(splits)}", tuple(splits)) if splits else None

    def sample_classes(self) -> SampleClasses:
        """The class of each clip that has one."""
        return SampleClasses.one_at_most(self._labels)

    def __len__(self) -> int:
        return len(self._files.names)

    def __getitem__(self, index: int) -> Sample:
        id = f"{self.split}/{self._files.names[index]}"
        video = decode_video(
            read_or_refuse(self._files, index, id), id, self._frames, max_pixels=self._max_pixels
        )
        label = int(self._labels[index])
        return Sample(id, {"video": video}, {"label": label} if label >= 0 else {})

    def originals(self, index: int) -> dict[str, bytes]:
        """The clip's file by its ending."""
        name = self._files.names[index]
        return {name.rpartition(".")[2].lower(): read_or_refuse(self._files, index, f"{self.split}/{name}")}


def decode_video(data: bytes, id: str, num_frames: int, *, max_pixels: int = MAX_PIXELS) -> Video:
    """Evenly spread frames of a video file; the whole of it is decoded once, the frames asked for are kept.

    Raises:
        DataError: It is damaged, has no pictures, or too large ones.
    """
    av = needed_module("av", "video", "video")
    try:
        with av.open(io.BytesIO(data)) as container:
            if not container.streams.video:
                raise DataError(f"{id}: the file has no pictures", id)
            times = _times(container, id)
        wanted = _spread(len(times), num_frames)
        with av.open(io.BytesIO(data)) as container:
            kept = _decoded(container, {int(n) for n in wanted}, max_pixels, id)
    except av.error.FFmpegError as error:
        raise DataError(f"{id}: the video cannot be decoded ({' '.join(str(error).split())})", id) from None
    if any(int(n) not in kept for n in wanted):
        raise DataError(f"{id}: the video is cut short after {len(kept)} of {num_frames} frames", id)
    frames = np.stack([kept[int(n)] for n in wanted])
    seconds = np.sort(times)[wanted] - times.min()
    return Video(torch.from_numpy(frames).permute(0, 3, 1, 2), torch.from_numpy(seconds.astype(np.float32)))


def _times(container: Any, id: str) -> Float64[np.ndarray, " n"]:
    """Time of each frame, from the packets alone."""
    stream = container.streams.video[0]
    stamps = [p.pts for p in container.demux(stream) if p.pts is not None and p.size]
    if not stamps:
        raise DataError(f"{id}: the video has no frames", id)
    return np.array(stamps, dtype=np.float64) * float(stream.time_base)


def _spread(count: int, wanted: int) -> np.ndarray:
    return ((2 * np.arange(wanted) + 1) * count) // (2 * wanted)


def _decoded(container: Any, wanted: set[int], max_pixels: int, id: str) -> dict[int, np.ndarray]:
    stream = container.streams.video[0]
    if stream.width * stream.height > max_pixels:
        raise DataError(
            f"{id}: frames of {stream.width} x {stream.height} pixels; expected at most {max_pixels} "
            "(max_pixels)",
            id,
        )
    stream.thread_type = "NONE"
    last = max(wanted)
    kept = {}
    for number, frame in enumerate(container.decode(stream)):
        if number in wanted:
            kept[number] = frame.to_ndarray(format="rgb24")
        if number >= last:
            break
    return kept


def _clips(files: Files, where: str) -> Files:
    picked = [n for n, name in enumerate(files.names) if name.lower().endswith(VIDEO_SUFFIXES)]
    if not picked:
        raise DataError(f"{where}: no clips; expected files ending in {', '.join(VIDEO_SUFFIXES)}")
    return SomeFiles(files, picked)


def _classes(files: Files) -> set[str]:
    return {name.split("/")[0] for name in files.names if "/" in name}


def _has_clips(tree: Tree, part: str) -> bool:
    below = tree.below(part)
    return below is not None and any(name.lower().endswith(VIDEO_SUFFIXES) for name in below.names())
