"""All that a training run must remember, as one flat dict of tensors.

Keys: `model/NAME`, `ema/NAME`, `optim/PARAMETER/ENTRY`, `memory/TASK/SLOT/NAME`, `run/step`, `run/ledger`,
where tasks have texts, `run/tokenizer` (its hash), and with float16 `run/loss_scale`.
Order of data and all randomness follow from seed and step, so nothing of them is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from allsight.data.corrupt import Ledger
from allsight.data.text import Tokenizer
from allsight.engine.checkpoint import Tensors, load_into, load_tensors, stored_tensors
from allsight.engine.distributed import Ranks
from allsight.engine.ema import WeightAverage
from allsight.engine.loss_scale import LossScale
from allsight.engine.memory import TemporalMemory
from allsight.engine.parallel import Parallel, local_part
from allsight.types import CheckpointError
from allsight.weights import check_finite, check_fit
from allsight.weights.survey import is_finite

Value = TypeVar("Value")


class TrainingState:
    """Collects the state of a run's parts, and gives it back to them."""

    def __init__(
        self,
        parallel: Parallel,
        ema: WeightAverage | None,
        memory: TemporalMemory,
        ledger: Ledger,
        ranks: Ranks,
        tokenizer: Tokenizer | None = None,
        loss_scale: LossScale | None = None,
    ) -> None:
        self._loss_scale = loss_scale or LossScale(enabled=False)
        self._parallel, self._ema = parallel, ema
        self._memory, self._ledger, self._ranks = memory, ledger, ranks
        self._tokenizer_hash = "" if tokenizer is None else tokenizer.hash

    def tensors(self, step: int) -> Tensors:
        """The state after `step` steps."""
        found = self._parallel.tensors()
        if self._ema is not None:
            found |= {f"ema/{name}": tensor for name, tensor in self._ema.averages.items()}
        found |= {f"memory/{key}": row for key, row in self._memory.tensors(self._ranks).items()}
        found["run/step"] = torch.tensor(step)
        found["run/ledger"] = self._ledger.to_tensor()
        if self._loss_scale.enabled:
            found["run/loss_scale"] = self._loss_scale.to_tensor()
        if self._tokenizer_hash:
            digits = bytearray.fromhex(self._tokenizer_hash)
            found["run/tokenizer"] = torch.frombuffer(digits, dtype=torch.uint8)
        return found

    def held_bytes(self) -> dict[str, int]:
        """What this rank holds between steps: `parameters`, `gradients`, `optimiser`, `average`, in bytes."""
        average = {} if self._ema is None else self._ema.averages
        held = sum(local_part(tensor).nbytes for tensor in average.values())
        return {**self._parallel.held_bytes(), "average": held}

    def restore(self, path: Path) -> int:
        """Load a checkpoint into all parts; the number of steps done.

        Raises:
            CheckpointError: It does not fit the run; a `Mismatch` has every key that does not.
        """
        stored = stored_tensors(path)
        run = load_tensors(path, lambda key: key.startswith("run/"))
        self._check_tokenizer(run.get("run/tokenizer"), path)
        shapes = {key: shape for key, (shape, _) in _below(stored, "model/").items()}
        check_fit(self._parallel.weight_shapes(), shapes, what=str(path))
        if self._ema is not None and not _below(stored, "ema/"):
            raise CheckpointError(
                f"{path}: holds no averaged weights; unset optim.ema_decay to go on without"
            )
        averages = {} if self._ema is None else self._ema.averages
        # Filled in place, so that a rank reads of sharded tensors only its own part.
        with self._parallel.restoring(_below(stored, "optim/")) as targets:
            load_into(path, targets | {f"ema/{name}": tensor for name, tensor in averages.items()})
        rows = _below(load_tensors(path, lambda key: key.startswith("memory/")), "memory/")
        self._memory.restore({key: row.to(self._ranks.device) for key, row in rows.items()})
        self._ledger.restore(run["run/ledger"])
        self._loss_scale.restore(run.get("run/loss_scale"))
        return int(run["run/step"])

    def _check_tokenizer(self, saved: Tensor | None, path: Path) -> None:
        """Refuse weights whose token ids meant other words."""
        then = "" if saved is None else bytes(saved.tolist()).hex()
        if then != self._tokenizer_hash:
            raise CheckpointError(
                f"{path}: trained with {_named(then)}, now there is {_named(self._tokenizer_hash)}; "
                f"go on with the tokenizer.json of the run folder"
            )


def _named(hash: str) -> str:
    return f"the tokenizer {hash[:12]}" if hash else "no tokenizer"


def load_weights(
    model: nn.Module, weights: Tensors, *, where: str, likely: Callable[[], str] = lambda: ""
) -> None:
    """Copy weights into a new model, all or none.

    Args:
        where: Of the weights, for errors.
        likely: Finds the likely cause of weights that do not fit, for the error.
    Raises:
        Mismatch: Names or shapes differ.
        CheckpointError: Infinities or NaN. What a new model has full of NaN itself (a monitor that has seen
            nothing yet) may hold them.
    """
    own = model.state_dict()
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    check_fit({name: tensor.shape for name, tensor in own.items()}, shapes, what=where, hint=likely)
    # A number may be finite in the file and not in the model's type.
    taken = {name: weights[name].to(tensor.dtype) for name, tensor in own.items()}
    checked = {name: tensor for name, tensor in taken.items() if is_finite(own[name])}
    check_finite(checked, weights, what=where)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(taken[name])


def _below(tensors: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
