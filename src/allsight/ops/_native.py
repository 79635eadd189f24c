"""The compiled CPU kernels: finding the library, calling it, and saying why it is not there.

The library is plain C (csrc/abi.h), opened with ctypes: it knows nothing of Python or PyTorch, so one build
serves all their versions. It is looked for beside this file, where the build puts it.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import torch
from torch import Tensor

ISA_VARIABLE = "ALLSIGHT_CPU_ISA"
"""Environment variable that forces an instruction set, to compare them or to look for a fault."""
LIBRARY_VARIABLE = "ALLSIGHT_CPU_LIBRARY"
"""Environment variable with the path of another build of the library, such as one with sanitizers."""
MOST_PIXELS = 2**31 - 8
"""Pixels of one image are counted in 32 bits; values in 64."""
_ABI_VERSION = 4
_FOLDER = Path(__file__).parent
_NAMES = ("liballsight_ops.so", "liballsight_ops.dylib")
_BUILD_NOTE = _FOLDER / "not_built.txt"

_INTEGER, _REAL, _POINTER = ctypes.c_int64, ctypes.c_double, ctypes.c_void_p


class _Call(ctypes.Structure):
    """Arguments of one call; subclasses list the fields of their struct in csrc/abi.h, in its order."""


def _fields(integers: str = "", reals: str = "", pointers: str = "") -> list[tuple[str, type]]:
    kinds = ((integers, _INTEGER), (reals, _REAL), (pointers, _POINTER))
    return [(name, kind) for names, kind in kinds for name in names.split()]


class Dcnv3Call(_Call):
    """`struct allsight_dcnv3`."""

    _fields_ = _fields(
        "batch height width groups group_channels rows columns points stride_h stride_w origin_h origin_w "
        "offset_step mask_step softmax threads",
        "offset_scale",
        "taps value offset mask out grad_out grad_value grad_offset grad_mask",
    )


class MsDeformAttnCall(_Call):
    """`struct allsight_ms_deform_attn`."""

    _fields_ = _fields(
        "batch pixels heads head_channels queries levels points softmax threads",
        "",
        "shapes value locations weights out grad_out grad_value grad_locations grad_weights",
    )


class DepthwiseNormActCall(_Call):
    """`struct allsight_depthwise_norm_act`."""

    _fields_ = _fields(
        "batch height width channels kernel act weight_channel_step weight_tap_step threads",
        "eps",
        "x weight bias norm_weight norm_bias out",
    )


class AddLayerNormCall(_Call):
    """`struct allsight_add_layer_norm`."""

    _fields_ = _fields(
        "pixels channels threads", "eps", "residual branch scale norm_weight norm_bias sum out"
    )


class ResampleCall(_Call):
    """`struct allsight_resample`."""

    _fields_ = _fields("height width out_height out_width row_step mirrored", "", "pixels out")


class RecolourCall(_Call):
    """`struct allsight_recolour`."""

    _fields_ = _fields(
        "count shift first_factor turn saturation last_factor red green blue", "", "pixels out"
    )


class _Library:
    """The opened library."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        library = ctypes.CDLL(self.path)
        version = library.allsight_abi_version()
        if version != _ABI_VERSION:
            raise OSError(f"{path} was built for another version of allsight (interface {version})")
        for name in ("allsight_isas", "allsight_isa"):
            getattr(library, name).restype = ctypes.c_char_p
        self.kernels = {
            (kernel, dtype): getattr(library, f"allsight_{kernel}_{suffix}")
            for kernel in (
                "dcnv3_forward",
                "dcnv3_backward",
                "ms_deform_attn_forward",
                "ms_deform_attn_backward",
                "depthwise_norm_act_forward",
                "add_layer_norm_forward",
                "layer_norm_add_forward",
            )
            for dtype, suffix in ((torch.float32, "f32"), (torch.float64, "f64"))
        } | {
            ("resample", torch.uint8): library.allsight_resample_u8,
            ("recolour", torch.uint8): library.allsight_recolour_u8,
        }
        self.isas: tuple[str, ...] = tuple(library.allsight_isas().decode().split())
        self.has_threads = bool(library.allsight_has_threads())
        wish = os.environ.get(ISA_VARIABLE)
        if wish and not library.allsight_use_isa(wish.encode()):
            raise OSError(f"{ISA_VARIABLE}={wish}: this machine has {', '.join(self.isas)}")
        self.isa: str = library.allsight_isa().decode()


def _open() -> _Library | str:
    """The library, or why there is none."""
    wish = os.environ.get(LIBRARY_VARIABLE)
    path = Path(wish) if wish else next((_FOLDER / n for n in _NAMES if (_FOLDER / n).is_file()), None)
    if path is None:
        said = _BUILD_NOTE.read_text().strip() if _BUILD_NOTE.is_file() else "no C++ compiler was found then"
        return f"the CPU kernels were not built when allsight was installed ({said})"
    try:
        return _Library(path)
    except (OSError, AttributeError) as error:
        return f"the CPU kernels cannot be used: {error}"


# Opened on import: `torch.compile` can look at a finished value, but not trace the opening of a library.
_LIBRARY = _open()


def unusable() -> str | None:
    """Why this installation has no compiled kernels; None if it has."""
    return _LIBRARY if isinstance(_LIBRARY, str) else None


def about() -> str:
    """What to say of the compiled kernels where they are usable."""
    if isinstance(_LIBRARY, str):
        return _LIBRARY
    threads = "" if _LIBRARY.has_threads else ", one thread: PyTorch's OpenMP was not found"
    return f"compiled, {_LIBRARY.isa}{threads}"


def run(kernel: str, call: ctypes.Structure, dtype: torch.dtype) -> None:
    """Run a kernel ("dcnv3_forward", ...) for tensors of a type that it knows.

    Raises:
        RuntimeError: There is no library (callers ask `unusable()` first).
        MemoryError: The kernel found no memory for its scratch space.
    """
    if isinstance(_LIBRARY, str):
        raise RuntimeError(_LIBRARY)
    if _LIBRARY.kernels[kernel, dtype](ctypes.byref(call)):
        raise MemoryError(f"{kernel}: no memory for scratch space")


def compute_type(*tensors: Tensor) -> torch.dtype:
    """float64 if any tensor is, else float32: what the kernels compute in."""
    for tensor in tensors:
        if tensor.dtype is torch.float64:
            return torch.float64
    return torch.float32


def dense(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The same values in that type, without gaps."""
    return as_type(tensor, dtype).contiguous()


def as_type(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The same values in that type; asking first takes a tenth of the time that `to` takes to do nothing."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def room_like(tensor: Tensor) -> Tensor:
    """Room for as many values of that type, without gaps."""
    if tensor.is_contiguous():
        return torch.empty_like(tensor)  # half as long on the way as `empty`
    return torch.empty(tensor.shape, dtype=tensor.dtype)
