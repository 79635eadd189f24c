"""Checkpoints: PyTorch's distributed format, made whole or not at all, with a checksum of every file.

A checkpoint is written to a hidden folder, checked off in `manifest.json`, marked `COMPLETE`, and only then
renamed to `step-00000100`. The state is a flat dict of tensors, so it does not depend on the number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from allsight.engine.distributed import Ranks
from allsight.types import CheckpointError

Tensors = dict[str, Tensor]
Listed = dict[str, dict[str, Any]]
"""File -> `bytes` and `sha256`."""

_REPLACED = ".replaced-step-"


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk."""

    step: int
    path: Path


def save_checkpoint(folder: Path, step: int, tensors: Tensors, ranks: Ranks) -> Saved:
    """Write one checkpoint; every rank calls this with its tensors.

    Args:
        folder: `checkpoints/` of the run.
        tensors: What all ranks hold alike under the same keys; what one rank alone holds, under its own.
    Raises:
        OSError: It could not be written. Older checkpoints are as before and nothing half-written stays.
    """
    target, temporary = _path_of(folder, step), folder / f".tmp-step-{step:08d}"
    problem = ""
    if ranks.is_first:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
        except OSError as error:
            problem = str(error)
    _raise_together(problem, ranks)
    listed: Listed = {}
    try:
        writer = FileSystemWriter(temporary, single_file_per_rank=True, sync_files=True)
        with _one_process_is_meant():
            dcp.save(tensors, storage_writer=writer, process_group=ranks.group, no_dist=ranks.world == 1)
        listed = _listed(temporary, ranks)
    except (OSError, CheckpointException, RuntimeError) as error:
        problem = _lack_of_space(folder, temporary, tensors) or _first_line(error)
    found = ranks.gather((problem, listed))
    problem = next((text for text, _ in found if text), "")
    if ranks.is_first:
        try:
            if not problem:
                _seal(temporary, step, {name: entry for _, files in found for name, entry in files.items()})
                _put_in_place(temporary, target)
        except OSError as error:
            problem = str(error)
        if problem:
            shutil.rmtree(temporary, ignore_errors=True)
    _raise_together(problem, ranks)
    return Saved(step, target)


def newest_whole(folder: Path, *, tell: Callable[[str], None] = lambda text: None) -> Saved | None:
    """The newest checkpoint that is complete and whose files have their checksums.

    Args:
        tell: Hears of each newer one that is not, and why.
    """
    for saved in reversed(list_checkpoints(folder)):
        fault = find_fault(saved.path)
        if fault is None:
            return saved
        tell(f"checkpoint {saved.path.name} cannot be used: {fault}")
    return None


def list_checkpoints(folder: Path) -> list[Saved]:
    """The checkpoints in `folder`, oldest first, whether whole or not."""
    # One that was being replaced counts until its successor has its name.
    found = {
        int(digits): Saved(int(digits), path)
        for prefix in (_REPLACED, "step-")
        for path in folder.glob(f"{prefix}*")
        if path.is_dir() and (digits := path.name.removeprefix(prefix)).isdigit()
    }
    return [found[step] for step in sorted(found)]


