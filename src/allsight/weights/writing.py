"""Writing files of weights, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor


def write_weights(
    weights: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write tensors to `.safetensors`, else to a torch file with the tensors under `model`.

    Args:
        weights: Name -> tensor.
        path: Where to; what lies there is replaced once the new file is whole.
        metadata: Texts for the header of a `.safetensors` file; a torch file has none.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in weights.items():
        own = tensor.detach().cpu().contiguous()
        # Tensors that share their memory, as tied weights do, or have more of it than they show.
        if own.untyped_storage().nbytes() != own.nbytes or own.data_ptr() in taken:
            own = own.clone()
        taken.add(own.data_ptr())
        tensors[name] = own
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(tensors, temporary, metadata={"format": "pt", **(metadata or {})})
        else:
            torch.save({"model": tensors}, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
