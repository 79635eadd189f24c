"""The contract spike: classification, captioning over a vocabulary, a drive with state; one run."""

import toys

from allsight.config import Mixture
from allsight.engine.config import EvalConfig, RunConfig, SamplingConfig
from allsight.engine.optim import SGD, AdamW
from allsight.engine.schedule import Constant, Cosine
from allsight.models import MultiHead, Parts

LAYOUTS = ("one_task", "mixed_batch", "mixed_lanes")


def spike_run(layout: str = "one_task", *, exact: bool = False) -> RunConfig:
    """Three tasks in one run. `exact` takes SGD in float64, in which any difference is a fault.

    A stream stays on the lane it belongs to, so the layout that deals rows to changing ranks has no drive.
    """
    tasks = {
        "dots": toys.ToyDots.Config(batch_size=12),
        "captions": toys.ToyCaptioning.Config(batch_size=12),
        "drive": toys.ToyDrive.Config(batch_size=12),
    }
    parts = {
        "heads": MultiHead.Config(backbone=toys.ToyBackbone.Config()),
        "generalist": toys.ToyGeneralist.Config(),
        "driver": toys.ToyDriver.Config(),
    }
    route = {"dots": "heads", "captions": "generalist", "drive": "driver"}
    if layout == "mixed_batch":
        del tasks["drive"], parts["driver"], route["drive"]
    lanes = 1 if layout == "one_task" else 2
    return RunConfig(
        name="spike",
        model=Parts.Config(parts=Mixture(parts), route=Mixture(route)),
        tasks=Mixture(tasks),
        sampling=SamplingConfig(layout=layout, lanes=lanes),
        optim=SGD.Config(lr=0.05, weight_decay=1e-3, ema_decay=0.9)
        if exact
        else AdamW.Config(lr=5e-3, weight_decay=0.0, ema_decay=0.9),
        schedule=Cosine.Config(steps=12) if exact else Constant.Config(steps=150),
        precision="fp64" if exact else "fp32",
        eval=EvalConfig(pictures=0, max_samples=24 if exact else None),
    )