def find_fault(path: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is whole."""
    if not (path / "COMPLETE").is_file():
        return "it has no COMPLETE mark, so writing it was interrupted"
    try:
        listed = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["files"]
        files = [(str(name), int(entry["bytes"]), str(entry["sha256"])) for name, entry in listed.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json cannot be read: {error!r}"
    for name, size, digest in files:
        file = path / name
        if not file.is_file():
            return f"file {name} is missing"
        if file.stat().st_size != size:
            return f"file {name} has {file.stat().st_size} bytes in place of {size}"
        if _digest(file) != digest:
            return f"file {name} has changed since it was written (checksum)"
    return None


def load_tensors(path: Path, wanted: Callable[[str], bool]) -> Tensors:
    """The tensors of a checkpoint whose keys are wanted, with the shapes they were saved in.

    Raises:
        CheckpointError: The checkpoint cannot be read.
    """
    tensors = {
        key: torch.empty(shape, dtype=dtype)
        for key, (shape, dtype) in stored_tensors(path).items()
        if wanted(key)
    }
    load_into(path, tensors)
    return tensors


def stored_tensors(path: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Key -> shape and format of each tensor of a checkpoint.

    Raises:
        CheckpointError: The checkpoint cannot be read.
    """
    with _readable(path):
        stored = FileSystemReader(path).read_metadata().state_dict_metadata
    return {
        key: (entry.size, entry.properties.dtype)
        for key, entry in stored.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def load_into(path: Path, tensors: Tensors) -> None:
    """Fill tensors with what a checkpoint holds under their keys; of a sharded one, only this rank's part.

    Raises:
        CheckpointError: The checkpoint cannot be read; tensors may then be half filled.
    """
    # Each rank asks for what it needs, so no plan is agreed on between ranks.
    with _readable(path), _one_process_is_meant():
        dcp.load(tensors, storage_reader=FileSystemReader(path), no_dist=True)


def copy_checkpoint(path: Path, target: str, ranks: Ranks) -> None:
    """Copy a whole checkpoint to a folder that fsspec reaches; each rank its own files, COMPLETE at the end.

    Raises:
        OSError: It could not be copied, the same on all ranks.
    """
    problem, place = "", f"{target.rstrip('/')}/{path.name}"
    # What marks it as whole comes when everything else is there.
    marks = ["manifest.json", "COMPLETE"] if ranks.is_first else []
    for names in (_own_names(path, ranks), marks):
        try:
            files, root = fsspec.url_to_fs(place)
            files.makedirs(root, exist_ok=True)
            for name in names:
                files.put_file(str(path / name), f"{root}/{name}")
        # Stores raise what they like, and a copy is not worth a run.
        except Exception as error:
            problem = f"{type(error).__name__}: {_first_line(error)}"
        _raise_together(problem, ranks)


def prune(folder: Path, keep_last: int, *, keep: set[int], every: int | None = None) -> None:
    """Remove checkpoints.

    Args:
        keep_last: So many of the newest stay.
        keep: So do those of these steps,
        every: and those of multiples of this.
    """
    for saved in list_checkpoints(folder)[:-keep_last]:
        if saved.step not in keep and (every is None or saved.step % every):
            # Renamed first, so that a kill in the middle leaves nothing that looks like a checkpoint.
            doomed = folder / f".old-{saved.path.name}"
            os.replace(saved.path, doomed)
            shutil.rmtree(doomed, ignore_errors=True)
    for leftover in folder.glob(".old-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def write_best(folder: Path, step: int, metric: str, value: float) -> None:
    """Note which checkpoint scored best so far."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"step": step, "metric": metric, "value": value})
    temporary = folder / ".best.json"
    temporary.write_text(text)
    os.replace(temporary, folder / "best.json")


def read_best(folder: Path) -> tuple[int, float] | None:
    """(step, value) of the best checkpoint; None if nothing was judged yet.

    Raises:
        CheckpointError: The file is damaged.
    """
    file = folder / "best.json"
    try:
        best = json.loads(file.read_text(encoding="utf-8"))
        return int(best["step"]), float(best["value"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{file}: does not say which checkpoint is best ({error!r}); remove it, or use weights=last"
        ) from error


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, CheckpointException, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: cannot be read: {_first_line(error)}") from error


@contextmanager
def _one_process_is_meant() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="torch.distributed is disabled, unavailable or uninitialized"
        )
        yield


def _path_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _own_names(path: Path, ranks: Ranks) -> list[str]:
    names = sorted(file.name for file in path.glob(f"__{ranks.rank}_*"))
    return [*names, ".metadata"] if ranks.is_first else names


def _listed(path: Path, ranks: Ranks) -> Listed:
    """Size and checksum of the files that this rank has written."""
    own = [path / name for name in _own_names(path, ranks)]
    return {file.name: {"bytes": file.stat().st_size, "sha256": _digest(file)} for file in own}


def _put_in_place(temporary: Path, target: Path) -> None:
    """Give a sealed checkpoint its name; one that had it (a step that was run again) goes."""
    doomed = target.with_name(f"{_REPLACED}{target.name.removeprefix('step-')}")
    if target.exists():
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(target, doomed)
    os.replace(temporary, target)
    _sync_folder(target.parent)
    shutil.rmtree(doomed, ignore_errors=True)


def _seal(path: Path, step: int, files: Listed) -> None:
    for name, text in (
        ("manifest.json", json.dumps({"step": step, "files": files}, indent=1)),
        ("COMPLETE", ""),
    ):
        with (path / name).open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    _sync_folder(path)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _raise_together(problem: str, ranks: Ranks) -> None:
    """All ranks go on, or all raise; else one would wait for the others for ever."""
    problems = [text for text in ranks.gather(problem) if text]
    if problems:
        raise OSError(problems[0])


def _lack_of_space(folder: Path, temporary: Path, tensors: Tensors) -> str:
    """That the disk is full, where it is: what PyTorch says of it is `unexpected pos 704 vs 598`."""
    try:
        free = shutil.disk_usage(folder).free
        written = sum(file.stat().st_size for file in temporary.iterdir())
    except OSError:
        return ""
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if free + written >= needed:
        return ""
    return f"no space left on the disk ({(free + written) / 1e6:.0f} MB free, {needed / 1e6:.0f} MB needed)"


def _first_line(error: BaseException) -> str:
    """The cause in one line; PyTorch's checkpoint errors hold one traceback per rank."""
    if isinstance(error, CheckpointException):
        causes = [cause[0] if isinstance(cause, tuple) else cause for cause in error.failures.values()]
        return str(causes[0]).strip().split("\n")[-1] if causes else "unknown"
    return str(error).strip().split("\n")[-1]
