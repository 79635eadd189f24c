"""What a picture costs on its way into a batch, and how that compares with plain PyTorch and Pillow.

    python benchmarks/data_pipeline.py --pictures FOLDER

The first table times each step on the JPEGs of a folder: one thread, CPU time, all steps in turns, memory
kept as data workers keep it. The second runs the same folder as a classification task through the Meta
Dataloader and through torch DataLoader with Pillow, one worker each, in turns, by the clock and by the CPU
time of the workers. The third asks that loader for a batch only as often as half of its capacity allows. The
fourth starts a joint run of a thousand data sets, the last looks at the memory of a worker with few and with
many samples.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from _page import RESULTS, setting_of, write_page
from PIL import Image as PillowImage

from allsight.data.decode import decode_picture
from allsight.data.loader import MetaDataloader
from allsight.data.order import generator
from allsight.data.sampler import Plan
from allsight.data.transforms import ColorJitter, Compose, HorizontalFlip, RandomResizedCrop
from allsight.data.workers import Workers, keep_freed_memory
from allsight.launch.bench.measure import interleave
from allsight.launch.bench.report import aligned
from allsight.tasks import Classification
from allsight.types import Sample, Step

_SIDE, _BATCH = 224, 32
_CROP = RandomResizedCrop(_SIDE)


def costs(files: list[Path], rounds: int) -> list[list[str]]:
    """Rows of the table of steps."""
    jpegs = [file.read_bytes() for file in files]
    pictures = [decode_picture(jpeg, "x") for jpeg in jpegs]
    samples = [Sample(str(n), {"image": picture}, {"label": 0}) for n, picture in enumerate(pictures)]
    crops = [_CROP(sample, generator(0, n)) for n, sample in enumerate(samples)]
    flip, colour = HorizontalFlip(0.5), ColorJitter(0.4, 0.4, 0.4)
    whole = Compose(_CROP, flip)

    def all_of(step: Callable[[int], Any]) -> Callable[[], None]:
        def run() -> None:
            for number in range(len(jpegs)):
                step(number)

        return run

    def prepared() -> None:
        # Batch by batch, with the generators of a batch first, as data workers do it.
        for begin in range(0, len(jpegs), _BATCH):
            batch = range(begin, min(begin + _BATCH, len(jpegs)))
            generators = [generator(0, number) for number in batch]
            for number, own in zip(batch, generators, strict=True):
                whole(Sample("x", {"image": decode_picture(jpegs[number], "x")}, {"label": 0}), own)

    steps = {
        "bare simplejpeg": lambda n: simplejpeg.decode_jpeg(jpegs[n]),
        "decode": lambda n: decode_picture(jpegs[n], "x"),
        "decode by Pillow": lambda n: np.asarray(PillowImage.open(io.BytesIO(jpegs[n])).convert("RGB")),
        "random generator": lambda n: generator(0, n),
        f"crop and resize to {_SIDE}": lambda n: _CROP(samples[n], generator(0, n)),
        "the same, resized by PyTorch": lambda n: _by_torch(pictures[n].pixels, n),
        "the same by Pillow": lambda n: _by_pillow(pictures[n].pixels.permute(1, 2, 0).numpy(), n),
        "flip": lambda n: flip(crops[n], generator(0, n)),
        "colour": lambda n: colour(crops[n], generator(0, n)),
    }
    ways = {name: all_of(step) for name, step in steps.items()} | {"decode, crop, resize, flip": prepared}
    taken = interleave(ways, pairs=rounds, calls=1)
    rows = [["step", "ms a picture", "bare simplejpeg / it"]]
    for name in ways:
        milliseconds = 1e3 * taken.median(name) / len(jpegs)
        rows.append([name, f"{milliseconds:.3f}", f"{1 / taken.ratio(name, 'bare simplejpeg'):.2f}"])
    return rows


def _by_torch(pixels: torch.Tensor, number: int) -> torch.Tensor:
    left, top, right, low = _box(pixels.shape[1], pixels.shape[2], number)
    window = pixels.permute(1, 2, 0)[top:low, left:right].contiguous()[None].permute(0, 3, 1, 2)
    return torch.nn.functional.interpolate(window, (_SIDE, _SIDE), mode="bilinear", antialias=True)


def _by_pillow(pixels: np.ndarray, number: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    box = _box(height, width, number)
    picture = PillowImage.fromarray(pixels)
    return np.asarray(picture.resize((_SIDE, _SIDE), PillowImage.Resampling.BILINEAR, box=box))


def _box(height: int, width: int, number: int) -> tuple[int, int, int, int]:
    window = _CROP._window(height, width, generator(0, number).random(22).tolist())
    right, low = window.left + window.width, window.top + window.height
    return max(0, window.left), max(0, window.top), min(width, right), min(height, low)


class PlainPictures(torch.utils.data.Dataset):
    """What is usually written: Pillow opens, crops and resizes, and the result becomes a tensor."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        with PillowImage.open(self.files[number]) as opened:
            picture = opened.convert("RGB")
        box = _box(picture.height, picture.width, number)
        picture = picture.resize((_SIDE, _SIDE), PillowImage.Resampling.BILINEAR, box=box)
        if number % 2:
            picture = picture.transpose(PillowImage.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous(), 0


def _task(root: Path) -> Classification:
    shapes = {"size_px": _SIDE, "crop": "resized", "batch_size": _BATCH}
    config = Classification.Config(data="imagefolder:pictures", **shapes)
    return Classification(config, name="pictures", root=root)


def _plan(root: Path) -> Plan:
    return Plan.of_tasks({"pictures": _task(root)}, seed=0, rebuild=(_plan, (root,)))


def loader(files: list[Path], rounds: int) -> list[list[str]]:
    """Rows of the table of whole loaders."""
    batches = max(4, len(files) // _BATCH)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "pictures" / "train" / "all"
        place.mkdir(parents=True)
        for file in files:
            (place / file.name).symlink_to(file.absolute())
        ours = iter(MetaDataloader(_plan(Path(folder)), num_workers=1))
        plain = torch.utils.data.DataLoader(
            PlainPictures(files), batch_size=_BATCH, shuffle=True, num_workers=1, persistent_workers=True
        )

        def endless() -> Any:
            while True:
                yield from plain

        theirs = endless()
        next(ours), next(theirs)
        assert isinstance(ours, MetaDataloader) and isinstance(ours.workforce, Workers)
        workers = {"ours": ours.workforce.processes[0].pid, "theirs": plain._iterator._workers[0].pid}
        worked, made = {name: _cpu_s(pid) for name, pid in workers.items()}, dict.fromkeys(workers, 0)
        speed: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(rounds):
            for name, source in (("ours", ours), ("theirs", theirs)):
                # What was made ahead while the other ran does not count.
                for _ in range(4):
                    made[name] += _rows(next(source))
                begun, count = time.perf_counter(), 0
                for _ in range(batches):
                    count += _rows(next(source))
                made[name] += count
                speed[name].append(count / (time.perf_counter() - begun))
        cpu_ms = {name: 1e3 * (_cpu_s(pid) - worked[name]) / made[name] for name, pid in workers.items()}
        ours = None
    mean = {name: float(np.median(values)) for name, values in speed.items()}
    ratio = float(np.median(np.array(speed["ours"]) / np.array(speed["theirs"])))
    times = f"{cpu_ms['ours']:.2f}", f"{cpu_ms['theirs']:.2f}"
    return [
        ["loader, one worker", "pictures/s", "ratio", "ms of the worker's CPU a picture", "ratio", "bar"],
        [
            "Meta Dataloader",
            f"{mean['ours']:,.0f}",
            f"{ratio:.2f}",
            times[0],
            f"{cpu_ms['theirs'] / cpu_ms['ours']:.2f}",
            ">= 2",
        ],
        ["torch DataLoader with Pillow", f"{mean['theirs']:,.0f}", "1", times[1], "1", ""],
    ]


def _rows(item: Any) -> int:
    return sum(item.sizes.values()) if isinstance(item, Step) else len(item[0])


def _cpu_s(pid: int) -> float:
    """CPU time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def waiting(files: list[Path], batches: int = 40) -> list[list[str]]:
    """Rows of the table of what a step waits, where data are made twice as fast as they are used."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "pictures" / "train" / "all"
        place.mkdir(parents=True)
        for file in files:
            (place / file.name).symlink_to(file.absolute())
        with MetaDataloader(_plan(Path(folder)), num_workers=1) as steps:
            for _ in range(6):
                next(steps)
            begun = time.perf_counter()
            for _ in range(batches):
                next(steps)
            each_s = (time.perf_counter() - begun) / batches
            # At full speed nothing lies ahead; as in any training, the first steps fill that up.
            for _ in range(6):
                next(steps)
                time.sleep(2 * each_s)
            before, begun = steps.waited_s, time.perf_counter()
            for _ in range(batches):
                next(steps)
                time.sleep(2 * each_s)
            share = (steps.waited_s - before) / (time.perf_counter() - begun)
    return [
        ["one worker, steps of half its speed", "share of the step time", "bar"],
        ["waiting for data, batches taken over", f"{100 * share:.2f} %", "< 2 %"],
    ]


def worker_memory(file: Path, counts: tuple[int, ...]) -> list[list[str]]:
    """Rows of the table of a worker's own memory (not shared with other processes)."""
    rows = [["samples", "own memory of a worker"]]
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "pictures" / "train" / "all"
            place.mkdir(parents=True)
            for number in range(count):
                (place / f"{number:07}.jpg").symlink_to(file.absolute())
            with MetaDataloader(_plan(Path(folder)), num_workers=1) as steps:
                for _ in range(12):
                    next(steps)
                assert isinstance(steps.workforce, Workers)
                text = Path(f"/proc/{steps.workforce.processes[0].pid}/smaps_rollup").read_text()
        kilobytes = sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_"))
        rows.append([f"{count:,}", f"{kilobytes / 1024:.0f} MiB"])
    return rows


def mixture(file: Path, sets: int) -> list[list[str]]:
    """Rows of the table of a start with many data sets."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(sets):
            place = Path(folder) / f"set{number}" / "train" / "all"
            place.mkdir(parents=True)
            for copy in range(4):
                (place / f"{copy}.jpg").symlink_to(file.absolute())
        begun = time.perf_counter()
        tasks = {
            f"t{number}": Classification(
                Classification.Config(data=f"imagefolder:set{number}", size_px=64, batch_size=4),
                name=f"t{number}",
                root=Path(folder),
            )
            for number in range(sets)
        }
        with MetaDataloader(Plan.of_tasks(tasks, seed=0)) as steps:
            next(steps)
            seconds = time.perf_counter() - begun
    return [["mixture", "first step after", "bar"], [f"{sets:,} data sets", f"{seconds:.2f} s", "< 5 s"]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=Path, required=True, help="folder with JPEGs, at any depth")
    parser.add_argument("--most", type=int, default=160, help="pictures used")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    files = sorted(options.pictures.rglob("*.jpg"))[: options.most]
    sizes = np.array([PillowImage.open(file).size for file in files])
    about = f"{len(files)} JPEGs, {sizes[:, 0].mean():.0f} x {sizes[:, 1].mean():.0f} px in the mean."
    parts = [about, aligned(costs(files, options.rounds)), aligned(loader(files, options.rounds))]
    parts += [aligned(waiting(files)), aligned(mixture(files[0], 1000))]
    parts.append(aligned(worker_memory(files[0], (1_000, 100_000))))
    setting = setting_of(__file__, f"{options.rounds} rounds in turns, medians")
    write_page("data_pipeline", "What a picture costs", setting, parts, options.out)


if __name__ == "__main__":
    main()
