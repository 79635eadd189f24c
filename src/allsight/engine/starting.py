"""The weights a run starts from, where they are not random."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from allsight.config import ConfigError
from allsight.engine.checkpoint import (
    Tensors,
    find_fault,
    list_checkpoints,
    load_tensors,
    newest_whole,
    read_best,
)
from allsight.engine.config import StartConfig
from allsight.engine.training_state import load_weights
from allsight.models.base import TaskModel
from allsight.types import CheckpointError
from allsight.weights import read_weights


def start_from(model: TaskModel, config: StartConfig, *, tell: Callable[[str], None]) -> str:
    """Put the weights of `config.start` into a model; what they are, in words.

    Entries under a name of `config.fresh` keep their initial values; everything else must fit.

    Args:
        tell: Hears of damaged newer checkpoints of a run that were passed over.
    Raises:
        ConfigError: A name of `fresh` that the model has not, or no such file.
        CheckpointError: The weights cannot be read, or do not fit.
    """
    place = Path(config.weights).expanduser()
    if place.is_dir():
        found, said = run_weights(place, "best", averaged=True, tell=tell)
        weights = model.own_weights(found)
    elif place.is_file():
        weights, said = model.own_weights(read_weights(place)), str(place)
    else:
        raise ConfigError(
            f"config.start.weights: {config.weights}: no such file or run folder; give its path, or set "
            "start.weights= to start from random weights"
        )
    own = model.state_dict()
    for name in config.fresh:
        if not any(_is_below(key, name) for key in own):
            raise ConfigError(f"config.start.fresh: the model has nothing below '{name}'")
    kept = {key: tensor for key, tensor in own.items() if any(_is_below(key, n) for n in config.fresh)}
    used = {
        key: tensor for key, tensor in weights.items() if not any(_is_below(key, n) for n in config.fresh)
    }
    try:
        load_weights(model, {**used, **kept}, where=said)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; parts that are to start anew go into start.fresh") from None
    return said if not kept else f"{said}, {', '.join(config.fresh)} anew"


def run_weights(
    folder: Path, which: str, *, averaged: bool, tell: Callable[[str], None]
) -> tuple[Tensors, str]:
    """The weights that a run folder holds, and what they are in words.

    Args:
        which: `best`: of the best evaluation, else (none yet) and in all other cases the newest whole ones.
        averaged: Take averages where the run kept them.
        tell: Hears of damaged newer checkpoints.
    Raises:
        CheckpointError: No whole checkpoint, or the best one is gone or damaged.
    """
    checkpoints = folder / "checkpoints"
    path = None
    best = read_best(checkpoints) if which == "best" else None
    if best is not None:
        path = next((saved.path for saved in list_checkpoints(checkpoints) if saved.step == best[0]), None)
        fault = f"checkpoint of the best step {best[0]} is gone" if path is None else find_fault(path)
        if fault is not None:
            raise CheckpointError(f"{checkpoints}: {fault}; use weights=last")
    if path is None:
        newest = newest_whole(checkpoints, tell=tell)
        if newest is None:
            raise CheckpointError(
                f"{checkpoints}: no whole checkpoint; was the run stopped before it saved one?"
            )
        path = newest.path
    tensors = load_tensors(path, lambda key: key.startswith(("model/", "ema/")))
    found = {key.removeprefix("model/"): value for key, value in tensors.items() if key.startswith("model/")}
    if averaged:
        found |= {key.removeprefix("ema/"): value for key, value in tensors.items() if key.startswith("ema/")}
    return found, str(path)


def _is_below(key: str, name: str) -> bool:
    return key == name or key.startswith(f"{name}.")
