"""What a picture costs on its way into a batch, and how that compares with plain PyTorch and Pillow.

    python benchmarks/data_pipeline.py --pictures FOLDER

The first table times each step on the JPEGs of a folder: one thread, CPU time, all steps in turns. The second
runs the same folder as a classification task through the Meta Dataloader and through torch DataLoader with
Pillow, one worker each, in turns. The third starts a joint run of a thousand data sets.
"""

from __future__ import annotations

import argparse
import io
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
from allsight.launch.bench.measure import interleave
from allsight.launch.bench.report import aligned
from allsight.tasks import Classification
from allsight.types import Sample

_SIDE = 224
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

    def prepared(number: int) -> Sample:
        sample = Sample("x", {"image": decode_picture(jpegs[number], "x")}, {"label": 0})
        return whole(sample, generator(0, number))

    steps = {
        "bare simplejpeg": lambda n: simplejpeg.decode_jpeg(jpegs[n]),
        "decode": lambda n: decode_picture(jpegs[n], "x"),
        "decode by Pillow": lambda n: np.asarray(PillowImage.open(io.BytesIO(jpegs[n])).convert("RGB")),
        "random generator": lambda n: generator(0, n),
        f"crop and resize to {_SIDE}": lambda n: _CROP(samples[n], generator(0, n)),
        "the same by Pillow": lambda n: _by_pillow(pictures[n].pixels.permute(1, 2, 0).numpy(), n),
        "flip": lambda n: flip(crops[n], generator(0, n)),
        "colour": lambda n: colour(crops[n], generator(0, n)),
        "decode, crop, resize, flip": prepared,
    }
    taken = interleave({name: all_of(step) for name, step in steps.items()}, pairs=rounds, calls=1)
    rows = [["step", "ms a picture", "bare simplejpeg / it"]]
    for name in steps:
        milliseconds = 1e3 * taken.median(name) / len(jpegs)
        rows.append([name, f"{milliseconds:.3f}", f"{1 / taken.ratio(name, 'bare simplejpeg'):.2f}"])
    return rows


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
    config = Classification.Config(data="imagefolder:pictures", size_px=_SIDE, crop="resized", batch_size=32)
    return Classification(config, name="pictures", root=root)


def _plan(root: Path) -> Plan:
    return Plan.of_tasks({"pictures": _task(root)}, seed=0, rebuild=(_plan, (root,)))


def loader(files: list[Path], rounds: int) -> list[list[str]]:
    """Rows of the table of whole loaders."""
    batches = max(4, len(files) // 32)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "pictures" / "train" / "all"
        place.mkdir(parents=True)
        for file in files:
            (place / file.name).symlink_to(file.absolute())
        ours = iter(MetaDataloader(_plan(Path(folder)), num_workers=1))
        plain = torch.utils.data.DataLoader(
            PlainPictures(files), batch_size=32, shuffle=True, num_workers=1, persistent_workers=True
        )

        def endless() -> Any:
            while True:
                yield from plain

        theirs = endless()
        next(ours), next(theirs)
        speed: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(rounds):
            for name, source in (("ours", ours), ("theirs", theirs)):
                # What was made ahead while the other ran does not count.
                for _ in range(4):
                    next(source)
                begun, count = time.perf_counter(), 0
                for _ in range(batches):
                    item = next(source)
                    count += len(item[0]) if name == "theirs" else sum(item.sizes.values())
                speed[name].append(count / (time.perf_counter() - begun))
        ours = None
    mean = {name: float(np.median(values)) for name, values in speed.items()}
    ratio = float(np.median(np.array(speed["ours"]) / np.array(speed["theirs"])))
    return [
        ["loader, one worker", "pictures/s", "ratio", "bar"],
        ["Meta Dataloader", f"{mean['ours']:,.0f}", f"{ratio:.2f}", ">= 2"],
        ["torch DataLoader with Pillow", f"{mean['theirs']:,.0f}", "1", ""],
    ]


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
    files = sorted(options.pictures.rglob("*.jpg"))[: options.most]
    sizes = np.array([PillowImage.open(file).size for file in files])
    about = f"{len(files)} JPEGs, {sizes[:, 0].mean():.0f} x {sizes[:, 1].mean():.0f} px in the mean."
    parts = [about, aligned(costs(files, options.rounds)), aligned(loader(files, options.rounds))]
    parts.append(aligned(mixture(files[0], 1000)))
    setting = setting_of(__file__, f"{options.rounds} rounds in turns, medians")
    write_page("data_pipeline", "What a picture costs", setting, parts, options.out)


if __name__ == "__main__":
    main()
