"""Tensors out of torch files that hold more than tensors, without running anything.

A pickle is a program. This reads it as data: a loop over its instructions that builds plain containers and
tensors, and has no instruction that looks up, imports or calls what the file names. Objects of other classes
(the settings of the official training code, say) become empty place holders. A file that would call something
that is not known to be harmless is refused all the same, since nobody should have it.
"""

from __future__ import annotations

import mmap
import pickletools
import struct
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from allsight.types.errors import CheckpointError

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# What files of training frameworks name to make plain data. None of it is looked up either; naming anything
# else is what a file of weights has no reason to do.
_HARMLESS_MODULES = {"addict", "argparse", "collections", "datetime", "deepspeed", "easydict", "mmcv"}
_HARMLESS_MODULES |= {"mmengine", "numpy", "omegaconf", "pathlib", "torch", "yacs"}
_HARMLESS_CALLS = {"copyreg._reconstructor", "copy_reg._reconstructor", "_codecs.encode"}
_PLAIN = ("bytearray", "bytes", "complex", "dict", "frozenset", "list", "object", "range", "set", "slice")
_HARMLESS_CALLS |= {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _PLAIN}
_DICTS = {"collections.OrderedDict", "collections.defaultdict"}
_TENSORS = {"torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2"}
_WRAPPED = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}


@dataclass(frozen=True)
class _Named:
    """What a file names and nobody looks up."""

    name: str


@dataclass(frozen=True)
class _Dropped:
    """An object of a class that is not built."""


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str
    numel: int


_MARK = object()


