"""Does BEVFormer-micro learn what its parts are there for? Each question trains on a CPU and prints its bars.

    python benchmarks/bev_learning.py overfit             # 8 clips by heart
    python benchmarks/bev_learning.py heldout             # other drives; calibration permuted; priors
    python benchmarks/bev_learning.py temporal            # memory against none, from pictures
    python benchmarks/bev_learning.py oracle              # the same with truth in place of pictures: minutes
    python benchmarks/bev_learning.py joint               # boxes and map together, and each alone
    python benchmarks/bev_learning.py real                # real frames by heart; needs ALLSIGHT_DATA

`--quick` runs a few steps of each: nothing is learned, and no bar is judged. Generated drives lie in
`--data` and are used again. Figures go to `benchmarks/results/DATE_bev_QUESTION_ISA.md`.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from _bev_oracle import broken, oracle_run
from _page import RESULTS, setting_of, write_page

from allsight import Trainer
from allsight.config import replace
from allsight.data.transforms import Compose, PermuteCameras
from allsight.data.world.drives import Drives, generate_drives
from allsight.draw import encode_png
from allsight.engine.config import RunConfig
from allsight.engine.evaluator import Evaluator
from allsight.engine.interference import measure_interference
from allsight.recipes import find_config
from allsight.tasks import BEVDetection
from allsight.tasks.base import Split
from allsight.tasks.metrics.map_iou import MapIoU
from allsight.tasks.rigs import NoStreams

FREQUENT = ("car", "truck", "pedestrian", "bicycle")
_STILL = {"turn_rad": 0.0, "mirror": 0.0, "colour": 0.0}
Values = Mapping[str, float]


@dataclass(frozen=True)
class Bar:
    """A figure, and what it must be."""

    what: str
    found: float
    sign: str = ""
    limit: float = 0.0

    def row(self, *, judged: bool) -> list[str]:
        if not self.sign:
            return [self.what, f"{self.found:.4g}", "", ""]
        holds = self.found >= self.limit if self.sign == ">=" else self.found <= self.limit
        verdict = ("yes" if holds else "NO") if judged else "not judged"
        return [self.what, f"{self.found:.4g}", f"{self.sign} {self.limit:.4g}", verdict]


class BrokenBoxes(BEVDetection):
    """Detection, judged with something broken."""

    class Config(BEVDetection.Config):
        broken: Literal["", "history", "extrinsics"] = ""
        """Forget the past at every frame, or exchange the cameras' matrices among them."""

    config: BrokenBoxes.Config  # pyright: ignore[reportIncompatibleVariableOverride]

    def reader(self, split: Split) -> Any:
        reader = super().reader(split)
        return NoStreams(reader) if split == "val" and self.config.broken == "history" else reader

    def transform(self, split: Split) -> Any:
        steps = super().transform(split)
        if split == "val" and self.config.broken == "extrinsics":
            return Compose(steps, PermuteCameras(matrices=False))
        return steps


@dataclass
class Session:
    """What all questions share."""

    data: Path
    quick: bool
    steps: int | None
    threads: int | None
    log: Callable[[str], None] = print

    def drives(self, name: str, **options: Any) -> Path:
        """Generated drives, made once."""
        folder = self.data / name
        if not (folder / "drives.json").is_file():
            self.log(f"generating {folder}")
            generate_drives(folder, Drives.Config.variant("easy" if "easy" in name else "normal", **options))
        return folder

    def length(self, steps: int) -> int:
        return self.steps or (4 if self.quick else steps)

    def train(self, config: RunConfig, every: int = 100) -> tuple[Trainer, Values, float]:
        """Train to the end; the trainer, the last metrics and CPU minutes."""
        begun, trainer = cpu_s(), Trainer(replace(config, {"train.threads": self.threads}))
        for step in trainer:
            if step.number % every == 0:
                parts = {name: {k: round(v, 2) for k, v in one.items()} for name, one in step.losses.items()}
                self.log(f"{config.name} {step.number}: {(cpu_s() - begun) / 60:.1f} CPU min, {parts}")
            if step.metrics is not None:
                self.log(f"{config.name} {step.number + 1}: {_short(step.metrics)}")
        return trainer, trainer.evaluate(), (cpu_s() - begun) / 60


