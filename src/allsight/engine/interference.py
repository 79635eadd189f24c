"""Do tasks help or hurt each other? Measured on held-out batches; the model is left as it was, bit for bit.

I[i][j] = E over batches of task i of (what a step along task j's gradient does to the loss of i) / (what a
step of the same length along i's own gradient does). To first order it is a cosine: 1 for the task itself, 0
for one that has nothing to do with it, below 0 for one that hurts.

Source: Uni-Perceiver-MoE, arXiv:2206.04674 (the form is a reconstruction).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from allsight.engine.events import EventLog
from allsight.engine.streams import seeded
from allsight.models.base import TaskModel

Loss = Callable[[], Tensor]
"""Loss of one held-out batch with the model as it stands."""


@dataclass(frozen=True)
class Interference:
    """What tasks do to each other.

    Args:
        tasks: Rows and columns of the tables, in order.
        whole: I[i][j] for a step of all parameters: effect on i of a step along j.
        parts: Part of the model -> cosine between the tasks' mean gradients in it; nan where a task has none.
    """

    tasks: tuple[str, ...]
    whole: tuple[tuple[float, ...], ...]
    parts: Mapping[str, tuple[tuple[float, ...], ...]]

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {"tasks": self.tasks, "whole": self.whole, "parts": dict(self.parts)}

    def values(self) -> dict[str, float]:
        """For events, a number a pair: `whole/I<J`, what a step along J does to I, and cosines `PART/I<J`."""
        return {
            f"{part}/{i}<{j}": value
            for part, table in {"whole": self.whole, **self.parts}.items()
            for i, row in zip(self.tasks, table, strict=True)
            for j, value in zip(self.tasks, row, strict=True)
        }

    def note(self, folder: Path, step: int, text: str = "") -> None:
        """Write it into the diary of a run, where its report finds it."""
        events = EventLog(folder, 0)
        events.write("interference", step, values=self.values(), text=text)
        events.close()


def measure_interference(
    model: nn.Module,
    losses: Mapping[str, Sequence[Loss]],
    *,
    step: float = 1e-3,
    part_of: Callable[[str], str] | None = None,
    seed: int = 0,
) -> Interference:
    """Measure the influence of each task on each other.

    Stochastic layers are off: the model is put into evaluation mode meanwhile, a `TaskModel` into quiet
    training mode, which its losses need.

    Args:
        model: What the tasks share.
        losses: Task -> losses of held-out batches; at least one each.
        step: Length of a step in units of the parameters' norm.
        part_of: Name of a parameter -> the part it is counted in; None: as a `TaskModel` says, else its first
            levels.
        seed: Of whatever losses draw all the same.
    Returns:
        The tables. Parameters, buffers, gradients and the mode are as before, bit for bit.
    Raises:
        ValueError: A task without batches, or one whose gradient is zero.
    """
    empty = [name for name, some in losses.items() if not some]
    if empty or not losses:
        raise ValueError(f"interference: no batches for {', '.join(empty) or 'any task'}")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters = list(trained.values())
    tasks = tuple(losses)
    with _untouched(model), seeded(seed, "interference"):
        length = step * float(torch.stack([p.detach().norm() for p in parameters]).norm())
        gradients = {name: [_gradient(loss, parameters) for loss in some] for name, some in losses.items()}
        before = {name: [_value(loss) for loss in some] for name, some in losses.items()}
        change: dict[str, dict[str, list[float]]] = {i: {} for i in tasks}
        for j in tasks:
            totals = {i: [0.0] * len(losses[i]) for i in tasks}
            for gradient in gradients[j]:
                norm = float(torch.stack([g.norm() for g in gradient]).norm())
                if norm == 0:
                    raise ValueError(f"interference: the gradient of task '{j}' is zero")
                with _moved(parameters, gradient, -length / norm):
                    for i in tasks:
                        for number, loss in enumerate(losses[i]):
                            totals[i][number] += (before[i][number] - _value(loss)) / len(gradients[j])
            for i in tasks:
                change[i][j] = totals[i]
        whole = tuple(
            tuple(_mean([a / b for a, b in zip(change[i][j], change[i][i], strict=True)]) for j in tasks)
            for i in tasks
        )
    if part_of is None:
        part_of = model.part_of if isinstance(model, TaskModel) else _first_levels
    return Interference(tasks, whole, _cosines(list(trained), gradients, part_of))


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Parameters, buffers, gradients and the mode of every module are put back."""
    kept = [(t, t.detach().clone()) for t in (*model.parameters(), *model.buffers())]
    gradients = [(p, p.grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    if isinstance(model, TaskModel):
        model.train_quietly()
    else:
        model.eval()
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in kept:
                tensor.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, mode in modes:
            module.training = mode


@contextmanager
def _moved(parameters: Sequence[Tensor], direction: Sequence[Tensor], factor: float) -> Iterator[None]:
    kept = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, d in zip(parameters, direction, strict=True):
            p.add_(d, alpha=factor)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, kept, strict=True):
                p.copy_(value)


def _gradient(loss: Loss, parameters: Sequence[Tensor]) -> list[Tensor]:
    with torch.enable_grad():
        found = torch.autograd.grad(loss(), list(parameters), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@torch.no_grad()
def _value(loss: Loss) -> float:
    return float(loss().double())


def _cosines(
    names: Sequence[str], gradients: Mapping[str, list[list[Tensor]]], part_of: Callable[[str], str]
) -> dict[str, tuple[tuple[float, ...], ...]]:
    means = {
        task: [torch.stack(same).mean(0) for same in zip(*some, strict=True)]
        for task, some in gradients.items()
    }
    members: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        members.setdefault(part_of(name), []).append(number)
    tables = {}
    for part, numbers in members.items():
        flat = {task: torch.cat([mean[n].flatten() for n in numbers]) for task, mean in means.items()}
        # 0 / 0 is nan: a task that does not touch this part.
        tables[part] = tuple(
            tuple(float(a @ b / (a.norm() * b.norm())) for b in flat.values()) for a in flat.values()
        )
    return tables


def _first_levels(name: str) -> str:
    return ".".join(name.split(".")[:-1][:5])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
