"""Writing a whole world: all or nothing, and the same bytes however many processes work on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from allsight.data.world.export import (
    make_folders,
    write_class_names,
    write_coco,
    write_picture,
    write_world_json,
)
from allsight.data.world.language import Language, write_language
from allsight.data.world.options import World
from allsight.data.world.sampling import SPLITS, STREAMS
from allsight.data.world.working import all_or_nothing, in_order

_CHUNK = 20
"""Pictures a process takes at a time."""

Job = tuple[World.Config, Path, str, str, range]
Result = list[tuple[str, dict[str, Any] | None]]


def generate_world(
    out: Path | str,
    config: World.Config | None = None,
    *,
    language: Language.Config | None = None,
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Generate a world and write it in the formats real data comes in (`export.py` lists them).

    The files appear under `out` all at once when everything is written; a run that is killed leaves only a
    hidden folder beside it, which the next run into the same place removes.

    Args:
        out: Folder to make; it may exist if it is empty.
        config: What to generate; `World.Config.variant("easy" | "normal" | "hard", ...)` or single options.
        language: Also write a language world into `out`/language; the other files stay the same.
        workers: Processes; the bytes do not depend on it. More than one needs the usual guard
            `if __name__ == "__main__"` in a script that calls this.
        on_progress: Called with (pictures done, pictures in all).
    Returns:
        The folder.
    Raises:
        ConfigError: `out` exists and is not empty, or `workers` is below 1.
    Example:
        >>> generate_world("data/world", World.Config(seed=0, train=500, val=100))  # doctest: +SKIP
    """
    config = config or World.Config()
    out = Path(out)
    jobs = list(_jobs(config))
    own = sum(len(indices) for _, _, indices in jobs)
    total = own + (0 if language is None else language.train + language.val + language.pairs)
    with all_or_nothing(out) as root:
        make_folders(root)
        done = 0
        parts: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        files = {split: (root / f"scenes_{split}.jsonl").open("w", encoding="utf-8") for split in SPLITS}
        try:
            work = [(config, root, *job) for job in jobs]
            for (split, _, indices), result in zip(jobs, in_order(_do, work, workers), strict=True):
                for line, part in result:
                    files[split].write(line + "\n")
                    if part is not None:
                        parts[split].append(part)
                done += len(indices)
                if on_progress is not None:
                    on_progress(done, total)
        finally:
            for file in files.values():
                file.close()
        counts = {}
        for split in SPLITS:
            size = getattr(config, split)
            counts[split] = {stream: size for stream in STREAMS}
            counts[split]["objects"] = write_coco(root, split, parts[split])
        if language is not None:
            told = None if on_progress is None else lambda done, _: on_progress(own + done, total)
            (root / "language").mkdir()
            write_language(root / "language", language, workers=workers, on_progress=told)
        write_class_names(root)
        write_world_json(root, config, counts)
    return out


def _jobs(config: World.Config) -> Iterator[tuple[str, str, range]]:
    """All pictures in the order in which they are listed, a few at a time."""
    for split in SPLITS:
        size = getattr(config, split)
        for stream in STREAMS:
            for start in range(0, size, _CHUNK):
                yield split, stream, range(start, min(start + _CHUNK, size))


def _do(job: Job) -> Result:
    config, root, split, stream, indices = job
    return [write_picture(config, root, split, stream, index) for index in indices]