def cpu_s() -> float:
    """CPU seconds of this process, all threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def judged_as(trainer: Trainer, config: RunConfig) -> dict[str, Values]:
    """Scores of trained weights on the tasks of another configuration."""
    tasks = {name: task.build(name=name, root=config.data.folder()) for name, task in config.tasks.items()}
    judge = Evaluator(config, tasks, trainer._precision, trainer.ranks, None)
    return {name: score.values for name, score in judge.evaluate(trainer.model, 0).items()}


def micro(data: Path, name: str, steps: int, changes: Mapping[str, Any]) -> RunConfig:
    """The recipe on some drives, detection alone."""
    recipe, _ = find_config("bevformer_micro_drives")
    common = {
        "name": name,
        "data.root": str(data.parent),
        "schedule.steps": steps,
        "schedule.warmup_steps": max(1, min(100, steps // 4)),
        "eval.every_steps": max(1, steps // 4),
    }
    places = {f"tasks.{task}.data": f"nuscenes:{data.name}" for task in recipe.tasks}
    return replace(recipe, {**common, **places, **changes})


def boxes_only(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the task `boxes`, without the task `map`."""
    return {"tasks.map": None, **{f"tasks.boxes.{name}": value for name, value in changes.items()}}


def overfit(session: Session) -> tuple[list[Bar], list[str]]:
    """8 clips by heart: frequent classes, no augmentation."""
    data = session.drives("easy8", train=8, val=1)
    steps = session.length(1500)
    config = micro(data, "overfit", steps, boxes_only({**_STILL, "val_split": "train", "classes": FREQUENT}))
    trainer, values, minutes = session.train(config)
    return [
        Bar("mAP of 8 clips, 4 classes", values["boxes/map_occurring"], ">=", 0.9),
        Bar("AP at 2 m", values["boxes/ap_2m"], ">=", 0.97),
        Bar("CPU minutes", minutes, "<=", 30),
        *_figures(values, "boxes"),
    ], [f"{steps} steps of 2 lanes x 2 frames.", *map(_table, _tables(trainer, config))]


def heldout(session: Session) -> tuple[list[Bar], list[str]]:
    """Drives that were not seen; then the same weights with exchanged matrices; the mean map as a prior."""
    data = session.drives("drives", train=20 if session.quick else 2000, val=2 if session.quick else 60)
    steps = session.length(16_000)
    config = micro(data, "heldout", 2 * steps, {})
    trainer, values, minutes = session.train(config)
    wrong = _with_broken(config, "extrinsics")
    permuted = judged_as(trainer, wrong)["boxes"]
    prior = mean_map_prior(config)
    mean_ap = values["boxes/map_occurring"]
    tables = [_table(one) for one in _tables(trainer, config)]
    return [
        Bar("mAP", mean_ap, ">=", 0.45),
        Bar("AP at 2 m", values["boxes/ap_2m"], ">=", 0.65),
        Bar("AP at 4 m", values["boxes/ap_4m"], ">=", 0.80),
        Bar("mAP with matrices exchanged / mAP", permuted["map_occurring"] / max(mean_ap, 1e-9), "<=", 0.05),
        Bar("IoU of roads", values["map/iou_road"], ">=", prior["iou_road"] + 0.2),
        Bar("IoU of lanes", values["map/iou_lane"], ">=", prior["iou_lane"] + 0.05),
        Bar("mean map: IoU of roads", prior["iou_road"]),
        Bar("mean map: IoU of lanes", prior["iou_lane"]),
        Bar("CPU minutes", minutes),
        *_figures(values, "boxes"),
    ], tables


def temporal(session: Session) -> tuple[list[Bar], list[str]]:
    """Memory against none, equal frames and schedule; then the same weights with the past cut."""
    data = session.drives("drives", train=20 if session.quick else 2000, val=2 if session.quick else 60)
    steps = session.length(8000)
    config = micro(data, "temporal", steps, boxes_only({"share": 1.0}))
    still = replace(
        config,
        {
            "name": "static",
            "tasks.boxes.chunk": 1,
            "tasks.boxes.streams": False,
            "tasks.boxes.batch_size": 4,
            "model.network.gradient_frames": 1,
            "model.network.clip_loss": "last",
        },
    )
    trainer, with_past, _ = session.train(config)
    _, without, _ = session.train(still)
    cut = judged_as(trainer, _with_broken(config, "history"))["boxes"]
    return [
        Bar("mAVE, temporal / static", with_past["boxes/mave"] / without["boxes/mave"], "<=", 0.65),
        Bar("mAVE with the past cut / temporal", cut["mave"] / with_past["boxes/mave"], ">=", 1.4),
        Bar("mAVE temporal, m/s", with_past["boxes/mave"]),
        Bar("mAVE static, m/s", without["boxes/mave"]),
        Bar("mAP temporal", with_past["boxes/map_occurring"]),
        Bar("mAP static", without["boxes/map_occurring"]),
    ], []


