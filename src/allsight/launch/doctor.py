"""What this machine can do for allsight, measured where that is quick."""

from __future__ import annotations

import io
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from allsight import ops
from allsight.launch.run import usable_cores

_SECONDS = 0.5
"""How long each speed is measured."""
_FEW_BYTES = 2 * 2**30


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Args:
        name: What.
        text: What was found, for people.
        value: The same for programs.
        ok: False where something should be done about it.
    """

    name: str
    text: str
    value: Any
    ok: bool = True

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "text": self.text, "ok": self.ok}


def examine(*, runs: Path, root: Path | None = None) -> dict[str, list[Finding]]:
    """Look at everything; section -> findings.

    Args:
        runs: Where run folders lie.
        root: Data root; None takes ALLSIGHT_DATA.
    """
    return {
        "versions": versions(),
        "devices": devices(),
        "operators": operators(),
        "extras": extras(),
        "disk": disk(runs, root),
        "speed": [decode_speed(), loader_speed()],
    }


def versions() -> list[Finding]:
    """Of Python and what allsight stands on."""
    found = [Finding("python", platform.python_version(), platform.python_version())]
    for name in ("allsight", "torch", "numpy", "pydantic", "pillow", "simplejpeg"):
        try:
            found.append(Finding(name, version(name), version(name)))
        except PackageNotFoundError:
            found.append(Finding(name, f"not installed; pip install {name}", None, ok=False))
    return found


def devices() -> list[Finding]:
    """Cores, threads, memory and GPUs."""
    cores, threads = usable_cores(), torch.get_num_threads()
    found = [
        Finding("cpu", f"{cores} of {os.cpu_count()} cores usable, {platform.machine()}", cores),
        Finding("threads", f"{threads} for PyTorch in one process (train.threads, OMP_NUM_THREADS)", threads),
    ]
    memory = _memory_bytes()
    if memory is not None:
        found.append(Finding("memory", f"{memory / 2**30:.1f} GiB", memory))
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    text = ", ".join(names) or f"none that this PyTorch ({torch.__version__}) sees; all runs on the CPU"
    return [*found, Finding("gpus", text, names)]


def operators() -> list[Finding]:
    """What `auto` takes for each operator here, and why."""
    found = []
    for name, status in ops.status().items():
        states = {backend: {"usable": s.usable, "why": s.why} for backend, s in status.backends.items()}
        value = {"chosen": status.chosen, "forced": status.forced, "backends": states}
        forced = f"; forced: {status.forced}" if status.forced else ""
        is_served = status.forced is None or status.backends[status.forced].usable
        found.append(Finding(name, f"{status.chosen} ({status.why}{forced})", value, ok=is_served))
    return found


def extras() -> list[Finding]:
    """Optional parts: which are there, and how to get the others."""
    wanted: dict[str, list[str]] = {}
    try:
        lines = requires("allsight") or []
    except PackageNotFoundError:
        lines = []
    for line in lines:
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", line)
        package = re.match(r"[\w.-]+", line)
        if extra and package:
            wanted.setdefault(extra[1], []).append(package[0])
    found = []
    for extra, packages in sorted(wanted.items()):
        missing = [package for package in packages if not _is_installed(package)]
        text = f"missing {', '.join(missing)}; pip install 'allsight[{extra}]'" if missing else "installed"
        found.append(Finding(extra, text, not missing))
    return found or [Finding("none", "this version has no optional parts", None)]


def disk(runs: Path, root: Path | None) -> list[Finding]:
    """Free space where runs are written, and the data root."""
    place = _nearest_folder(runs)
    free = shutil.disk_usage(place).free
    few = "" if free >= _FEW_BYTES else "; little for checkpoints"
    found = [Finding("runs", f"{free / 2**30:.1f} GiB free for {runs}{few}", free, ok=not few)]
    text = os.environ.get("ALLSIGHT_DATA", "")
    folder = root if root is not None else (Path(text).expanduser() if text else None)
    if folder is None:
        text = "not set; export ALLSIGHT_DATA=DIR, or give data.root=DIR to each command"
        return [*found, Finding("data root", text, None)]
    if not folder.is_dir():
        return [*found, Finding("data root", f"{folder}: no such folder", None, ok=False)]
    sets = sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    free = shutil.disk_usage(folder).free
    shown = ", ".join(sets[:12]) + (", ..." if len(sets) > 12 else "")
    return [*found, Finding("data root", f"{folder}: {shown or 'empty'} ({free / 2**30:.1f} GiB free)", sets)]


def decode_speed() -> Finding:
    """Pictures of 500 x 375 px that one core decodes in a second."""
    from allsight.data.decode import decode_picture

    jpegs = [_jpeg(number, 375, 500) for number in range(4)]
    rate = _rate(lambda number: decode_picture(jpegs[number % 4], "generated"), _SECONDS)
    return Finding("jpeg decode", f"{rate:.0f} pictures/s of 500 x 375 px on one core", round(rate, 1))


def loader_speed() -> Finding:
    """Pictures that one core reads, decodes, crops to 224 px and collates in a second."""
    from allsight.tasks import Classification

    size = 16
    with tempfile.TemporaryDirectory(prefix="allsight-doctor-") as name:
        folder = Path(name) / "set" / "train" / "thing"
        folder.mkdir(parents=True)
        for number in range(size):
            (folder / f"{number}.jpg").write_bytes(_jpeg(number, 375, 500))
        config = Classification.Config(data="imagefolder:set", num_classes=1, size_px=224)
        task = config.build(name="doctor", root=Path(name))
        reader, transform = task.reader("train"), task.transform("train")
        rng = np.random.default_rng(0)

        def load(number: int) -> None:
            task.collate([transform(reader[index], rng) for index in range(size)])

        rate = size * _rate(load, _SECONDS)
    return Finding(
        "loading", f"{rate:.0f} pictures/s read, decoded and cropped to 224 px on one core", round(rate, 1)
    )


def _rate(work: Callable[[int], Any], seconds: float) -> float:
    """Calls per second; the first one only warms up."""
    work(0)
    done, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < seconds or not done:
        work(done)
        done += 1
    return done / spent if spent else float(done)


def _jpeg(seed: int, height: int, width: int) -> bytes:
    """A picture with about the detail of a photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((width, height))
    noise = rng.normal(0, 6, (height, width, 3))
    picture = Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8))
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=90)
    return file.getvalue()


def _nearest_folder(path: Path) -> Path:
    path = path.expanduser().absolute()
    parents: Iterable[Path] = (path, *path.parents)
    return next(parent for parent in parents if parent.is_dir())


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
