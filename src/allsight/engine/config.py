"""The configuration of a run: everything that decides what a training run does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from allsight.config import Config, ConfigError, Mixture
from allsight.engine.optim import AdamW, Optimiser
from allsight.engine.parallel.config import ParallelConfig
from allsight.engine.precision import Kind
from allsight.engine.schedule import Cosine, Schedule
from allsight.models.base import Model
from allsight.tasks.base import Task

FORMAT = 1
"""Version of the run folder that this code writes; newer ones are refused."""


class DataConfig(Config):
    """Where data lies and how it is fed."""

    root: str = ""
    """Folder that relative `data` strings start from; empty takes the environment variable ALLSIGHT_DATA."""
    workers: int = Field(default=0, ge=0)
    """Processes that read and transform, per rank; 0 works inside the training process."""
    prefetch: int = Field(default=2, ge=1)
    """Steps that each worker prepares ahead."""
    max_corrupt_fraction: float = Field(default=0.01, ge=0, le=1)
    """Share of unusable samples, of those seen so far, above which the run stops."""

    def folder(self) -> Path | None:
        """The root as a path; None when neither the setting nor ALLSIGHT_DATA is there."""
        text = self.root or os.environ.get("ALLSIGHT_DATA", "")
        return Path(text).expanduser() if text else None


class SamplingConfig(Config):
    """Which task's samples each step holds."""

    layout: Literal["one_task", "mixed_batch", "mixed_lanes"] = "one_task"
    """All lanes share one draw, or each lane draws for itself and its rows go to all ranks or stay on one."""
    lanes: int = Field(default=1, ge=1)
    """Independent draws per step in the mixed layouts; the number of ranks divides it."""
    proportional: float | None = Field(default=None, ge=0, le=1)
    """If set, shares are (samples / batch_size) ** proportional, and the tasks' `share` is multiplied in."""


class TrainConfig(Config):
    """How a step is run."""

    accumulate: int = Field(default=1, ge=1)
    """Micro-batches that a rank splits its part of a step into."""
    recover_memory: bool = False
    """When a step does not fit into memory, halve the micro-batches (train.accumulate doubles, the batch
    stays) and run it again. Not with fsdp and hsdp; with ddp, gradients are then sent after the backward
    pass, not during it."""
    max_skipped_in_a_row: int = Field(default=20, ge=1)
    """Steps with a non-finite loss or gradient, one after the other, after which the run stops."""
    norms_every: int | None = Field(default=100, ge=1)
    """Note the norms of gradients, updates and weights of each part of the model each so many steps, from the
    first on; in those steps the weights are there twice. None notes none."""
    threads: int | None = Field(default=None, ge=1)
    """PyTorch threads per process; None leaves PyTorch's choice."""
    deterministic: bool = True
    """Refuse operators whose result depends on scheduling, where PyTorch knows them (GPU)."""


ProbeKind = Literal["knn", "linear", "zero_shot"]


class ProbeConfig(Config):
    """A look at the features while a run goes on, at its start and with each evaluation; see
    `engine.probing`."""

    kind: ProbeKind = "knn"
    """The vote of nearest neighbours, a linear layer, or names of classes as captions."""
    data: str = ""
    """A set of pictures with classes, such as imagefolder:pets; empty: those of the run's own tasks."""
    max_train: int | None = Field(default=5000, ge=1)
    """Training pictures that are used, evenly spread; None takes all."""
    max_val: int | None = Field(default=None, ge=1)
    """Validation pictures, likewise."""


class EvalConfig(Config):
    """When and with which weights the validation samples are judged."""

    every_steps: int | None = Field(default=None, ge=1)
    """Evaluate each so many steps; None does so only after the last step."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """`auto` takes the averaged weights when there are some."""
    batch_size: int | None = Field(default=None, ge=1)
    """Samples per evaluation batch; None takes the task's share of one training micro-batch."""
    max_samples: int | None = Field(default=None, ge=1)
    """Judge only this many validation samples of each task (evenly spread); None takes all."""
    probes: tuple[ProbeConfig, ...] = ()
    """Looks at the backbone's features before the first step and at each evaluation."""
    pictures: int = Field(default=12, ge=0)
    """Validation samples per task that are kept with truth and answer for the report."""


class CheckpointConfig(Config):
    """When the training state is written, and how many are kept."""

    every_steps: int | None = Field(default=None, ge=1)
    """Save each so many steps; None saves at evaluations and at the end."""
    keep_last: int = Field(default=2, ge=1)
    """Newest checkpoints that stay, beside the best one."""
    keep_every: int | None = Field(default=None, ge=1)
    """Checkpoints of steps that are a multiple of this stay for good."""
    asynchronous: bool = True
    """Training goes on while a copy of its state, in the memory of the CPU, is written."""
    copy_to: str = ""
    """Folder anywhere that fsspec reaches, such as s3://bucket/run, to which each checkpoint is copied when
    it is whole; a store that fails costs an alarm. Empty: nowhere."""


