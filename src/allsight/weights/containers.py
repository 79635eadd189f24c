"""Where in the content of a file the weights are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from allsight.types.errors import CheckpointError
from allsight.weights.names import in_words

_LEVELS = ("model", "state_dict", "module", "model_state_dict")
_AVERAGES = ("model_ema", "ema", "state_dict_ema", "ema_state_dict")
_DEEPEST = 5


@dataclass(frozen=True)
class Unwrapped:
    """The weights, the keys that led to them, and what to say about it."""

    tensors: dict[str, Tensor]
    path: tuple[str, ...]
    notes: tuple[str, ...]


def unwrap(content: Mapping[Any, object], where: str, *, ema: bool) -> Unwrapped:
    """Go down to the weights.

    Args:
        content: A file's content.
        where: The file, for messages.
        ema: Take averaged weights.

    Raises:
        CheckpointError: There are none.
    """
    averages, notes = _averages(content), []
    inner, path = _descend(content)
    tensors = _tensors(inner)
    if ema:
        if averages is None:
            raise CheckpointError(
                f"{where}: keeps no averaged weights ({', '.join(_AVERAGES)}); leave out ema, or choose a "
                f"file that has them"
            )
        inner, below = _descend(_mapping(content[averages]))
        path = (averages, *below)
        tensors = _with_dots(_tensors(inner), tensors, where)
    elif averages is not None:
        notes.append(
            f"averaged weights lie beside the others, under {averages}; take them with ema=True or --ema"
        )
    if not tensors:
        _refuse_partitions(content, where)
        raise CheckpointError(
            f"{where}: no tensors at the top nor under {', '.join(_LEVELS)}; "
            f"it has {in_words([str(key) for key in content]) or 'nothing'}"
        )
    empty = [name for name, tensor in tensors.items() if not tensor.numel()]
    if 2 * len(empty) > len(tensors):
        _refuse_partitions({"param_shapes": empty}, where)
    return Unwrapped(tensors, path, tuple(notes))


def _descend(content: Mapping[Any, object]) -> tuple[Mapping[Any, object], tuple[str, ...]]:
    path: list[str] = []
    while len(path) < _DEEPEST:
        key = next((key for key in _LEVELS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        content = _mapping(content[key])
        path.append(key)
    return content, tuple(path)


def _averages(content: Mapping[Any, object]) -> str | None:
    return next((key for key in _AVERAGES if isinstance(content.get(key), Mapping)), None)


def _tensors(level: Mapping[Any, object]) -> dict[str, Tensor]:
    return {str(name): tensor for name, tensor in level.items() if isinstance(tensor, Tensor)}


def _with_dots(averages: dict[str, Tensor], weights: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Names with the dots that averages in DeepSpeed files have lost; the raw weights beside them know."""
    if not averages or any("." in name for name in averages):
        return averages
    dotted: dict[str, str] = {}
    for name in weights:
        bare = name.replace(".", "")
        if dotted.setdefault(bare, name) != name:
            raise CheckpointError(f"{where}: averages of {dotted[bare]} and {name} have the same name")
    return {dotted.get(name, name): tensor for name, tensor in averages.items()}


def _mapping(value: object) -> Mapping[Any, object]:
    assert isinstance(value, Mapping)
    return value


def _refuse_partitions(content: Mapping[Any, object], where: str) -> None:
    if "param_shapes" in content:
        from allsight.weights.folders import WHOLE

        raise CheckpointError(f"{where}: holds no whole weights but one rank's part (ZeRO stage 3); {WHOLE}")
