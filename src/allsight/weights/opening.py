"""Opening files and folders of weights without running code from them."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from allsight.types.errors import CheckpointError
from allsight.weights.containers import unwrap
from allsight.weights.folders import files_of_weights, refuse_shard
from allsight.weights.pickles import read_tensors_only


@dataclass(frozen=True)
class Opened:
    """Tensors as they were found.

    Attributes:
        tensors: Name -> tensor, names as they stand there. Tensors of a torch file may lie in the file until
            they are used.
        source: The file or folder, for messages.
        container: Kind of file and the key its tensors lie under, in words.
        notes: What people should know of the choice of these tensors, a sentence each.
        files: The files that were read; empty for a mapping.
        settings: `config.json` beside a `.safetensors` file, if there is one.
        metadata: Texts from the header of a `.safetensors` file.
    """

    tensors: dict[str, Tensor]
    source: str
    container: str
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    settings: Mapping[str, Any] | None = None
    metadata: Mapping[str, str] | None = None


Source = str | os.PathLike[str] | Mapping[str, object] | Opened


def open_weights(source: Source, *, ema: bool = False) -> Opened:
    """Open a file (`.safetensors`, else a torch file), a folder (Hugging Face, DeepSpeed), or a mapping.

    The tensors of a torch file may lie at the top or under `model`, `state_dict`, `module`, one inside the
    other too.

    Args:
        source: Path or mapping; in a folder `.safetensors` is preferred. An `Opened` comes back as it is.
        ema: Take the averaged weights that a training file keeps beside the others (`model_ema`).

    Raises:
        CheckpointError: Nothing there, not readable without running its code, damaged, one part of several,
            no tensors inside, or no averaged weights though `ema` asks for them.
    """
    if isinstance(source, Opened):
        return source
    if isinstance(source, Mapping):
        return _opened(source, "the given mapping", "mapping", ema, ())
    path = Path(source)
    if path.is_dir():
        files = files_of_weights(path)
        opened = [_open_file(file, ema) for file in files]
        if len(opened) == 1:
            return opened[0]
        tensors: dict[str, Tensor] = {}
        for part in opened:
            tensors |= part.tensors
        container = f"safetensors in {len(files)} files"
        return replace(opened[0], tensors=tensors, source=str(path), container=container, files=tuple(files))
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file of weights")
    refuse_shard(path)
    return _open_file(path, ema)


def read_weights(source: Source) -> dict[str, Tensor]:
    """The tensors of `open_weights(source)`.

    Raises:
        CheckpointError: As there.
    """
    return open_weights(source).tensors


def _open_file(path: Path, ema: bool) -> Opened:
    if path.suffix == ".safetensors":
        opened = _open_safetensors(path)
        if ema:
            raise CheckpointError(f"{path}: keeps no averaged weights beside the others; leave out ema")
        return opened
    try:
        with warnings.catch_warnings():
            # What it does not understand of newer protocols is read below.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        return _open_without_objects(path, ema, error)
    except Exception as error:
        # Arbitrary bytes make the unpickler raise nearly anything.
        if not _is_zip(path) and not _is_pickle(path):
            raise _no_weights(path) from error
        known = isinstance(error, RuntimeError | OSError) and str(error).partition("\n")[0]
        reason = known or "it is cut short or damaged; fetch it again"
        if _is_zip(path) and "central directory" in reason:
            reason = "its end is missing, so it was cut short; fetch it again"
        raise CheckpointError(f"{path}: not a torch file{_look_of(path)}: {reason}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected a mapping of tensors, got {type(content).__name__}")
    return _opened(content, str(path), "torch file", ema, (path,))


def _open_without_objects(path: Path, ema: bool, error: Exception) -> Opened:
    """Take the tensors out of a file that holds objects of other classes, too."""
    if _is_zip(path):
        content, dropped = read_tensors_only(path)
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{path}: expected a mapping of tensors") from error
        named = ", ".join(dropped)
        note = f"holds objects that were not built: {named}; only tensors and plain data were read"
        opened = _opened(content, str(path), "torch file", ema, (path,))
        return replace(opened, notes=(note, *opened.notes)) if dropped else opened
    if not _is_pickle(path):
        raise _no_weights(path) from error
    raise CheckpointError(
        f"{path}: holds more than tensors in the form before PyTorch 1.6 and is not opened, since that would "
        f"run code from it; if you trust its origin, save torch.load(path, weights_only=False)['model'] to a "
        f"new file and use that"
    ) from error


def _open_safetensors(path: Path) -> Opened:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except SafetensorError as error:
        looks = _look_of(path) or ": cut short or damaged; fetch it again"
        raise CheckpointError(f"{path}: not a safetensors file{looks}") from error
    if not tensors:
        raise CheckpointError(f"{path}: no tensors in it")
    return Opened(
        tensors, str(path), "safetensors", files=(path,), settings=_settings(path), metadata=metadata
    )


def _settings(path: Path) -> Mapping[str, Any] | None:
    file = path.with_name("config.json")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}; mend it or move it away") from error
    return settings if isinstance(settings, dict) else None


def _opened(
    content: Mapping[Any, object], where: str, kind: str, ema: bool, files: tuple[Path, ...]
) -> Opened:
    found = unwrap(content, where, ema=ema)
    container = kind + (f", under {'/'.join(found.path)}" if found.path else "")
    return Opened(found.tensors, where, container, found.notes, files)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"\x80"


def _no_weights(path: Path) -> CheckpointError:
    looks = _look_of(path) or "; give a file of weights (.pth, .safetensors), or fetch it again"
    return CheckpointError(f"{path}: not a torch file nor .safetensors{looks}")


def _look_of(path: Path) -> str:
    """What a file that is no weights is, where its beginning says so."""
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return " but a pointer of Git LFS; fetch the file itself with `git lfs pull`"
    if start.startswith((b"<!doctype", b"<html")):
        return " but a web page; the download went wrong"
    return "" if start else " but an empty file"