class ProfileConfig(Config):
    """A close look at some steps, written to `profile/` of the run folder."""

    steps: str = ""
    """`20:25` looks at steps 20 to 24; empty: at none. They take longer; results stay the same."""

    @field_validator("steps")
    @classmethod
    def _is_a_range(cls, steps: str) -> str:
        first, colon, stop = steps.partition(":")
        if steps and not (colon and first.isdecimal() and stop.isdecimal() and int(first) < int(stop)):
            raise ValueError(f"expected FIRST:STOP, such as 20:25 for steps 20 to 24, got '{steps}'")
        return steps

    def span(self) -> range:
        """The steps."""
        first, _, stop = self.steps.partition(":")
        return range(int(first), int(stop)) if self.steps else range(0)


class StartConfig(Config):
    """The weights before the first step."""

    weights: str = ""
    """File of weights, own or published ones of the model, or folder of a run (its best, averaged if it kept
    an average); empty: random ones. Relative to where the run is started. Not looked at when resuming."""
    fresh: tuple[str, ...] = ()
    """Parts of the model that start anew all the same, such as classifier.head for other classes."""
    part: str = ""
    """If set, only this part of the model takes weights, such as backbone; all else starts anew. The file
    may hold the part alone (`allsight weights export --part`), or a whole model."""
    part_in_weights: str = ""
    """The part's name in the weights, where it is another, such as encoder.backbone of m3i."""

    @model_validator(mode="after")
    def _settings_agree(self) -> StartConfig:
        if self.fresh and not self.weights:
            raise ValueError(f"fresh={list(self.fresh)} needs weights; without, everything starts anew")
        if self.fresh and self.part:
            raise ValueError(
                f"expected fresh or part, got fresh={list(self.fresh)} and part={self.part}: outside the "
                "part everything starts anew"
            )
        if self.part_in_weights and not self.part:
            raise ValueError(f"part_in_weights={self.part_in_weights} needs part, which takes the weights")
        return self


class RunConfig(Config):
    """One training run. Recipes are functions that return one; `resolved.yaml` is one, printed."""

    name: str
    """Name of the run folder."""
    model: Model.Config
    tasks: Mixture[Task.Config]
    seed: int = Field(default=0, ge=0, lt=2**63)
    start: StartConfig = StartConfig()
    data: DataConfig = DataConfig()
    sampling: SamplingConfig = SamplingConfig()
    optim: Optimiser.Config = AdamW.Config()
    schedule: Schedule.Config = Cosine.Config(steps=1000)
    precision: Kind = "fp32"
    """`bf16` and `fp16` are autocast over float32 weights, `fp16` with a dynamic scale of the loss; `fp64` is
    meant for exactness tests."""
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    parallel: ParallelConfig = ParallelConfig()
    profile: ProfileConfig = ProfileConfig()

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, name: str) -> str:
        if not name or name in (".", "..") or any(c in name for c in "/\\\0\n"):
            raise ValueError(f"expected a plain folder name, got {name!r}")
        return name

    @field_validator("tasks")
    @classmethod
    def _has_tasks(cls, tasks: Mixture[Any]) -> Mixture[Any]:
        if not tasks:
            raise ValueError("expected at least one task")
        return tasks

    @model_validator(mode="after")
    def _settings_agree(self) -> RunConfig:
        schedule, optim = self.schedule, self.optim
        if len(self.tasks) > 1:
            if schedule.epochs is not None:
                raise ValueError(
                    f"schedule.epochs={schedule.epochs:g} needs exactly one task, since tasks have epochs of "
                    f"different lengths; there are {len(self.tasks)}: set schedule.steps"
                )
            if optim.lr_is_for_batch is not None:
                raise ValueError(
                    f"optim.lr_is_for_batch={optim.lr_is_for_batch} needs exactly one task; there are "
                    f"{len(self.tasks)}: set optim.lr itself"
                )
        if self.sampling.lanes > 1 and self.sampling.layout == "one_task":
            raise ValueError(
                f"sampling.lanes={self.sampling.lanes} has no meaning with sampling.layout=one_task; "
                f"set layout to mixed_batch or mixed_lanes"
            )
        if self.eval.weights == "ema" and optim.ema_decay is None:
            raise ValueError("eval.weights=ema needs averaged weights: set optim.ema_decay, such as 0.999")
        return self


def check_format(tree: dict[str, Any], *, where: str) -> dict[str, Any]:
    """The tree of a saved run without its `format` line.

    Raises:
        ConfigError: The run folder was written by a newer allsight.
    """
    found = tree.get("format", FORMAT)
    if not isinstance(found, int) or found > FORMAT:
        raise ConfigError(
            f"{where}: format {found!r} is newer than this allsight reads (format {FORMAT}); update allsight"
        )
    return {key: value for key, value in tree.items() if key != "format"}