def oracle(session: Session) -> tuple[list[Bar], list[str]]:
    """Truth in place of pictures: does memory bring velocity?"""
    steps = session.length(2000)
    scenes, val = (8, 2) if session.quick else (600, 40)
    config = oracle_run("temporal", temporal=True, steps=steps, scenes=scenes, val_scenes=val)
    still = oracle_run("static", temporal=False, steps=steps, scenes=scenes, val_scenes=val)
    trainer, with_past, minutes = session.train(config)
    _, without, more = session.train(still)
    cut, shifted = (judged_as(trainer, broken(config, how))["boxes"] for how in ("history", "alignment"))
    mave = with_past["boxes/mave"]
    return [
        Bar("mAVE, temporal / static", mave / without["boxes/mave"], "<=", 0.6),
        Bar("mAVE with alignment off / temporal", shifted["mave"] / mave, ">=", 1.3),
        Bar("mAVE with the past cut / temporal", cut["mave"] / mave, ">=", 1.4),
        Bar("mAVE temporal, m/s", mave),
        Bar("mAVE static, m/s", without["boxes/mave"]),
        Bar("mAP temporal", with_past["boxes/map_occurring"]),
        Bar("mAP static", without["boxes/map_occurring"]),
        Bar("CPU minutes, temporal", minutes),
        Bar("CPU minutes, static", more),
    ], [f"{steps} steps of 4 frames each; {scenes} training scenes, {val} judged."]


def joint(session: Session) -> tuple[list[Bar], list[str]]:
    """Boxes and map together, and each alone for as many of its own steps: what does being together cost?

    Rows and columns are those of BEVFormer's table 4; below, what a step along one task's gradient does to
    the other's loss on held-out frames (1: as much as its own gradient, below 0: it hurts).
    """
    data = session.drives("drives", train=20 if session.quick else 2000, val=2 if session.quick else 60)
    steps = session.length(8000)
    both = micro(data, "joint", 2 * steps, {})
    trainer, values, _ = session.train(both)
    found = {"joint": values}
    for own, other in (("boxes", "map"), ("map", "boxes")):
        alone = replace(micro(data, f"{own}_alone", steps, {}), {f"tasks.{other}": None})
        found[own] = session.train(alone)[1]
    names = ("boxes/nds", "boxes/map_occurring", "map/iou_road", "map/iou_lane")
    rows = [["det", "seg", "NDS", "mAP", "road", "lane"]]
    for run in ("boxes", "map", "joint"):
        trained = ["x" if run in (task, "joint") else "" for task in ("boxes", "map")]
        rows.append([*trained, *(f"{found[run][n]:.4f}" if n in found[run] else "-" for n in names)])
    bars = [
        Bar(f"{name}: joint - alone", found["joint"][name] - found[name.split("/")[0]][name])
        for name in names
    ]
    return bars, [_table(rows), _table(influence(trainer, both))]


def influence(trainer: Trainer, config: RunConfig, batches: int = 4) -> list[list[str]]:
    """What tasks do to each other at the end of a run, on frames that were not trained on."""
    losses: dict[str, list[Any]] = {}
    for name, settings in config.tasks.items():
        task = settings.build(name=name, root=config.data.folder())
        task.head(trainer.model.feature_specs)  # tells it where cells are
        reader, transform = task.reader("val"), task.transform("val")
        losses[name] = []
        for n in np.linspace(0, len(reader) - 1, batches).astype(int).tolist():
            batch = task.collate([transform(reader[n], np.random.default_rng(0))])
            losses[name].append(partial(_loss_of, trainer, task, batch))
    found = measure_interference(trainer.model, losses)
    rows = [["loss of", *(f"after a step along {name}" for name in found.tasks)]]
    return rows + [
        [name, *(f"{value:.3f}" for value in row)] for name, row in zip(found.tasks, found.whole, strict=True)
    ]


def _loss_of(trainer: Trainer, task: Any, batch: Any) -> torch.Tensor:
    outputs, _ = trainer.model(batch)
    return torch.stack(list(task.loss(outputs, batch).values())).sum()


def real(session: Session) -> tuple[list[Bar], list[str]]:
    """Real frames by heart, through `infos`: mean AP over the classes that have a box to find."""
    import os

    root = Path(os.environ["ALLSIGHT_DATA"]) / "driving"
    steps = session.length(800)
    bars, parts = [], []
    for name, range_m in (
        ("nuscenes_frame", (-51.2, -51.2, 51.2, 51.2)),
        ("ddad_scene", (-150.0, -30.0, 100.0, 85.0)),
    ):
        split = "all"
        changes = boxes_only(
            {
                **_STILL,
                "data": f"infos:{root / name}",
                "train_split": split,
                "val_split": split,
                "range_m": range_m,
                "eval_range_m": 200.0,
                "streams": False,
                "chunk": 1,
                "batch_size": 1,
                "hw_px": (288, 512),
                "min_points": 1,
                "head.queries": 50,
                "head.peaks": 50,
            }
        )
        network = {
            "model.network.range_m": (*range_m[:2], -5.0, *range_m[2:], 5.0),
            "model.network.bev_hw": (64, 64),
            "model.network.cameras": 0,
            "model.network.gradient_frames": 1,
            "model.network.clip_loss": "last",
        }
        config = micro(root, f"real_{name}", steps, {**changes, **network})
        trainer, values, minutes = session.train(config)
        bars += [
            Bar(f"{name}: mean AP of classes that occur", values["boxes/map_occurring"], ">=", 0.9),
            Bar(f"{name}: mAP as the devkit counts it", values["boxes/map"]),
            Bar(f"{name}: CPU minutes", minutes),
        ]
        _save_pictures(trainer, config, session.data)
    return bars, [*parts, f"{steps} steps each; pictures lie in the folder of --data."]


