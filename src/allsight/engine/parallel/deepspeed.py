"""DeepSpeed's settings, made from a run's configuration, so that nothing is said twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allsight.config import ConfigError

if TYPE_CHECKING:
    from allsight.engine.config import RunConfig


def deepspeed_settings(config: RunConfig, world: int) -> dict[str, Any]:
    """The JSON that DeepSpeed is started with: `parallel.deepspeed.file`, or made from the run.

    Args:
        world: Number of ranks.
    Raises:
        ConfigError: The run has what DeepSpeed cannot do, or the file cannot be read or contradicts the run.
    Source: keys as in deepspeedai/DeepSpeed:docs/_pages/config-json.md.
    """
    made = _made(config, world)
    if not config.parallel.deepspeed.file:
        return made
    file = Path(config.parallel.deepspeed.file).expanduser()
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"config.parallel.deepspeed.file: {file}: cannot be read as JSON: {error}"
        ) from error
    if not isinstance(given, dict):
        raise ConfigError(f"config.parallel.deepspeed.file: {file}: expected an object, got {given!r}")
    for key in (
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "torch_autocast",
    ):
        if given.get(key, "auto") not in ("auto", made[key]):
            raise ConfigError(
                f"config.parallel.deepspeed.file: {file}: {key} is {given[key]!r}, but the run says "
                f'{made[key]!r}; leave it out, or write "auto"'
            )
    if "optimizer" in given or "scheduler" in given:
        raise ConfigError(
            f"config.parallel.deepspeed.file: {file}: optimizer and scheduler are those of the run; "
            "leave them out and set optim and schedule"
        )
    for key in ("bf16", "fp16"):
        if isinstance(given.get(key), dict) and given[key].get("enabled"):
            raise ConfigError(
                f"config.parallel.deepspeed.file: {file}: {key} would round the weights, which stay in "
                "float32; leave it out and set precision=bf16"
            )
    auto = {key: value for key, value in made.items() if given.get(key) == "auto"}
    fixed = {key: made[key] for key in ("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer")}
    return {**fixed, **given, **auto} | {key: made[key] for key in _FROM_RUN if key not in given}


_FROM_RUN = (
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "zero_optimization",
    "torch_autocast",
)


def stage_of(settings: dict[str, Any]) -> int:
    """The ZeRO stage that DeepSpeed's settings ask for."""
    return int(settings.get("zero_optimization", {}).get("stage", 0))


def refuse_for_deepspeed(config: RunConfig, stage: int) -> None:
    """Say what of a run the training loop cannot do with DeepSpeed.

    Args:
        stage: Of ZeRO.
    Raises:
        ConfigError: There is such a thing.
    """
    if len(config.tasks) > 1:
        raise ConfigError(
            "config.tasks: DeepSpeed loses gradients of layers that the last micro-batch of a step leaves "
            f"out, so it cannot train {len(config.tasks)} tasks with a head each; set parallel.strategy=fsdp"
        )
    if config.sampling.layout == "mixed_lanes":
        raise ConfigError(
            "config.sampling.layout: DeepSpeed needs all ranks to run the same layers at once, which "
            "mixed_lanes does not; set layout to one_task"
        )
    if config.train.recover_memory:
        raise ConfigError(
            "config.train.recover_memory: not with parallel.strategy=deepspeed, whose ranks wait for each "
            "other in the middle of a pass; set train.accumulate by hand (`allsight plan` tells)"
        )
    if config.optim.ema_decay is not None and stage == 3:
        raise ConfigError(
            "config.optim.ema_decay: no average with DeepSpeed's stage 3, which holds no whole weights; set "
            "parallel.deepspeed.stage=2, or parallel.strategy=fsdp, which shards the average, too"
        )
    optimiser = type(config.optim.build())
    if stage and not optimiser.elementwise:
        raise ConfigError(
            f"config.optim.kind: {optimiser.__name__} may need whole matrices, and DeepSpeed lays all "
            "weights end to end; set optim.kind=adamw, or parallel.strategy=fsdp"
        )


def _made(config: RunConfig, world: int) -> dict[str, Any]:
    sizes = {task.batch_size for task in config.tasks.values()}
    if len(sizes) > 1:
        raise ConfigError(
            f"config.tasks: DeepSpeed needs one batch_size for all tasks, these have {sorted(sizes)}; set "
            "parallel.strategy=fsdp"
        )
    if config.precision == "fp64":
        raise ConfigError("config.precision: DeepSpeed has no fp64; set fp32, or parallel.strategy=fsdp")
    if config.precision == "fp16":
        raise ConfigError(
            "config.precision: DeepSpeed would keep a loss scale of its own; set bf16, or "
            "parallel.strategy=fsdp"
        )
    for name in ("clip_value", "clip_adaptive"):
        if getattr(config.optim, name) is not None:
            raise ConfigError(f"config.optim.{name}: DeepSpeed clips by norm only; set optim.clip_norm")
    accumulate, (size,) = config.train.accumulate, sizes
    if size % (world * accumulate):
        raise ConfigError(
            f"config.tasks: batch_size {size} cannot be dealt to {world} ranks x accumulate {accumulate}"
        )
    options = config.parallel.deepspeed
    zero: dict[str, Any] = {"stage": options.stage, "contiguous_gradients": True, "overlap_comm": True}
    if options.offload:
        if options.stage == 0:
            raise ConfigError(
                "config.parallel.deepspeed.offload: stage 0 shards nothing; set stage to 1, 2 or 3"
            )
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if options.stage == 3:
            zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return {
        "train_micro_batch_size_per_gpu": size // (world * accumulate),
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": config.optim.clip_norm or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # With offload, too, the optimiser is PyTorch's.
        "zero_force_ds_cpu_optimizer": False,
        # Weights and what ranks send stay in float32, as under other strategies.
        "torch_autocast": {
            "enabled": config.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
    }
