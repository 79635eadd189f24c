"""The training loop. One step reads top to bottom in `Trainer._run_step`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from allsight.config import ConfigError
from allsight.data.loader import MetaDataloader
from allsight.engine.building import Built, build_run
from allsight.engine.checkpoint import newest_whole, prune, read_best, save_checkpoint, write_best
from allsight.engine.clipping import Clipping
from allsight.engine.config import RunConfig
from allsight.engine.distributed import join_ranks
from allsight.engine.ema import WeightAverage
from allsight.engine.evaluator import Evaluator
from allsight.engine.events import EventLog, Listener
from allsight.engine.memory import TemporalMemory
from allsight.engine.multitask import LossScales, check_losses
from allsight.engine.norms import PartNorms
from allsight.engine.parallel import SHARDED, spread, total_norm
from allsight.engine.parameter_groups import parameter_groups, parameter_table
from allsight.engine.precision import Precision
from allsight.engine.run_folder import create_run_folder, open_run_folder
from allsight.engine.starting import start_from
from allsight.engine.step_report import Parts, StepReport, StepReporter, describe_fault
from allsight.engine.streams import seeded
from allsight.engine.training_state import TrainingState
from allsight.types import Batch, CheckpointError, Costs, Step


class RunFailed(RuntimeError):
    """The run stopped itself; the message says why and what to do."""


@dataclass(frozen=True)
class StepResult:
    """What happened in one optimiser step, over all ranks.

    Args:
        number: From 0.
        loss: The number that was minimised.
        losses: Task -> loss name -> mean over the global batch, before weights.
        grad_norm: Before clipping.
        seconds: Of the whole step, waiting included.
        wait_s: Of it, waiting for data.
        samples: Task -> rows of its global batch.
        costs: Task -> what its data took to make, of this rank.
        skipped: The step was not finite and changed nothing.
        metrics: Results of an evaluation that followed the step.
    """

    number: int
    loss: float
    losses: Mapping[str, Mapping[str, float]]
    lr: float
    grad_norm: float
    seconds: float
    wait_s: float
    samples: Mapping[str, int]
    costs: Mapping[str, Costs]
    skipped: bool
    metrics: Mapping[str, float] | None = None


class Trainer:
    """Trains the model of a run jointly on its tasks. Silent; listeners hear of every event.

    ```python
    trainer = Trainer(config)
    for step in trainer:
        print(step.number, step.losses)
    print(trainer.evaluate())
    ```

    Args:
        config: The run.
        folder: Where to write events, checkpoints and predictions; None writes nothing.
        resume: Go on from the newest whole checkpoint in `folder`.
        command: What the user typed, for the record.
        device: `cpu`, `cuda`, ...; None takes a GPU if there is one.
    Raises:
        ConfigError: The settings do not fit each other, the data, or what is in `folder`.
        CheckpointError: Nothing to resume from.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        folder: Path | str | None = None,
        resume: bool = False,
        command: Sequence[str] = (),
        device: str | None = None,
    ) -> None:
        if not isinstance(config, RunConfig):
            raise ConfigError(
                f"expected a RunConfig, got {config!r}; recipes are functions: allsight.recipes.NAME()"
            )
        self.config = config
        self.folder = None if folder is None else Path(folder)
        if resume and self.folder is None:
            raise ConfigError("resume: needs the run's folder")
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        self.ranks = join_ranks(config.parallel.strategy, config.parallel.timeout_s, device)
        if self.folder is not None:
            open_run_folder(self.folder, config, resume=resume, ranks=self.ranks)
        built: Built = build_run(config, self.ranks)
        self.model, self.tasks, self.steps = built.model, built.tasks, built.schedule.steps
        notes: list[str] = []
        if config.start.weights and not resume:
            notes.append(f"starts from {start_from(self.model, config.start, tell=notes.append)}")
        self._schedule, self._plan, self._peak_lr = built.schedule, built.plan, built.peak_lr
        self._precision = Precision(config.precision, self.ranks.device)
        self._is_sharded = config.parallel.strategy in SHARDED and self.ranks.world > 1
        self._parallel = spread(
            self.model,
            config.parallel,
            self.ranks,
            layout=config.sampling.layout,
            num_tasks=len(self.tasks),
            precision=config.precision,
        )
        self._optimizer = config.optim.build().make(parameter_groups(self.model, config.optim), self._peak_lr)
        self._ema: WeightAverage | None = None
        if config.optim.ema_decay is not None:
            self._ema = WeightAverage(
                self.model, decay=config.optim.ema_decay, warmup=config.optim.ema_warmup
            )
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self._parameters = list(trained.values())
        self._clip = Clipping(config.optim, trained)
        self._norms = PartNorms(self.model)
        self._buffers = [b for b in self.model.buffers() if b.numel()]
        self._scales = LossScales(self.tasks, self.ranks)
        self._memory = TemporalMemory()
        self._ledger = built.ledger
        weights = {name: task.config.loss_weight for name, task in self.tasks.items()}
        self._reporter = StepReporter(weights, self.ranks)
        self._evaluator = Evaluator(config, self.tasks, self._precision, self.ranks, self.folder)
        self.step = 0
        self.saved_step: int | None = None
        """Steps done when the newest checkpoint was written; None while there is none."""
        self._skipped, self._skipped_in_a_row = 0, 0
        self._last_metrics: tuple[int, dict[str, float]] | None = None
        self._loader: MetaDataloader | None = None
        if self.folder is not None and not resume and self.ranks.is_first:
            table = parameter_table(self.model, config.optim)
            create_run_folder(self.folder, config, self.tasks, built.tokenizer, table.to_json(), command)
        self.ranks.wait()
        self.events = EventLog(self.folder, self.ranks.rank)
        for note in notes:
            self.events.write("note", 0, text=note)
        self._state = TrainingState(
            self.model, self._optimizer, self._ema, self._memory, self._ledger, self.ranks, built.tokenizer
        )
        if resume:
            try:
                self._resume()
            except CheckpointError:
                self.close()
                raise

    @property
    def listeners(self) -> list[Listener]:
        """Functions that hear of each event on rank 0."""
        return self.events.listeners

    def fit(self) -> dict[str, float]:
        """Train to the end; the metrics of the last evaluation."""
        for _ in self:
            pass
        return self.evaluate()

    def __iter__(self) -> Iterator[StepResult]:
        """Steps until the end of the run; leaving the loop early is fine, iterating again goes on."""
        begun = time.perf_counter()
        self.events.write("system", self.step, values=self._facts(), text=str(self.ranks.device))
        self._loader = loader = self._make_loader()
        try:
            for step in loader:
                result = self._run_step(step)
                metrics = self._after(result)
                yield result if metrics is None else replace(result, metrics=metrics)
                if self.step >= self.steps:
                    break
            self.events.write(
                "system", self.step, values={"seconds": time.perf_counter() - begun}, text="finished"
            )
        finally:
            loader.close()
            self._loader = None

    def evaluate(self) -> dict[str, float]:
        """`{"task/metric": value}` over the validation samples; judged again only if weights moved since."""
        if self._last_metrics is None or self._last_metrics[0] != self.step:
            self._evaluate()
        assert self._last_metrics is not None
        return self._last_metrics[1]

    def save(self) -> bool:
        """Write a checkpoint now. What cannot be written raises no error but an alarm: training goes on.

        Returns:
            Whether it was written, the same on all ranks.
        """
        if self.folder is None:
            return False
        begun = time.perf_counter()
        self.ranks.share_first(self._buffers)
        folder = self.folder / "checkpoints"
        try:
            saved = save_checkpoint(folder, self.step, self._state.tensors(self.step), self.ranks)
            self.saved_step = self.step
            if self.ranks.is_first:
                best = read_best(folder)
                prune(folder, keep_last=self.config.checkpoint.keep_last, keep={best[0]} if best else set())
        except OSError as error:
            self.events.write(
                "alarm",
                self.step,
                text=f"step {self.step}: checkpoint not written: {error}; older ones stay, training goes on",
            )
            return self.saved_step == self.step
        size = sum(file.stat().st_size for file in saved.path.iterdir())
        self.events.write(
            "checkpoint",
            self.step,
            values={"seconds": time.perf_counter() - begun, "bytes": size},
            text=str(saved.path.relative_to(self.folder)),
        )
        return True

    def close(self) -> None:
        """End worker processes and close files. One that was iterated to its end has only files open."""
        if self._loader is not None:
            self._loader.close()
        self.events.close()

    def _run_step(self, step: Step) -> StepResult:
        begun = time.perf_counter() - step.wait_s
        lr = self._peak_lr * self._schedule.factor(step.number)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self._optimizer.zero_grad(set_to_none=True)
        buffers = [buffer.clone() for buffer in self._buffers]
        totals = self._scales.global_counts(step)
        self._parallel.begin(step)

        batches = [batch for name in step.tasks for batch in step.batches[name]]
        parts: Parts = {}
        states, faults = [], []
        for position, batch in enumerate(batches):
            with self._parallel.reducing(is_last=position == len(batches) - 1):
                losses, state = self._forward(step, batch)
                shares = self._scales.shares(step, batch, list(losses), totals)
                loss = torch.stack([losses[name] * shares[name] for name in losses]).sum()
                (loss * self._scales.weight(step, batch.task) * self._parallel.loss_factor).backward()
            states.append(state)
            for name, value in losses.items():
                key = (batch.task, name)
                parts[key] = parts.get(key, value.new_zeros(())) + value.detach() * shares[name]
            faults.append((batch, loss.detach()))
        self._parallel.finish()

        norm = total_norm([p.grad for p in self._parameters if p.grad is not None])
        report = self._reporter.report(step, parts, norm)
        if report.is_finite:
            looks = _is_due(step.number, self.config.train.norms_every)
            looks = looks and (self.ranks.is_first or self._is_sharded)
            if looks:
                self._norms.before()
            self._clip(norm)
            self._optimizer.step()
            if looks:
                values = self._norms.after()
                if self.ranks.is_first:
                    self.events.write("norms", step.number, values=values)
            self.model.after_step(step.number)
            if self._ema is not None:
                self._ema.update(step.number)
            for batch, state in zip(batches, states, strict=True):
                self._memory.keep(batch, state)
            self._skipped_in_a_row = 0
        else:
            if buffers:
                torch._foreach_copy_(self._buffers, buffers)
            self._memory.forget(batches)
            self._skipped, self._skipped_in_a_row = self._skipped + 1, self._skipped_in_a_row + 1
            self._name_culprits(step, faults, report)
        self.step = step.number + 1
        self._ledger.see(step.sizes)
        if report.num_corrupt:
            self._note_corrupt(step)
        return StepResult(
            number=step.number,
            loss=report.loss,
            losses=report.losses,
            lr=lr,
            grad_norm=report.grad_norm,
            seconds=time.perf_counter() - begun,
            wait_s=step.wait_s,
            samples={name: step.sizes[name] for name in step.tasks},
            costs={name: sum((b.costs for b in step.batches[name]), Costs()) for name in step.tasks},
            skipped=not report.is_finite,
        )

    def _make_loader(self) -> MetaDataloader:
        return MetaDataloader(
            self._plan,
            self.step,
            num_workers=self.config.data.workers,
            prefetch=self.config.data.prefetch,
            device=self.ranks.device,
        )

    def _forward(self, step: Step, batch: Batch) -> tuple[Mapping[str, Tensor], dict[str, Tensor] | None]:
        """Losses and new temporal state of one micro-batch."""
        task = self.tasks[batch.task]
        batch, state = self._memory.recall(batch)
        # The first slot is in the seed, else all ranks would draw the same dropout mask.
        place = ("layers", step.number, batch.task, int(batch.slots[0]))
        with seeded(self.config.seed, *place, device=self.ranks.device), self._precision.forward():
            outputs, state = self._parallel.forward(batch, state)
        return check_losses(task.loss(self._precision.widen(outputs), batch), task), state

    def _after(self, result: StepResult) -> dict[str, float] | None:
        """Events, evaluation and checkpoint that follow a step; metrics if it was evaluated."""
        self._note_step(result)
        if self._skipped_in_a_row >= self.config.train.max_skipped_in_a_row:
            self._fail(
                f"{self._skipped_in_a_row} steps in a row were not finite; lower optim.lr or set "
                f"optim.clip_norm (or raise train.max_skipped_in_a_row); the last checkpoint is untouched"
            )
        is_last = self.step >= self.steps
        metrics = None
        if is_last or _is_due(self.step, self.config.eval.every_steps):
            metrics = self.evaluate()
            self._keep_best(metrics)
        elif _is_due(self.step, self.config.checkpoint.every_steps):
            self.save()
        return metrics

    def _evaluate(self) -> None:
        use_ema = self._ema is not None and self.config.eval.weights != "raw"
        self.ranks.share_first(self._buffers)
        workforce = self._loader.workforce if self._loader is not None else None
        averaged = self._ema.applied() if use_ema and self._ema is not None else nullcontext()
        with averaged, self._parallel.evaluating():
            scores = self._evaluator.evaluate(self.model, self.step, workforce=workforce)
        metrics: dict[str, float] = {}
        for name, score in scores.items():
            metrics |= {f"{name}/{metric}": value for metric, value in score.values.items()}
            extra = {"seconds": score.seconds, "samples": score.samples, "corrupt": len(score.corrupt)}
            text = "ema" if use_ema else "raw"
            self.events.write("eval", self.step, task=name, values={**score.values, **extra}, text=text)
            if score.problem:
                self.events.write(
                    "alarm", self.step, task=name, text=f"pictures for the report not kept: {score.problem}"
                )
            for bad in score.corrupt:
                self.events.write(
                    "data", self.step, task=name, text=f"{bad.id}: {bad.reason}; left out of the score"
                )
            if score.excess:
                self._fail(score.excess)
        metrics["main"] = self._main_metric(metrics)
        self.events.write("eval", self.step, values={"main": metrics["main"]})
        self._last_metrics = (self.step, metrics)

    def _main_metric(self, metrics: Mapping[str, float]) -> float:
        """Mean of the tasks' main metrics."""
        values = [metrics[f"{name}/{task.main_metric()}"] for name, task in self.tasks.items()]
        return sum(values) / len(values)

    def _keep_best(self, metrics: Mapping[str, float]) -> None:
        """Save after an evaluation, and remember it if it is the best so far."""
        if self.folder is None:
            return
        folder, best, is_best = self.folder / "checkpoints", None, False
        if self.ranks.is_first:
            best = read_best(folder)
            # A value that is not a number never counts as best.
            is_best = metrics["main"] > (best[1] if best else float("-inf"))
            if is_best:
                # Before the checkpoint: a kill between the two is made good when the step is run again.
                self._note_best(folder, self.step, metrics["main"])
        if not self.save() and is_best:
            self._note_best(folder, *(best or (None, 0.0)))

    def _note_best(self, folder: Path, step: int | None, value: float) -> None:
        """Write down which checkpoint is best; None: none is any more."""
        try:
            if step is None:
                (folder / "best.json").unlink(missing_ok=True)
            else:
                write_best(folder, step, "main", value)
        except OSError as error:
            self.events.write(
                "alarm", self.step, text=f"step {self.step}: best checkpoint not noted: {error}"
            )

    def _resume(self) -> None:
        assert self.folder is not None
        notes: list[str] = []
        found = newest_whole(self.folder / "checkpoints", tell=notes.append) if self.ranks.is_first else None
        notes, path = self.ranks.gather((notes, found.path if found else None))[0]
        for note in notes:
            self.events.write("alarm", 0, text=note)
        if path is None:
            reason = f" ({notes[0]})" if notes else ""
            raise CheckpointError(
                f"{self.folder}: no whole checkpoint to resume from{reason}; start a new run"
            )
        self.step = self.saved_step = self._state.restore(path)
        self.events.write(
            "restart", self.step, values={"from_step": self.step}, text=f"resumed from {path.name}"
        )

    def _note_step(self, result: StepResult) -> None:
        self.events.write(
            "train",
            result.number,
            values={
                "loss": result.loss,
                "lr": result.lr,
                "grad_norm": result.grad_norm,
                "seconds": result.seconds,
                "wait_s": result.wait_s,
                "samples": sum(result.samples.values()),
            },
        )
        for task, losses in result.losses.items():
            values = {"loss": sum(losses.values()), **losses, "samples": result.samples[task]}
            self.events.write("train", result.number, task=task, values=values)
        for task, costs in result.costs.items():
            if costs.samples:
                self.events.write("data", result.number, task=task, values=asdict(costs))
        news = [] if self._loader is None else self._loader.workforce.news()
        for text in news:
            self.events.write("alarm", result.number, text=text)

    def _name_culprits(self, step: Step, faults: Sequence[tuple[Batch, Tensor]], report: StepReport) -> None:
        """Say which samples were in the micro-batches whose loss was not finite."""
        own = [batch.ids for batch, loss in faults if not bool(loss.isfinite())]
        ids = [name for theirs in self.ranks.gather(own) for names in theirs for name in names]
        shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        samples = f" (samples {shown})" if ids else ""
        self.events.write(
            "alarm",
            step.number,
            values={"skipped": self._skipped},
            text=f"step {step.number}: {describe_fault(report)}{samples}; step skipped, nothing was changed",
        )

    def _note_corrupt(self, step: Step) -> None:
        own = [bad for name in step.tasks for batch in step.batches[name] for bad in batch.corrupt]
        for bad in (bad for theirs in self.ranks.gather(own) for bad in theirs):
            is_new = self._ledger.add(bad)
            if is_new:
                self.events.write(
                    "data",
                    step.number,
                    task=bad.task,
                    values={"corrupt": self._ledger.count(bad.task)},
                    text=f"{bad.id}: {bad.reason}; replaced by {bad.replacement}",
                )
        sizes = {name: task.size for name, task in self._plan.tasks.items()}
        excess = self._ledger.excess(sizes, self.config.data.max_corrupt_fraction)
        if excess is not None:
            self._fail(excess)

    def _fail(self, text: str) -> None:
        self.events.write("alarm", self.step, text=f"step {self.step}: {text}")
        raise RunFailed(text)

    def _facts(self) -> dict[str, float | int]:
        return {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "steps": self.steps,
            "world_size": self.ranks.world,
            "threads": torch.get_num_threads(),
        }


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