def mean_map_prior(config: RunConfig) -> Values:
    """The mean map of the training split, scored on the other at its best thresholds."""
    task = config.tasks["map"].build(name="map", root=config.data.folder())
    settings = {**_STILL, "chunk": 1}
    plain = task.config.model_copy(update=settings).build(name="map", root=config.data.folder())
    reader = plain.reader("train")
    grid_sum, count = 0.0, 0
    for n in range(0, len(reader), max(1, len(reader) // 800)):
        grid_sum, count = grid_sum + _map_of(reader, n), count + 1
    prior = grid_sum / max(count, 1)
    # Thresholds of the protocol are for probabilities; a prior is given its best scale too.
    best: dict[str, float] = {}
    val = plain.reader("val")
    truths = [_map_of(val, n) > 0 for n in range(len(val))]
    for scale in (0.5, 1.0, 1.5, 2.0, 3.0, 4.0):
        metric = MapIoU(task.map_classes)
        for truth in truths:
            metric.add(truth, np.clip(prior * scale, 0, 1))
        for name, value in metric.compute().items():
            best[name] = max(best.get(name, 0.0), value)
    return best


def _map_of(reader: Any, index: int) -> np.ndarray:
    return reader.bev_map(index).masks.numpy().astype(np.float32)


def _with_broken(config: RunConfig, how: Literal["history", "extrinsics"]) -> RunConfig:
    from allsight.config import Mixture

    own = config.tasks["boxes"]
    fields = {name: getattr(own, name) for name in type(own).model_fields}
    return config.model_copy(update={"tasks": Mixture(boxes=BrokenBoxes.Config(**fields, broken=how))})


def _tables(trainer: Trainer, config: RunConfig) -> list[list[list[str]]]:
    """Scores of each class and ring."""
    task = config.tasks["boxes"].build(name="boxes", root=config.data.folder())
    metrics: list[Any] = []

    class Keeping(BEVDetection):
        def metric(self) -> Any:
            metrics.append(super().metric())
            return metrics[-1]

    keeping = Keeping(task.config, name="boxes", root=config.data.folder())
    Evaluator(config, {"boxes": keeping}, trainer._precision, trainer.ranks, None).evaluate(trainer.model, 0)
    found = metrics[-1].tables()
    return [
        [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
        for rows in (found["per_class"], found["rings"])
    ]


def _save_pictures(trainer: Trainer, config: RunConfig, folder: Path) -> None:
    """Every frame with what was answered."""
    task = trainer.tasks["boxes"]
    reader, transform = task.reader("val"), task.transform("val")
    trainer.model.eval()
    for n in range(len(reader)):
        batch = task.collate([transform(reader[n], np.random.default_rng(0))])
        with torch.no_grad():
            outputs, _ = trainer.model(batch)
        picture = task.picture(batch, 0, task.decode(outputs, batch)[0])
        assert picture is not None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{config.name}_{n}.png").write_bytes(encode_png(picture))


def _figures(values: Values, task: str) -> list[Bar]:
    names = ("nds", "ap_0.5m", "ap_1m", "ap_2m", "ap_4m", "mate", "maoe", "mave")
    return [Bar(name, values[f"{task}/{name}"]) for name in names]


def _short(values: Values) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in body)])


QUESTIONS = {
    "overfit": overfit,
    "heldout": heldout,
    "temporal": temporal,
    "oracle": oracle,
    "joint": joint,
    "real": real,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("question", nargs="?", choices=sorted(QUESTIONS), default="oracle")
    parser.add_argument("--quick", action="store_true", help="a few steps; no bar is judged")
    parser.add_argument("--steps", type=int, help="in place of the question's own number")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--data", type=Path, default=Path("runs/bev_learning"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    session = Session(chosen.data, chosen.quick, chosen.steps, chosen.threads)
    question = QUESTIONS[chosen.question]
    bars, parts = question(session)
    rows = [["what", "figure", "bar", "holds"], *(bar.row(judged=not chosen.quick) for bar in bars)]
    title = f"BEV learning: {chosen.question}"
    setting = setting_of(__file__, "one run, seed 0; generated drives unless said otherwise")
    write_page(
        f"bev_{chosen.question}", title, setting, [str(question.__doc__), _table(rows), *parts], chosen.out
    )


if __name__ == "__main__":
    main()
