"""What DeepSpeed's ZeRO optimisers hold of weights, gradients and moments, under the names of the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from allsight.engine.parallel.tensors import Tensors
from allsight.models.base import TaskModel
from allsight.types import CheckpointError

_COUNTER = "step"
"""The one entry of PyTorch's optimisers that is no tensor like the parameter."""


class Zero:
    """Stages 1 and 2: every rank holds all weights, and of each parameter group one flat part to update.

    Args:
        library: The module `deepspeed`.
        engine: Its engine.
        bare: The model inside.
    """

    def __init__(self, library: Any, engine: Any, bare: TaskModel) -> None:
        self._library, self._engine, self._bare = library, engine, bare
        self._optimizer: Any = engine.optimizer
        self._names = {p: name for name, p in bare.named_parameters()}

    def gradients(self) -> list[Tensor]:
        """This rank's parts of the gradients of the step."""
        if self._is_offloaded():
            return [flat.grad for flat in self._flats() if flat.grad is not None]
        held = self._optimizer.averaged_gradients
        return [part for parts in held.values() if parts is not None for part in parts]

    def discard(self) -> None:
        """Forget the gradients of a step that is not made."""
        zero = self._optimizer
        zero.micro_step_id = -1
        for number in zero.averaged_gradients:
            zero.averaged_gradients[number] = None
            zero.all_grad_tensors[number] = None
        if self._is_offloaded():
            zero.reset_cpu_buffers()

    @contextmanager
    def whole(self, *, writes: bool = False) -> Iterator[None]:
        """Within, parameters are whole.

        Args:
            writes: They may be changed within, on all ranks alike.
        """
        yield
        if writes:
            self._optimizer.refresh_fp32_params()

    @contextmanager
    def unhooked(self) -> Iterator[None]:
        """Within, the bare model can be called without other ranks."""
        yield

    def weight_shapes(self) -> dict[str, torch.Size]:
        """Name -> whole shape of each weight and buffer."""
        return {name: self._shape(t) for name, t in self._bare.state_dict(keep_vars=True).items()}

    def weights(self) -> Tensors:
        """`model/NAME` -> whole tensor."""
        return {f"model/{name}": tensor.detach() for name, tensor in self._bare.state_dict().items()}

    def optimizer_tensors(self) -> Tensors:
        """`optim/PARAMETER/ENTRY` -> whole tensor on the CPU."""
        found: Tensors = {}
        self._link()
        for group, flat in zip(self._groups(), self._flats(), strict=True):
            for entry, value in self._optimizer.optimizer.state.get(flat, {}).items():
                for parameter in group:
                    whole = value if entry == _COUNTER else self._moment(parameter, entry)
                    found[f"optim/{self._names[parameter]}/{entry}"] = whole.detach().cpu().clone()
        return found

    @torch.no_grad()
    def restore(self, tensors: Tensors) -> None:
        """Take over what `weights` and `optimizer_tensors` gave.

        Raises:
            CheckpointError: The weights of a group were not updated in the same steps.
        """
        with self.whole(writes=True):
            for name, own in self._bare.state_dict(keep_vars=True).items():
                own.data.copy_(tensors[f"model/{name}"])
        stored: dict[str, Tensors] = {}
        for key, tensor in tensors.items():
            if key.startswith("optim/"):
                name, _, entry = key.removeprefix("optim/").rpartition("/")
                stored.setdefault(name, {})[entry] = tensor
        for group, flat in zip(self._groups(), self._flats(), strict=True):
            self._restore_group([(p, stored.get(self._names[p], {})) for p in group], flat)

    def held_bytes(self) -> dict[str, int]:
        """What this rank holds between steps; see `Parallel.held_bytes`."""
        flats = self._flats()
        moments = [
            entry for flat in flats for entry in self._optimizer.optimizer.state.get(flat, {}).values()
        ]
        return {
            "parameters": sum(self._held(p).nbytes for p in self._bare.parameters()),
            "gradients": sum(flat.nbytes for flat in flats),
            # With the copies of weights that are updated.
            "optimiser": sum(t.nbytes for t in [*flats, *moments] if isinstance(t, Tensor)),
        }

    def _restore_group(self, group: list[tuple[nn.Parameter, Tensors]], flat: Tensor) -> None:
        marks = {(tuple(sorted(s)), float(s.get(_COUNTER, torch.tensor(0)))) for _, s in group}
        if len(marks) > 1:
            raise CheckpointError(
                "optimiser: some weights were not updated in all steps (layers that tasks leave out), and "
                "DeepSpeed updates those of a group together; go on with parallel.strategy=fsdp or ddp"
            )
        entries = group[0][1] if group else {}
        if not entries:
            return
        self._optimizer.optimizer.state[flat] = {
            entry: value.clone() if entry == _COUNTER else torch.zeros_like(flat)
            for entry, value in entries.items()
        }
        self._link()
        for parameter, stored in group:
            for entry, value in stored.items():
                if entry != _COUNTER:
                    self._set_moment(parameter, entry, value.to(flat))

    def _groups(self) -> list[list[nn.Parameter]]:
        return self._optimizer.bit16_groups

    def _flats(self) -> list[Tensor]:
        return self._optimizer.single_partition_of_fp32_groups

    def _is_offloaded(self) -> bool:
        return bool(self._optimizer.cpu_offload)

    def _shape(self, tensor: Tensor) -> torch.Size:
        return tensor.shape

    def _held(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach()

    def _moment(self, parameter: nn.Parameter, entry: str) -> Tensor:
        return self._library.utils.safe_get_full_optimizer_state(parameter, entry)

    def _set_moment(self, parameter: nn.Parameter, entry: str, value: Tensor) -> None:
        self._library.utils.safe_set_full_optimizer_state(parameter, value, entry)

    def _link(self) -> None:
        """Parameters learn where their moments are. The library does it too early for all groups but one."""
        for group, flat in zip(self._groups(), self._flats(), strict=True):
            for parameter in group:
                mapping: Any = getattr(parameter, "_hp_mapping", None)
                if mapping is not None and flat in self._optimizer.optimizer.state:
                    mapping.set_optim_state_fragment(flat, self._optimizer.optimizer.state[flat])


class Zero3(Zero):
    """Stage 3: every rank holds a part of each parameter, and all gather a layer when it runs."""

    def discard(self) -> None:
        if self._is_offloaded():
            self._optimizer.reset_cpu_buffers()
        else:
            self._optimizer.averaged_gradients = {}

    @contextmanager
    def whole(self, *, writes: bool = False) -> Iterator[None]:
        parameters = list(self._bare.parameters())
        with self._library.zero.GatheredParameters(parameters, modifier_rank=0 if writes else None):
            yield
        if writes:
            self._optimizer.refresh_fp32_params()

    @contextmanager
    def unhooked(self) -> Iterator[None]:
        with self._library.runtime.zero.unwrap_model_for_generation(self._engine):
            yield

    def weights(self) -> Tensors:
        with self.whole():
            return {name: tensor.cpu().clone() for name, tensor in super().weights().items()}

    def _groups(self) -> list[list[nn.Parameter]]:
        return self._optimizer.fp16_groups

    def _flats(self) -> list[Tensor]:
        return self._optimizer.fp32_partitioned_groups_flat

    def _is_offloaded(self) -> bool:
        return bool(self._optimizer.offload_optimizer)

    def _shape(self, tensor: Tensor) -> torch.Size:
        return torch.Size(getattr(tensor, "ds_shape", tensor.shape))

    def _held(self, parameter: nn.Parameter) -> Tensor:
        return getattr(parameter, "ds_tensor", parameter).detach()

    def _set_moment(self, parameter: nn.Parameter, entry: str, value: Tensor) -> None:
        """By this rank's part: the library's way for whole tensors needs sizes that ranks share evenly."""
        part = self._held(parameter).numel()
        start = part * self._engine.global_rank
        mine = value.new_zeros(part)
        own = value.flatten()[start : start + part]
        mine[: own.numel()] = own
        self._library.utils.safe_set_local_optimizer_state(parameter, mine, entry)

    def _link(self) -> None:
        """Nothing: moments are looked up when they are asked for."""
