"""Targets as JSON and back, exactly: numbers, texts, tuples, tensors and the records of `allsight.types`.

A tensor is {"dtype", "shape"} with `values` (a flat list, short ones), `runs` (booleans: lengths of runs that
begin with False) or `zlib` (base64 of its compressed little-endian bytes). A record is {"type", "fields"}.
"""

from __future__ import annotations

import base64
import math
import zlib
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from allsight import types

_LISTED_UP_TO = 256
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.bool, torch.uint8, torch.int32, torch.int64, torch.float32, torch.float64)
}
# A file says how large a tensor is; it must not make us reserve all memory.
_MOST_ELEMENTS = 2**30


def to_plain(value: Any) -> Any:
    """`value` as something JSON can hold.

    Raises:
        TypeError: It is of a type that is not known here.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, tuple | list):
        return [to_plain(item) for item in value]
    if isinstance(value, Tensor):
        return _tensor_to_plain(value)
    if is_dataclass(value) and getattr(types, type(value).__name__, None) is type(value):
        own = {field.name: getattr(value, field.name) for field in fields(value)}
        return {"type": type(value).__name__, "fields": {n: to_plain(v) for n, v in own.items()}}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: to_plain(item) for key, item in value.items()}}
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def from_plain(value: Any) -> Any:
    """The inverse of `to_plain`; lists come back as tuples.

    Raises:
        ValueError: Another structure.
    """
    if isinstance(value, list):
        return tuple(from_plain(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "dtype" in value:
        return _tensor_from_plain(value)
    if "type" in value:
        return _record_from_plain(value)
    if isinstance(value.get("dict"), dict):
        return {key: from_plain(item) for key, item in value["dict"].items()}
    if isinstance(value.get("float"), str):
        return float(value["float"])
    raise ValueError(f"an object with {sorted(value)[:4]}; expected a tensor, a record or a dictionary")


def _record_from_plain(value: dict[str, Any]) -> Any:
    name = value["type"]
    cls: Any = getattr(types, name, None) if isinstance(name, str) and name in types.__all__ else None
    if not isinstance(cls, type) or not is_dataclass(cls) or not isinstance(value.get("fields"), dict):
        raise ValueError(f"a record of the unknown type {name!r}")
    try:
        return cls(**{key: from_plain(item) for key, item in value["fields"].items()})
    except TypeError as error:
        raise ValueError(f"a record {name} with other fields: {error}") from error


def _tensor_to_plain(tensor: Tensor) -> dict[str, Any]:
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise TypeError(f"a tensor of {name} cannot be written; expected one of {', '.join(_DTYPES)}")
    array = tensor.detach().cpu().contiguous().numpy()
    head: dict[str, Any] = {"dtype": name, "shape": list(array.shape)}
    if array.size <= _LISTED_UP_TO and np.isfinite(array).all():
        return {**head, "values": array.ravel().tolist()}
    if array.dtype == np.bool_:
        # A run ends wherever a value differs from the one before; the first is compared with False.
        changes = np.flatnonzero(np.diff(array.ravel(), prepend=False))
        runs = np.diff(np.concatenate(([0], changes, [array.size])))
        return {**head, "runs": runs.tolist()}
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return {**head, "zlib": base64.b64encode(zlib.compress(little.tobytes(), 6)).decode()}


def _tensor_from_plain(value: dict[str, Any]) -> Tensor:
    dtype, shape = _DTYPES.get(str(value["dtype"])), value.get("shape")
    if dtype is None or not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"a tensor of {value['dtype']!r} and shape {shape!r}")
    count = math.prod(shape)
    if count > _MOST_ELEMENTS:
        raise ValueError(f"a tensor of shape {shape}, which is too large")
    if "values" in value:
        tensor = torch.tensor(value["values"], dtype=dtype)
    elif "runs" in value:
        runs = np.asarray(value["runs"], dtype=np.int64)
        if runs.ndim != 1 or (runs < 0).any() or int(runs.sum()) != count:
            raise ValueError(f"runs that do not add up to the {count} values of shape {shape}")
        tensor = torch.from_numpy(np.repeat(np.arange(len(runs)) % 2 == 1, runs))
    else:
        numpy_dtype = np.dtype(str(value["dtype"])).newbyteorder("<")
        try:
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(base64.b64decode(value["zlib"]), count * numpy_dtype.itemsize + 1)
        except (zlib.error, KeyError, TypeError) as error:
            raise ValueError(f"a tensor without readable values ({error})") from error
        tensor = torch.from_numpy(
            np.frombuffer(data, dtype=numpy_dtype).astype(numpy_dtype.newbyteorder("="))
        )
    if tensor.numel() != count:
        raise ValueError(f"a tensor of {tensor.numel()} values; its shape {shape} has {count}")
    return tensor.reshape(shape)
