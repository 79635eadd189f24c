"""One rank of runs under every strategy: `python strategy_run.py OUT [each]`, torchrun's environment set."""

import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from blocks_run import blocks_run
from expert_run import experts_run
from torch.distributed.tensor import DTensor

from allsight.config import replace
from allsight.engine.optim import AdamW
from allsight.engine.parallel.same_passes import RanksDisagree
from allsight.engine.trainer import Trainer

CUT = 6
STRATEGIES = ("ddp", "fsdp", "hsdp")

FEATURES = {
    "uneven epochs, unused layers": {"optim.clip_norm": None, "optim.ema_decay": None},
    "clipping": {"optim.ema_decay": None},
    "average, evaluation": {"optim.clip_norm": None, "eval.every_steps": 4},
    "accumulation": {"train.accumulate": 2},
    "several tasks a step": {
        "sampling.layout": "mixed_batch",
        "sampling.lanes": 4,
        "tasks.a.batch_size": 16,
        "tasks.b.batch_size": 16,
    },
    "recomputation": {"model.remat": True},
    "adaptive clipping": {"optim.clip_norm": None, "optim.clip_adaptive": 0.02},
    "replaced samples": {"tasks.a.broken": (3, 17), "data.max_corrupt_fraction": 1.0},
}
"""What each strategy must do as one process does; each run has heads and a layer that some steps do not use,
and epochs that are no multiple of the batch. All but the first ones clip and average, too."""

ALL_AT_ONCE = {
    **FEATURES["accumulation"],
    **FEATURES["recomputation"],
    **FEATURES["replaced samples"],
    "eval.every_steps": 4,
}

OPTIONS = {
    "ddp, one task": {"parallel.ddp.static_graph": True, "tasks.b": None, "model.unused": False},
    "ddp, memory": {"train.recover_memory": True, "parallel.ddp.bucket_views": False},
    "fsdp, several tasks a step": FEATURES["several tasks a step"],
    "fsdp, kept": {"parallel.fsdp.reshard": False, **FEATURES["adaptive clipping"]},
    "fsdp, offload": {"parallel.fsdp.offload": True},
}
"""Options of strategies that change the way and not the result."""


EXPERT_FEATURES = {
    "several tasks a step": {**FEATURES["several tasks a step"], "train.norms_every": 2},
    "adaptive clipping": FEATURES["adaptive clipping"],
}
"""For ranks that share experts."""

FLOAT32 = "AdamW in float32"
"""Beside the exact runs, which alone show that nothing is left out: what users run, to the digits it has."""


