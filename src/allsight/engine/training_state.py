"""All that a training run must remember, as one flat dict of tensors.

Keys: `model/NAME`, `ema/NAME`, `optim/PARAMETER/ENTRY`, `memory/TASK/SLOT/NAME`, `run/step`, `run/ledger`,
and, where tasks have texts, `run/tokenizer` (its hash).
Order of data and all randomness follow from seed and step, so nothing of them is stored.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from allsight.data.corrupt import Ledger
from allsight.data.text import Tokenizer
from allsight.engine.checkpoint import Tensors, load_tensors
from allsight.engine.distributed import Ranks
from allsight.engine.ema import WeightAverage
from allsight.engine.memory import TemporalMemory
from allsight.types import CheckpointError


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
    ) -> None:
        self._model, self._optimizer, self._ema = model, optimizer, ema
        self._memory, self._ledger, self._ranks = memory, ledger, ranks
        self._tokenizer_hash = "" if tokenizer is None else tokenizer.hash
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def tensors(self, step: int) -> Tensors:
        """The state after `step` steps."""
        found: Tensors = {
            f"model/{name}": tensor.detach() for name, tensor in self._model.state_dict().items()
        }
        for name, parameter in self._parameters.items():
            for entry, value in self._optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    found[f"optim/{name}/{entry}"] = value
        if self._ema is not None:
            found |= {f"ema/{name}": tensor for name, tensor in self._ema.averages.items()}
        found |= {f"memory/{key}": row for key, row in self._memory.tensors(self._ranks).items()}
        found["run/step"] = torch.tensor(step)
        found["run/ledger"] = self._ledger.to_tensor()
        if self._tokenizer_hash:
            digits = bytearray.fromhex(self._tokenizer_hash)
            found["run/tokenizer"] = torch.frombuffer(digits, dtype=torch.uint8)
        return found

    def restore(self, path: Path) -> int:
        """Load a checkpoint into all parts; the number of steps done.

        Raises:
            CheckpointError: It does not fit the run; every missing, unexpected or reshaped key is named.
        """
        tensors = load_tensors(path, lambda key: True)
        self._check_tokenizer(tensors.get("run/tokenizer"), path)
        load_weights(self._model, _below(tensors, "model/"), where=str(path))
        if self._ema is not None:
            self._restore_ema(_below(tensors, "ema/"), path)
        self._restore_optimizer(_below(tensors, "optim/"))
        rows = _below(tensors, "memory/")
        self._memory.restore({key: row.to(self._ranks.device) for key, row in rows.items()})
        self._ledger.restore(tensors["run/ledger"])
        return int(tensors["run/step"])

    def _check_tokenizer(self, saved: Tensor | None, path: Path) -> None:
        """Refuse weights whose token ids meant other words."""
        then = "" if saved is None else bytes(saved.tolist()).hex()
        if then != self._tokenizer_hash:
            raise CheckpointError(
                f"{path}: trained with {_named(then)}, now there is {_named(self._tokenizer_hash)}; "
                f"go on with the tokenizer.json of the run folder"
            )

    def _restore_ema(self, averages: Tensors, path: Path) -> None:
        assert self._ema is not None
        if not averages:
            raise CheckpointError(
                f"{path}: holds no averaged weights; unset optim.ema_decay to go on without"
            )
        for name, average in self._ema.averages.items():
            average.copy_(averages[name])

    def _restore_optimizer(self, entries: Tensors) -> None:
        """A parameter that no task had used when the checkpoint was made has no state, and gets none."""
        self._optimizer.state.clear()
        for key, value in entries.items():
            name, _, entry = key.rpartition("/")
            parameter = self._parameters[name]
            # Step counters stay on the CPU, where the optimisers keep them.
            place = parameter.device if value.ndim else torch.device("cpu")
            self._optimizer.state[parameter][entry] = value.to(place)


def _named(hash: str) -> str:
    return f"the tokenizer {hash[:12]}" if hash else "no tokenizer"


def load_weights(model: nn.Module, weights: Tensors, *, where: str) -> None:
    """Copy weights into a model, all or none.

    Raises:
        CheckpointError: Names or shapes differ.
    """
    own = model.state_dict()
    faults = [f"missing {name}" for name in own if name not in weights]
    faults += [f"unexpected {name}" for name in weights if name not in own]
    faults += [
        f"{name} has shape {tuple(weights[name].shape)} in place of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if faults:
        shown = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise CheckpointError(f"{where}: weights do not fit the model: {shown}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])


def _below(tensors: Tensors, prefix: str) -> Tensors:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
