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
    for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"):
        if given.get(key, "auto") not in ("auto", made[key]):
            raise ConfigError(
                f"config.parallel.deepspeed.file: {file}: {key} is {given[key]!r}, but the run says "
                f'{made[key]!r}; leave it out, or write "auto"'
            )
    auto = {key: value for key, value in made.items() if given.get(key) == "auto"}
    return {"zero_allow_untested_optimizer": True, **given, **auto} | {
        key: made[key] for key in _FROM_RUN if key not in given
    }


_FROM_RUN = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")


def _made(config: RunConfig, world: int) -> dict[str, Any]:
    sizes = {task.batch_size for task in config.tasks.values()}
    if len(sizes) > 1:
        raise ConfigError(
            f"config.tasks: DeepSpeed needs one batch_size for all tasks, these have {sorted(sizes)}; set "
            "parallel.strategy=fsdp"
        )
    if config.precision == "fp64":
        raise ConfigError("config.precision: DeepSpeed has no fp64; set fp32, or parallel.strategy=fsdp")
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
        # Weights and what ranks send stay in float32, as under other strategies.
        "torch_autocast": {
            "enabled": config.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
    }