def read_tensors_only(path: Path) -> tuple[Any, Counter[str]]:
    """Read a zip-shaped torch file: its content with tensors, and what was left out by class name.

    Args:
        path: The file. Tensors lie in the file until they are used (memory mapping).

    Raises:
        CheckpointError: It names a call that is not known to be harmless, is damaged, or of another kind.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _read(path, file, archive)
        except (zipfile.BadZipFile, EOFError) as error:
            raise CheckpointError(f"{path}: not a whole torch file: {error}") from error
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error) as error:
            raise CheckpointError(f"{path}: a damaged torch file: {error!r}") from error
        except (RuntimeError, RecursionError, OverflowError, MemoryError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path}: a damaged torch file: {error!r}") from error


def _read(path: Path, file: BinaryIO, archive: zipfile.ZipFile) -> tuple[Any, Counter[str]]:
    programs = [name for name in archive.namelist() if name.endswith("data.pkl")]
    if len(programs) != 1:
        raise CheckpointError(f"{path}: not a torch file: {len(programs)} entries data.pkl in place of one")
    root = programs[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
        raise CheckpointError(f"{path}: was written by a big-endian machine, which is not supported")
    machine = _Machine(_Records(file, archive, root), str(path))
    return machine.run(archive.read(programs[0])), machine.dropped


class _Records:
    """The raw numbers of tensors, where they lie in the file."""

    def __init__(self, file: BinaryIO, archive: zipfile.ZipFile, root: str) -> None:
        self._archive, self._root = archive, root
        self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def storage(self, wanted: _Storage) -> Tensor:
        entry = self._archive.getinfo(f"{self._root}data/{wanted.key}")
        size = wanted.numel * wanted.dtype.itemsize
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != size:
            raise ValueError(f"storage {wanted.key} has {entry.file_size} bytes in place of {size}")
        if not size:
            return torch.empty(0, dtype=wanted.dtype)
        # The local header repeats name and extra field, in lengths of its own.
        header = entry.header_offset
        name, extra = struct.unpack("<HH", self._bytes[header + 26 : header + 30])
        offset = header + 30 + name + extra
        return torch.frombuffer(self._bytes, dtype=wanted.dtype, count=wanted.numel, offset=offset)


@dataclass
class _Machine:
    """Follows the instructions of a pickle."""

    records: _Records
    where: str
    dropped: Counter[str] = field(default_factory=Counter)
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self, program: bytes) -> Any:
        for instruction, argument, _ in pickletools.genops(program):
            name = instruction.name
            if name == "STOP":
                return self.stack.pop()
            step = getattr(self, f"_{name.lower()}", None)
            if step is not None:
                step(argument)
            elif instruction.arg is not None and not instruction.stack_before:
                self.stack.append(argument)  # a literal
            else:
                raise ValueError(f"instruction {name}")
        raise EOFError("it ends too early")

    def _to_mark(self) -> list[Any]:
        found: list[Any] = []
        while (top := self.stack.pop()) is not _MARK:
            found.append(top)
        return found[::-1]

    # Containers.

    def _mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def _pop(self, _: Any) -> None:
        self.stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._to_mark()

    def _dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _none(self, _: Any) -> None:
        self.stack.append(None)

    def _newtrue(self, _: Any) -> None:
        self.stack.append(True)

    def _newfalse(self, _: Any) -> None:
        self.stack.append(False)

    def _empty_list(self, _: Any) -> None:
        self.stack.append([])

    def _empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def _empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def _empty_set(self, _: Any) -> None:
        self.stack.append(_Dropped())

    def _list(self, _: Any) -> None:
        self.stack.append(self._to_mark())

    def _tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._to_mark()))

    def _dict(self, _: Any) -> None:
        items = self._to_mark()
        self.stack.append({})
        self._set(items)

    def _frozenset(self, _: Any) -> None:
        self._to_mark()
        self.stack.append(_Dropped())

    def _tuple1(self, _: Any) -> None:
        self.stack[-1:] = [tuple(self.stack[-1:])]

    def _tuple2(self, _: Any) -> None:
        self.stack[-2:] = [tuple(self.stack[-2:])]

    def _tuple3(self, _: Any) -> None:
        self.stack[-3:] = [tuple(self.stack[-3:])]

    def _append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._to_mark())

    def _additems(self, _: Any) -> None:
        self._to_mark()

    def _setitem(self, _: Any) -> None:
        value = self.stack.pop()
        self._set([self.stack.pop(), value])

    def _setitems(self, _: Any) -> None:
        self._set(self._to_mark())

    def _extend(self, values: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def _set(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            keys = items[::2]
            # Only plain keys are of use, and only of them it is known that they can be hashed.
            pairs = zip(keys, items[1::2], strict=True)
            self.stack[-1].update((k, v) for k, v in pairs if isinstance(k, str | int | float | bytes))

    # Memory.

    def _memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _put(self, index: Any) -> None:
        self.memo[int(index)] = self.stack[-1]

    _binput = _long_binput = _put

    def _get(self, index: Any) -> None:
        self.stack.append(self.memo[int(index)])

    _binget = _long_binget = _get

    def _proto(self, _: Any) -> None:
        pass

    _frame = _proto

    # What the file names. Nothing of it is looked up.

    def _global(self, argument: str) -> None:
        self.stack.append(_Named(argument.replace(" ", ".", 1)))

    def _stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(_Named(f"{module}.{name}"))

    def _reduce(self, _: Any) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        self.stack.append(self._result(called, arguments))

    def _obj(self, _: Any) -> None:
        called, *arguments = self._to_mark()
        self.stack.append(self._result(called, tuple(arguments)))

    def _inst(self, argument: str) -> None:
        self.stack.append(self._result(_Named(argument.replace(" ", ".", 1)), tuple(self._to_mark())))

    def _newobj(self, _: Any) -> None:
        self.stack.pop()
        self.stack.append(self._drop(self.stack.pop()))

    def _newobj_ex(self, _: Any) -> None:
        self.stack.pop()
        self._newobj(None)

    def _build(self, _: Any) -> None:
        self.stack.pop()

    def _binpersid(self, _: Any) -> None:
        kind, named, key, _, numel = self.stack.pop()[:5]
        storage = named.name.rpartition(".")[2]
        if kind != "storage" or storage not in _DTYPES:
            raise ValueError(f"{kind} of {named.name}")
        self.stack.append(_Storage(_DTYPES[storage], str(key), int(numel)))

    def _result(self, called: Any, arguments: Any) -> Any:
        name = called.name if isinstance(called, _Named) else ""
        if name in _DICTS:
            return {}
        if name in _TENSORS:
            return self._tensor(*arguments[:4])
        if name in _WRAPPED:
            return arguments[0]
        if name == "torch.Size":
            return tuple(arguments[0])
        if name in _HARMLESS_CALLS or name.partition(".")[0] in _HARMLESS_MODULES:
            return self._drop(called)
        raise CheckpointError(
            f"{self.where}: would call {name or 'something it made'} if it were loaded as a pickle, which no "
            f"file of weights does, and is not read; ask its maker for the tensors alone, as .safetensors or "
            f"torch.save(model.state_dict())"
        )

    def _drop(self, named: Any) -> _Dropped:
        self.dropped[named.name if isinstance(named, _Named) else "an object"] += 1
        return _Dropped()

    def _tensor(self, storage: Any, offset: int, size: Any, stride: Any) -> Tensor:
        numbers = self.records.storage(storage)
        size = tuple(int(n) for n in size)
        # A view that repeats its numbers could be made huge by a few bytes.
        if torch.Size(size).numel() > numbers.numel():
            raise ValueError(f"a tensor of {size} on {numbers.numel()} numbers")
        return numbers.as_strided(size, tuple(int(n) for n in stride), int(offset))
