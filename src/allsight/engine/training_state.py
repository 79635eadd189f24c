"""All that a training run must remember, as one flat dict of tensors.

Keys: `model/NAME`, `ema/NAME`, `optim/PARAMETER/ENTRY`, `memory/TASK/SLOT/NAME`, `run/step`, `run/ledger`,
where tasks have texts, `run/tokenizer` (its hash), and with float16 `run/loss_scale`.
Order of data and all randomness follow from seed and step, so nothing of them is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
from allsight.engine.parallel import local_part
from allsight.types import CheckpointError

Value = TypeVar("Value")


class TrainingState:
    """Collects the state of a run's parts, and gives it back to them."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema: WeightAverage | None,
        memory: TemporalMemory,
        ledger: Ledger,
        ranks: Ranks,
        tokenizer: Tokenizer | None = None,
        loss_scale: LossScale | None = None,
    ) -> None:
        self._loss_scale = loss_scale or LossScale(enabled=False)
        self._model, self._optimizer, self._ema = model, optimizer, ema
        self._memory, self._ledger, self._ranks = memory, ledger, ranks
        self._tokenizer_hash = "" if tokenizer is None else tokenizer.hash
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def tensors(self, step: int) -> Tensors:
        """The state after `step` steps."""
        found: Tensors = {
            f"model/{name}": tensor.detach() for name, tensor in self._model.state_dict().items()
        }
        found |= self._optimizer_tensors()
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
        trained = list(self._parameters.values())
        moments = [entry for entries in self._optimizer.state.values() for entry in entries.values()]
        return {
            "parameters": _bytes(self._model.parameters()),
            "gradients": _bytes(trained),
            "optimiser": _bytes(entry for entry in moments if isinstance(entry, Tensor)),
            "average": 0 if self._ema is None else _bytes(self._ema.averages.values()),
        }

    def restore(self, path: Path) -> int:
        """Load a checkpoint into all parts; the number of steps done.

        Raises:
            CheckpointError: It does not fit the run; every missing, unexpected or reshaped key is named.
        """
        stored = stored_tensors(path)
        run = load_tensors(path, lambda key: key.startswith("run/"))
        self._check_tokenizer(run.get("run/tokenizer"), path)
        # Filled in place, so that a rank reads of sharded tensors only its own part.
        weights = {name: tensor.detach() for name, tensor in self._model.state_dict().items()}
        _check_fit(weights, {key: shape for key, (shape, _) in _below(stored, "model/").items()}, str(path))
        if self._ema is not None and not _below(stored, "ema/"):
            raise CheckpointError(
                f"{path}: holds no averaged weights; unset optim.ema_decay to go on without"
            )
        averages = {} if self._ema is None else self._ema.averages
        self._make_optimizer_state(_below(stored, "optim/"))
        targets = {f"model/{name}": tensor for name, tensor in weights.items()}
        targets |= {f"ema/{name}": tensor for name, tensor in averages.items()}
        load_into(path, targets | self._optimizer_tensors())
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

    def _optimizer_tensors(self) -> Tensors:
        return {
            f"optim/{name}/{entry}": value
            for name, parameter in self._parameters.items()
            for entry, value in self._optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }

    def _make_optimizer_state(self, stored: Mapping[str, tuple[torch.Size, torch.dtype]]) -> None:
        """Room for what was stored. A parameter that no task had used then has no state, and gets none."""
        self._optimizer.state.clear()
        for key, (shape, dtype) in stored.items():
            name, _, entry = key.rpartition("/")
            parameter = self._parameters[name]
            # Counters stay on the CPU, where the optimisers keep them; all else is sharded as the parameter.
            is_like = shape == parameter.shape and len(shape) > 0
            room = torch.empty_like(parameter, dtype=dtype) if is_like else torch.empty(shape, dtype=dtype)
            self._optimizer.state[parameter][entry] = room.detach()


def _named(hash: str) -> str:
    return f"the tokenizer {hash[:12]}" if hash else "no tokenizer"


def load_weights(model: nn.Module, weights: Tensors, *, where: str) -> None:
    """Copy weights into a model, all or none.

    Raises:
        CheckpointError: Names or shapes differ.
    """
    own = model.state_dict()
    _check_fit(own, {name: tensor.shape for name, tensor in weights.items()}, where)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])


def _check_fit(own: Tensors, shapes: Mapping[str, torch.Size], where: str) -> None:
    faults = [f"missing {name}" for name in own if name not in shapes]
    faults += [f"unexpected {name}" for name in shapes if name not in own]
    faults += [
        f"{name} has shape {tuple(shapes[name])} in place of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in shapes and shapes[name] != tensor.shape
    ]
    if faults:
        shown = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise CheckpointError(f"{where}: weights do not fit the model: {shown}")


def _below(tensors: Mapping[str, Value], prefix: str) -> dict[str, Value]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(local_part(tensor.detach()).nbytes for tensor in tensors)
