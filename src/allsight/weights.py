"""Files of weights: read them safely, take the part that is meant, and say what fitted and what did not.

A family brings a two-way map between its own names and the published ones; everything else is here.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from allsight.types.errors import CheckpointError

Weights = Mapping[str, Tensor]
Source = str | os.PathLike[str] | Mapping[str, object]

_CONTAINERS = ("model", "state_dict", "module")
_SHOWN = 6


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor, by published name.

    Attributes:
        matched: Loaded.
        missing: Wanted by the model, not in the weights.
        unexpected: In the weights, not wanted by the model and not skipped by a rule.
        skipped: In the weights and left out by rule, such as heads when a backbone is loaded.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def with_skipped(self, names: tuple[str, ...]) -> LoadReport:
        """Return this report with further names that were left out by rule."""
        return replace(self, skipped=self.skipped + names)

    def __str__(self) -> str:
        text = f"{len(self.matched)} tensors matched, {len(self.missing)} missing"
        text += f", {len(self.unexpected)} unexpected, {len(self.skipped)} skipped by rule"
        return text + (f": {_some(self.skipped)}" if self.skipped else "")


def read_weights(source: Source) -> dict[str, Tensor]:
    """Read a file of tensors (`.safetensors`, else a torch file) or take them from a mapping.

    Torch files are opened without running code from them. The tensors may lie at the top or under one of the
    keys `model`, `state_dict`, `module`.

    Raises:
        CheckpointError: No such file, not readable without running its code, or no tensors inside.
    """
    if isinstance(source, Mapping):
        return _unpack(source, "the given mapping")
    path = Path(source)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file of weights")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise CheckpointError(f"{path}: not a safetensors file: {error}") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not _begins_as_torch_file(path):
            raise CheckpointError(f"{path}: not a torch file nor .safetensors") from error
        raise CheckpointError(
            f"{path}: holds more than tensors and is not opened, since that would run code from it; if you "
            f"trust its origin, save torch.load(path, weights_only=False)['model'] to a new file and use that"
        ) from error
    except Exception as error:
        # Arbitrary bytes make the unpickler raise nearly anything.
        known = isinstance(error, RuntimeError | EOFError | OSError)
        reason = (known and str(error).partition("\n")[0]) or (known and "it ends too early") or repr(error)
        raise CheckpointError(f"{path}: not a torch file: {reason}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected a mapping of tensors, got {type(content).__name__}")
    return _unpack(content, str(path))


def write_weights(weights: Weights, path: str | os.PathLike[str]) -> None:
    """Write tensors to `.safetensors`, else to a torch file with the tensors under `model`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    if Path(path).suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(tensors, path)
    else:
        torch.save({"model": tensors}, path)


def select_part(weights: Weights, prefix: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Split weights into the part under `prefix`, without it, and the names of all others.

    A `module.` in front of every name (data-parallel training) is dropped first. Where no name has the
    prefix, everything is the part.
    """
    names = list(weights)
    if names and all(name.startswith("module.") for name in names):
        weights = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    part = {name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}
    if not part:
        return dict(weights), ()
    return part, tuple(name for name in weights if not name.startswith(prefix))


def load_mapped(
    module: nn.Module,
    weights: Weights,
    names: Mapping[str, str],
    *,
    what: str,
    skip: Callable[[str], bool] = lambda name: False,
) -> LoadReport:
    """Put published weights into a module (which may be on the meta device).

    Args:
        module: Receives copies of the tensors, converted to its own types.
        weights: Published name -> tensor.
        names: Own name -> published name, for every entry of the module's state dict.
        what: What is being loaded, for messages.
        skip: Whether a published name is left out by rule when the module does not want it.

    Raises:
        CheckpointError: Tensors are missing, unexpected or of another shape; nothing was loaded then.
    """
    state = module.state_dict()
    own = {published: name for name, published in names.items()}
    missing = [name for name in own if name not in weights]
    others = [name for name in weights if name not in own]
    skipped = [name for name in others if skip(name)]
    unexpected = [name for name in others if not skip(name)]
    reshaped = [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(state[own[name]].shape)}"
        for name in own
        if name in weights and weights[name].shape != state[own[name]].shape
    ]
    faults = [("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped)]
    if any(found for _, found in faults):
        text = "; ".join(f"{len(found)} {kind}: {_some(found)}" for kind, found in faults if found)
        raise CheckpointError(f"{what}: weights do not fit the model: {text}")
    tensors = {
        name: weights[published].to(dtype=state[name].dtype, copy=True).contiguous()
        for published, name in own.items()
    }
    module.load_state_dict(tensors, assign=any(tensor.is_meta for tensor in state.values()))
    return LoadReport(tuple(own), skipped=tuple(skipped))


def _unpack(content: Mapping[str, object], where: str) -> dict[str, Tensor]:
    inner: object = content
    for key in _CONTAINERS:
        if isinstance(content.get(key), Mapping):
            inner = content[key]
            break
    assert isinstance(inner, Mapping)
    tensors = {str(name): tensor for name, tensor in inner.items() if isinstance(tensor, Tensor)}
    if not tensors:
        raise CheckpointError(
            f"{where}: no tensors at the top nor under {', '.join(_CONTAINERS)}; "
            f"it has {_some([str(key) for key in content]) or 'nothing'}"
        )
    return tensors


def _begins_as_torch_file(path: Path) -> bool:
    """A zip archive, or a pickle of protocol 2 and later."""
    with path.open("rb") as file:
        start = file.read(2)
    return start == b"PK" or start[:1] == b"\x80"


def _some(names: list[str] | tuple[str, ...]) -> str:
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