def strategy_runs(world, each=False):
    """Name -> (configuration, the same for one process); two ranks get all features at once unless `each`."""
    found = {}
    each = each or world > 2
    features = FEATURES if each else {"all at once": ALL_AT_ONCE}
    for strategy in STRATEGIES:
        base = {"parallel.strategy": strategy, "parallel.timeout_s": 60}
        if strategy == "hsdp":
            base["parallel.fsdp.shard_ranks"] = max(1, world // 2)
        for feature, changes in features.items():
            found[f"{strategy}: {feature}"] = ({**base, **changes}, changes)
    for name, changes in OPTIONS.items() if not each else ():
        own = {"parallel.strategy": name.partition(",")[0], "parallel.timeout_s": 60}
        found[f"{name}: options"] = (
            {**own, **changes},
            {key: value for key, value in changes.items() if not key.startswith("parallel")},
        )
    runs = {
        name: (replace(blocks_run(), several), replace(blocks_run(), one))
        for name, (several, one) in found.items()
    }
    for name, changes in {"all at once": ALL_AT_ONCE, **(EXPERT_FEATURES if each else {})}.items():
        for strategy in STRATEGIES if world > 2 else STRATEGIES[:2]:
            ranks = {"parallel.strategy": strategy, "parallel.timeout_s": 60, "parallel.expert_ranks": 2}
            if strategy == "hsdp":
                ranks["parallel.fsdp.shard_ranks"] = world // 2
            one, several = replace(experts_run(), changes), replace(experts_run(), {**ranks, **changes})
            runs[f"{strategy}, experts: {name}"] = several, one
    for strategy in STRATEGIES if each else ():
        changes = {"precision": "fp32", "checkpoint.every_steps": None}
        runs[f"{strategy}: {FLOAT32}"] = tuple(
            replace(adam(name, size), changes) for name, size in ((strategy, world), ("single", 1))
        )
    return runs


def result_of(trainer):
    """Weights and averages, whole on every rank."""
    found = dict(trainer.model.state_dict())
    if trainer._updater.ema is not None:
        found |= {f"ema/{name}": tensor for name, tensor in trainer._updater.ema.averages.items()}
    return {
        name: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for name, t in found.items()
    }


def relative_gaps(actual, expected):
    """Tensor -> relative L2 distance."""
    assert actual.keys() == expected.keys()
    return {
        name: float((actual[name].double() - t.double()).norm() / t.double().norm().clamp(min=1e-30))
        for name, t in expected.items()
    }


def adam(strategy, world):
    """A run with state of the optimiser, for checkpoints that other strategies go on from."""
    optim = AdamW.Config(lr=0.01, clip_norm=1.0, ema_decay=0.9)
    if strategy == "experts":
        shared = {"parallel.strategy": "ddp", "parallel.expert_ranks": 2} if world > 1 else {}
        return replace(experts_run(optim=optim), {**shared, "checkpoint.every_steps": CUT})
    changes = {"parallel.strategy": strategy, "checkpoint.every_steps": CUT}
    if strategy == "hsdp":
        changes["parallel.fsdp.shard_ranks"] = max(1, world // 2)
    return replace(blocks_run(optim=optim), changes)


def main(out: Path, *, each: bool) -> None:
    torch.set_num_threads(1)
    # Views of the model's output are taken by the losses, never changed in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    world = int(os.environ["WORLD_SIZE"])
    results, metrics, held = {}, {}, {}
    for name, (config, _) in strategy_runs(world, each).items():
        trainer = Trainer(config)
        metrics[name] = trainer.fit()
        results[name] = result_of(trainer)
        trainer.close()
    for strategy in (*STRATEGIES, "experts"):
        trainer = Trainer(adam(strategy, world), folder=out / strategy)
        for step in trainer:
            if step.number + 1 == CUT:
                break
        held[strategy] = sum(trainer.held_bytes().values())
        trainer.close()
    # Every strategy goes on from what another one left.
    for strategy, before in zip(STRATEGIES, (*STRATEGIES[1:], STRATEGIES[0]), strict=True):
        trainer = Trainer(adam(strategy, world), folder=out / before, resume=True)
        trainer.fit()
        results[f"{strategy} after {before}"] = result_of(trainer)
        trainer.close()
    fsdp = replace(adam("experts", world), {"parallel.strategy": "fsdp"})
    trainer = Trainer(fsdp, folder=out / "experts", resume=True)
    trainer.fit()
    results["experts after experts"] = result_of(trainer)
    trainer.close()
    refusal = disagreement()
    if int(os.environ["RANK"]) == 0:
        saved = {"results": results, "metrics": metrics, "held": held, "refusal": refusal}
        torch.save(saved, out / "strategies.pt")
    dist.barrier()
    dist.destroy_process_group()


def disagreement() -> str:
    """What is said when the ranks of a sharded run are given different tasks in one step."""
    trainer = Trainer(replace(blocks_run(), {"parallel.strategy": "fsdp", "parallel.timeout_s": 60}))
    steps = {step.tasks[0]: step for step in (next(iter_of(trainer, n)) for n in range(8))}
    try:
        trainer._run_step(steps["a" if trainer.ranks.is_first else "b"])
    except RanksDisagree as error:
        return str(error)
    finally:
        trainer.close()
    return ""


def iter_of(trainer, step):
    trainer.step = step
    return iter(trainer._make_loader())


if __name__ == "__main__":
    main(Path(sys.argv[1]), each="each" in sys.argv[2:])
