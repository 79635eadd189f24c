"""The training loop. One step reads top to bottom in `Trainer._run_step`."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from allsight.config import ConfigError
from allsight.config import replace as replace_settings
from allsight.data.loader import MetaDataloader
from allsight.engine.agreement import check_same_data, check_same_run, together
from allsight.engine.building import Built, build_run, rebuilt_plan
from allsight.engine.config import RunConfig
from allsight.engine.diary import Diary, Passes, StepResult
from allsight.engine.distributed import join_ranks
from allsight.engine.evaluator import Evaluator
from allsight.engine.events import EventLog, Listener
from allsight.engine.looking import Looks
from allsight.engine.memory import TemporalMemory
from allsight.engine.multitask import LossScales, check_losses
from allsight.engine.out_of_memory import StepTooLarge, is_out_of_memory, lack_of_memory
from allsight.engine.parallel import spread
from allsight.engine.parameter_groups import parameter_table
from allsight.engine.precision import Precision
from allsight.engine.profiler import check_profile
from allsight.engine.profiler.meter import StepMeter
from allsight.engine.resuming import Resume, find_beginning
from allsight.engine.run_folder import create_run_folder, hold_run_folder, open_run_folder
from allsight.engine.saving import Saving
from allsight.engine.starting import start_from
from allsight.engine.step_report import StepReporter
from allsight.engine.streams import seeded
from allsight.engine.training_state import TrainingState
from allsight.engine.updating import Updater
from allsight.types import Batch, CheckpointError, Costs, Step


class RunFailed(RuntimeError):
    """The run stopped itself; the message says why and what to do."""


class RunStopped(RuntimeError):
    """The run was asked to stop, and has saved all it had done."""


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
        resume: Go on from the newest whole checkpoint in `folder`; `if saved`: begin if there is none.
        command: What the user typed, for the record.
        device: `cpu`, `cuda`, ...; None takes a GPU if there is one.
    Raises:
        ConfigError: The settings do not fit each other, the data, or what is in `folder`.
        CheckpointError: Nothing to resume from.
        RanksMissing: Not all ranks came in time.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        folder: Path | str | None = None,
        resume: Resume = False,
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
        check_same_run(config, self.ranks, resume=resume)
        if self.folder is not None:
            open_run_folder(self.folder, config, resume=resume, ranks=self.ranks)
        beginning = find_beginning(self.folder, resume, self.ranks)
        is_new = beginning.path is None
        with together(self.ranks):
            built: Built = build_run(config, self.ranks)
        check_same_data(built.tasks, built.plan, self.ranks)
        self.model, self.tasks, self.steps = built.model, built.tasks, built.schedule.steps
        self.model.expect_steps(self.steps)
        notes: list[str] = []
        with together(self.ranks):
            check_profile(config.profile, self.folder, self.steps)
            if config.start.weights and is_new:
                notes.append(f"starts from {start_from(self.model, config.start, tell=notes.append)}")
        self._plan = built.plan
        self._precision = Precision(config.precision, self.ranks.device)
        self._num_parameters = sum(p.numel() for p in self.model.parameters())
        with together(self.ranks):
            self._parallel = spread(self.model, config, self.ranks)
            looks = self.ranks.is_first or self._parallel.is_sharded
            self._updater = Updater(self._parallel, config, built.schedule, built.peak_lr, looks=looks)
        self._buffers = [b for b in self.model.buffers() if b.numel()]
        self._scales = LossScales(self.tasks, self.ranks)
        self._memory = TemporalMemory()
        self._ledger = built.ledger
        weights = {name: task.config.loss_weight for name, task in self.tasks.items()}
        self._reporter = StepReporter(weights, self.ranks)
        self._evaluator = Evaluator(config, self.tasks, self._precision, self.ranks, self.folder)
        self._looks = Looks(config, self.tasks, built.tokenizer, self.ranks)
        self.step = 0
        self._skipped, self._skipped_in_a_row = 0, 0
        self._stop_reason, self._stops = "", False
        self._last_metrics: tuple[int, dict[str, float]] | None = None
        self._loader: MetaDataloader | None = None
        self._hold = hold_run_folder(self.folder, resume=resume, ranks=self.ranks)
        if self.folder is not None and is_new and self.ranks.is_first:
            table = parameter_table(self.model, config.optim)
            create_run_folder(self.folder, config, self.tasks, built.tokenizer, table.to_json(), command)
        self.ranks.wait()
        self.events = EventLog(self.folder, self.ranks.rank)
        self._diary = Diary(self.events, self.ranks, self._ledger)
        self._set_sizes = {name: task.size for name, task in self._plan.tasks.items()}
        for note in notes:
            self.events.write("note", 0, text=note)
        self._state = TrainingState(
            self._parallel,
            self._updater.ema,
            self._memory,
            self._ledger,
            self.ranks,
            built.tokenizer,
            self._updater.loss_scale,
        )
        checkpoints = None if self.folder is None else self.folder / "checkpoints"
        self._saving = Saving(checkpoints, config.checkpoint, self.ranks, self.events)
        self._meter = StepMeter(config, self.tasks, self.folder, self.ranks, self.events)
        for note in beginning.notes:
            self.events.write("alarm", 0, text=note)
        if beginning.path is not None:
            try:
                self._go_on(beginning.path)
            except CheckpointError:
                self.close()
                raise

    @property
    def listeners(self) -> list[Listener]:
        """Functions that hear of each event on rank 0."""
        return self.events.listeners

    @property
    def saved_step(self) -> int | None:
        """Steps done when the newest checkpoint was written; None while there is none."""
        return self._saving.saved_step

    def fit(self) -> dict[str, float]:
        """Train to the end; the metrics of the last evaluation."""
        for _ in self:
            pass
        return self.evaluate()

    def __iter__(self) -> Iterator[StepResult]:
        """Steps until the end of the run; leaving the loop early is fine, iterating again goes on."""
        with self.ranks.noticing_loss():
            yield from self._steps()

    def evaluate(self) -> dict[str, float]:
        """`{"task/metric": value}` over the validation samples; judged again only if weights moved since."""
        if self._last_metrics is None or self._last_metrics[0] != self.step:
            with self.ranks.noticing_loss():
                self._evaluate()
        assert self._last_metrics is not None
        return self._last_metrics[1]

    def held_bytes(self) -> dict[str, int]:
        """What this rank holds between steps; see `TrainingState.held_bytes`."""
        return self._state.held_bytes()

    def save(self) -> bool:
        """Write a checkpoint now. What cannot be written raises no error but an alarm: training goes on.

        Returns:
            Whether it was written, the same on all ranks.
        """
        self._save()
        self._saving.finish()
        return self.folder is not None and self.saved_step == self.step

    def ask_to_stop(self, reason: str) -> None:
        """Stop after the step that is being run: save, and raise `RunStopped` on all ranks.

        One rank is enough. May be called from a signal handler or another thread.

        Args:
            reason: For the diary, such as `signal SIGTERM`.
        """
        self._stop_reason = reason

    def close(self) -> None:
        """End worker processes and close files. One that was iterated to its end has only files open."""
        if self._loader is not None:
            self._loader.close()
        self._saving.close()
        self.events.close()
        self._hold.close()

    def _steps(self) -> Iterator[StepResult]:
        begun = time.perf_counter()
        self.events.write("system", self.step, values=self._facts(), text=str(self.ranks.device))
        steps: Iterator[Step] | None = None
        try:
            if self.step == 0:
                with self._parallel.evaluating():
                    self._look("at the start")
            while self.step < self.steps:
                self._meter.before(self.step)
                if steps is None:
                    self._loader = self._make_loader()
                    steps = iter(self._loader)
                with self._meter.phase("data"):
                    step = next(steps)
                result = self._try_step(step)
                if result is None:
                    steps = None
                    continue
                result = self._meter.after(result, step)
                metrics = self._after(result)
                yield result if metrics is None else replace(result, metrics=metrics)
            self.events.write(
                "system", self.step, values={"seconds": time.perf_counter() - begun}, text="finished"
            )
        finally:
            self._meter.close()
            if self._loader is not None:
                self._loader.close()
                self._loader = None
            self._saving.finish()

    def _try_step(self, step: Step) -> StepResult | None:
        """What came of the step; None: it did not fit, and its micro-batches are halved now."""
        try:
            return self._run_step(step)
        except StepTooLarge as error:
            text, here = str(error), error.here
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._fail(self._lack(step))
        # Out of the handler, which holds the activations of the failed pass by its traceback.
        accumulate = 2 * self.config.train.accumulate
        try:
            config = replace_settings(self.config, {"train.accumulate": accumulate})
            self._plan = rebuilt_plan(config, self.tasks, self.ranks, self.steps)
        except ConfigError as error:
            text = self._lack(step) if here else text
            raise RunFailed(f"{text} (micro-batches cannot be halved: {error})") from None
        self.config = config
        self._evaluator = Evaluator(config, self.tasks, self._precision, self.ranks, self.folder)
        assert self._loader is not None
        self._loader.close()
        self._updater.forget_gradients()
        gc.collect()
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()
        self.events.write(
            "note",
            step.number,
            values={"accumulate": accumulate},
            text=f"{text}: micro-batches halved, the step is run again; the batch stays",
        )
        return None

    def _run_step(self, step: Step) -> StepResult:
        begun = time.perf_counter() - step.wait_s
        lr = self._updater.begin(step.number)
        buffers = [buffer.clone() for buffer in self._buffers]
        with self._meter.phase("exchange"):
            totals = self._scales.global_counts(step)
            self._parallel.begin(step)

        problem, passes = "", None
        try:
            passes = self._run_passes(step, totals)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            problem = self._lack(step, advises=not self.config.train.recover_memory)
        if self.config.train.recover_memory:
            failed = self.ranks.sum(torch.tensor(float(passes is None)))
            if failed:
                if buffers:
                    torch._foreach_copy_(self._buffers, buffers)
                text = problem or f"out of memory in step {step.number} on another rank"
                raise StepTooLarge(text, here=passes is None)
        if passes is None:
            self._fail(problem)
        with self._meter.phase("exchange"):
            self._parallel.finish()

        norm = self._updater.gradient_norm()
        with self._meter.phase("exchange"):
            report = self._reporter.report(step, passes.parts, norm, stops=bool(self._stop_reason))
        self._stops = report.stops
        if report.is_finite:
            with self._meter.phase("optimiser"):
                norms = self._updater.update(step.number, norm)
                self._diary.norms(step.number, norms)
                self._diary.monitors(self.model, step.number)
                self._updater.average(step.number)
            for batch, state in zip(passes.batches, passes.states, strict=True):
                self._memory.keep(batch, state)
            self._updater.loss_scale.update(is_finite=True)
            self._skipped_in_a_row = 0
        else:
            if buffers:
                torch._foreach_copy_(self._buffers, buffers)
            self._memory.forget(passes.batches)
            self.model.after_skip()
            if report.losses_are_finite and self._updater.loss_scale.update(is_finite=False):
                text = f"gradients overflowed float16: step skipped, {self._updater.loss_scale}"
                self.events.write("note", step.number, text=text)
            else:
                self._skipped, self._skipped_in_a_row = self._skipped + 1, self._skipped_in_a_row + 1
                self._diary.skipped(step, passes, report, self._skipped)
        self.step = step.number + 1
        self._ledger.see(step.sizes)
        if report.num_corrupt:
            self._diary.corrupt(step)
            excess = self._ledger.excess(self._set_sizes, self.config.data.max_corrupt_fraction)
            if excess is not None:
                self._fail(excess)
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

    def _run_passes(self, step: Step, totals: Mapping[tuple[str, str], float]) -> Passes:
        """Forward and backward of each micro-batch; gradients add up."""
        passes = Passes([batch for name in step.tasks for batch in step.batches[name]])
        for position, batch in enumerate(passes.batches):
            with self._parallel.reducing(is_last=position == len(passes.batches) - 1):
                with self._meter.phase("forward"):
                    losses, state = self._forward(step, batch)
                    shares = self._scales.shares(step, batch, list(losses), totals)
                    loss = torch.stack([losses[name] * shares[name] for name in losses]).sum()
                weight = self._scales.weight(step, batch.task) * self._parallel.loss_factor
                with self._meter.phase("backward"):
                    self._parallel.backward(loss * (weight * self._updater.loss_scale.value))
            passes.states.append(state)
            for name, value in losses.items():
                key = (batch.task, name)
                passes.parts[key] = passes.parts.get(key, value.new_zeros(())) + value.detach() * shares[name]
            passes.losses.append(loss.detach())
        return passes

    def _lack(self, step: Step, *, advises: bool = True) -> str:
        """What to say of a lack of memory in the phase at hand."""
        batches = [batch for name in step.tasks for batch in step.batches[name]]
        run = self.config, self.tasks, self.ranks
        return lack_of_memory(self._meter.stage, step.number, batches, *run, advises=advises)

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
        self._saving.poll()
        self._diary.step(result, [] if self._loader is None else self._loader.workforce.news())
        if self._skipped_in_a_row >= self.config.train.max_skipped_in_a_row:
            self._fail(
                f"{self._skipped_in_a_row} steps in a row were not finite; lower optim.lr or set "
                f"optim.clip_norm (or raise train.max_skipped_in_a_row); the last checkpoint is untouched"
            )
        is_last = self.step >= self.steps
        metrics = None
        if is_last or _is_due(self.step, self.config.eval.every_steps):
            metrics = self.evaluate()
            self._save(metrics["main"])
        elif _is_due(self.step, self.config.checkpoint.every_steps):
            self._save()
        if self._stops and not is_last:
            self._stop()
        return metrics

    def _stop(self) -> None:
        """Save, and leave the loop."""
        self._saving.finish()
        if self.saved_step != self.step:
            self.save()
        reason = next(filter(None, self.ranks.gather(self._stop_reason)), "")
        if self.folder is None or self.saved_step == self.step:
            text = f"stopped at step {self.step} by {reason}" + (", saved" if self.folder else "")
            self.events.write("note", self.step, text=text)
            raise RunStopped(text)
        self._fail(f"was to stop by {reason}, but no checkpoint could be written")

    def _evaluate(self) -> None:
        ema = self._updater.ema if self.config.eval.weights != "raw" else None
        weights = "raw" if ema is None else "ema"
        self.ranks.share_first(self._buffers)
        workforce = self._loader.workforce if self._loader is not None else None
        with nullcontext() if ema is None else ema.applied(), self._parallel.evaluating():
            try:
                scores = self._evaluator.evaluate(self.model, self.step, workforce=workforce)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._fail(lack_of_memory("evaluation", self.step, [], self.config, self.tasks, self.ranks))
            self._look(weights)
        metrics = self._diary.evaluated(self.step, scores, text=weights)
        excess = next((score.excess for score in scores.values() if score.excess), "")
        if excess:
            self._fail(excess)
        metrics["main"] = self._main_metric(metrics)
        self.events.write("eval", self.step, values={"main": metrics["main"]})
        self._last_metrics = (self.step, metrics)

    def _look(self, weights: str) -> None:
        """Probe the features, if the run asks for it."""
        for score, what in self._looks(self.model):
            self._diary.probed(self.step, score, f"{what}, weights {weights}")

    def _main_metric(self, metrics: Mapping[str, float]) -> float:
        """Mean of the tasks' main metrics."""
        values = [metrics[f"{name}/{task.main_metric()}"] for name, task in self.tasks.items()]
        return sum(values) / len(values)

    def _save(self, score: float | None = None) -> None:
        """Begin to write a checkpoint; `score` of these weights, where they were judged just now."""
        if self.folder is not None:
            self.ranks.share_first(self._buffers)
            self._saving.save(self.step, self._state.tensors(self.step), score=score)

    def _go_on(self, path: Path) -> None:
        self.step = self._saving.saved_step = self._state.restore(path)
        self.events.write(
            "restart", self.step, values={"from_step": self.step}, text=f"resumed from {path.name}"
        )

    def _fail(self, text: str) -> NoReturn:
        self.events.write("alarm", self.step, text=f"step {self.step}: {text}")
        raise RunFailed(text)

    def _facts(self) -> dict[str, float | int]:
        return {
            "parameters": self._num_parameters,
            "steps": self.steps,
            "world_size": self.ranks.world,
            "threads": torch.get_num_threads(),
        }


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
