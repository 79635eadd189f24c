"""The weights a run starts from, where they are not random."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
from allsight.weights import Mismatch, read_weights


def start_from(model: TaskModel, config: StartConfig, *, tell: Callable[[str], None]) -> str:
    """Put the weights of `config.start` into a model; what they are, in words.

    Entries under a name of `config.fresh`, or outside `config.part`, keep their initial values; everything
    else must fit.

    Args:
        tell: Hears of damaged newer checkpoints of a run that were passed over.
    Raises:
        ConfigError: A name of `fresh` or `part` that the model has not, or no such file.
        CheckpointError: The weights cannot be read, or do not fit.
    """
    place = Path(config.weights).expanduser()
    if place.is_dir():
        found, said = run_weights(place, "best", averaged=True, tell=tell)
        weights = own_weights(model, found, where=said)
    elif place.is_file():
        found, said = read_weights(place), str(place)
        weights = found if config.part else own_weights(model, found, where=said)
    else:
        raise ConfigError(
            f"config.start.weights: {config.weights}: no such file or run folder; give its path, or set "
            "start.weights= to start from random weights"
        )
    own = model.state_dict()
    if config.part:
        name, weights = part_of(weights, own, config, where=said)
        others = {key: tensor for key, tensor in own.items() if not _is_below(key, config.part)}
        load_weights(model, {**others, **weights}, where=said)
        return f"{name} of {said}, the rest anew" if name else f"{said}, the rest anew"
    for name in config.fresh:
        if not any(_is_below(key, name) for key in own):
            raise ConfigError(f"config.start.fresh: the model has nothing below '{name}'")
    kept = {key: tensor for key, tensor in own.items() if any(_is_below(key, n) for n in config.fresh)}
    used = {
        key: tensor for key, tensor in weights.items() if not any(_is_below(key, n) for n in config.fresh)
    }
    try:
        load_weights(model, {**used, **kept}, where=said, likely=partial(model.cause_of_misfit, found))
    except Mismatch as error:
        raise CheckpointError(f"{error}; parts that are to start anew go into start.fresh") from None
    return said if not kept else f"{said}, {', '.join(config.fresh)} anew"


def own_weights(model: TaskModel, weights: Tensors, *, where: str) -> Tensors:
    """Weights under the model's names, also published ones.

    Raises:
        CheckpointError: They are of another kind of network; names `where`.
    """
    try:
        return model.own_weights(weights)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error


def part_of(weights: Tensors, own: Tensors, config: StartConfig, *, where: str) -> tuple[str, Tensors]:
    """The weights of `config.part`: their name among `weights`, and they under the model's names.

    Args:
        weights: Of a whole model, or of the part alone.
        own: Those of the model that takes them.
        where: Of the weights, for errors.
    Raises:
        ConfigError: The model has no such part.
        CheckpointError: The weights have none, or several that it could be.
    """
    part = config.part
    wanted = {key.removeprefix(f"{part}.") for key in own if key.startswith(f"{part}.")}
    if not wanted:
        raise ConfigError(f"config.start.part: the model has nothing below '{part}'")
    if wanted == set(weights):
        return "", {f"{part}.{key}": tensor for key, tensor in weights.items()}
    name = config.part_in_weights
    if not name:
        # The names that end as the part's do, and have all of its entries below.
        ends = {key.removesuffix(f".{min(wanted)}") for key in weights if key.endswith(f".{min(wanted)}")}
        fitting = sorted(end for end in ends if all(f"{end}.{key}" in weights for key in wanted))
        found = [end for end in fitting if end == part] or fitting
        if len(found) != 1:
            several = f"it could be {', '.join(found)}; name one in" if found else "name it in"
            raise CheckpointError(
                f"{where}: '{part}' of the model is not there under this name; {several} "
                "start.part_in_weights, or check that the settings of the part are those of the weights"
            )
        name = found[0]
    taken = {key.removeprefix(f"{name}."): t for key, t in weights.items() if key.startswith(f"{name}.")}
    if not taken:
        raise CheckpointError(f"{where}: holds nothing below '{name}' (config.start.part_in_weights)")
    return name, {f"{part}.{key}": tensor for key, tensor in taken.items()}


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
