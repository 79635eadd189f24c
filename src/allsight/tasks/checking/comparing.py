"""Where two nested values differ, for messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


def difference(a: Any, b: Any, path: str = "") -> str:
    """The first place where two values differ and how; empty if they are the same, to the bit.

    Looks into dataclasses, mappings, sequences, tensors and arrays; NaN equals NaN.
    """
    here = path or "the whole"
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        a, b = torch.from_numpy(np.ascontiguousarray(a)), torch.from_numpy(np.ascontiguousarray(b))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{here}: {_form(a)} and {_form(b)}"
        same = torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())
        return "" if same else f"{here}: values of {_form(a)} differ"
    if type(a) is not type(b):
        return f"{here}: {type(a).__name__} and {type(b).__name__}"
    parts: list[tuple[str, Any, Any]] = []
    if is_dataclass(a) and not isinstance(a, type):
        parts = [(f".{f.name}", getattr(a, f.name), getattr(b, f.name)) for f in fields(a)]
    elif isinstance(a, Mapping):
        if list(a) != list(b):
            return f"{here}: keys {list(a)} and {list(b)}"
        parts = [(f"[{key!r}]", a[key], b[key]) for key in a]
    elif isinstance(a, Sequence) and not isinstance(a, str | bytes):
        if len(a) != len(b):
            return f"{here}: {len(a)} and {len(b)} items"
        parts = [(f"[{i}]", one, other) for i, (one, other) in enumerate(zip(a, b, strict=True))]
    elif not (a == b or (a != a and b != b)):
        return f"{here}: {a!r} and {b!r}"
    return next((found for name, x, y in parts if (found := difference(x, y, path + name))), "")


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
