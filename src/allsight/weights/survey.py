"""What tensors there are: numbers for people who want to know a file before they use it."""

from __future__ import annotations

import hashlib
import math
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Survey:
    """Numbers about tensors.

    Attributes:
        tensors: How many.
        numbers: How many numbers they hold.
        bytes: What they take.
        dtypes: Type -> how many tensors.
        not_finite: Names of those with infinities or NaN.
    """

    tensors: int
    numbers: int
    bytes: int
    dtypes: dict[str, int]
    not_finite: tuple[str, ...]


def survey(tensors: Mapping[str, Tensor]) -> Survey:
    """Count; every number is looked at once."""
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    return Survey(
        len(tensors),
        sum(tensor.numel() for tensor in tensors.values()),
        sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        dict(dtypes.most_common()),
        tuple(name for name, tensor in tensors.items() if not is_finite(tensor)),
    )


def is_finite(tensor: Tensor) -> bool:
    """Whether there is no infinity nor NaN; what has no numbers (meta device) has none of these either."""
    if tensor.is_meta or not tensor.numel() or not tensor.is_floating_point():
        return True
    # NaN wins in both, and this takes no memory.
    smallest, largest = torch.aminmax(tensor)
    return math.isfinite(smallest) and math.isfinite(largest)


def difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> list[str]:
    """How two sets of weights differ, a line for each tensor that does; types are not compared."""
    lines = [f"{name}: only in the first" for name in a if name not in b]
    lines += [f"{name}: only in the second" for name in b if name not in a]
    for name in a:
        if name not in b:
            continue
        if a[name].shape != b[name].shape:
            lines.append(f"{name}: {tuple(a[name].shape)} and {tuple(b[name].shape)}")
        elif not torch.equal(a[name].double(), b[name].double()):
            largest = float((a[name].double() - b[name].double()).abs().max())
            lines.append(f"{name}: differs by up to {largest:.3g}")
    return lines


def damaged_record(file: Path) -> str | None:
    """The first record of a zip-shaped torch file that is not as it was written; None: all are, or no zip.

    PyTorch keeps a checksum beside each tensor and does not look at it when it reads.
    """
    if not zipfile.is_zipfile(file):
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        return str(error)


def sha256(file: Path) -> str:
    """Checksum of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
