"""Shards against the libraries of the same purpose, and whether size costs: memory, start, resume.

    pip install --target /tmp/others --no-deps webdataset braceexpand litdata lightning-utilities torchdata \
        filelock boto3 botocore jmespath python-dateutil six urllib3 s3transfer obstore requests idna \
        certifi charset-normalizer tqdm tifffile
    PYTHONPATH=/tmp/others python benchmarks/data_shards.py [--pictures FOLDER] [--rounds 20]

allsight and webdataset read the same tar, litdata the same JPEGs in its own format, all in one process and
one thread, turn by turn: reading alone (all bytes of each sample), and reading with decoding, where the
others decode with Pillow as webdataset does by itself, and also with our decoder. The time is CPU time of the
thread, the page cache is warm. allsight compares each sample with its checksum, the others have none;
webdataset reads in the tar's order only.

Ten million samples are 4,000 names of one tar of 2,500 small samples, each name with an index of its own,
read through the Meta Dataloader in a fresh process; imports are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from allsight.data.policies import Policy

SHARDS, PER_SHARD = 4000, 2500


def main() -> None:
    parser = argparse.ArgumentParser(description="Shards: speed against webdataset, and large sets")
    default = Path(os.environ.get("ALLSIGHT_DATA", ".")) / "coco_small/images"
    parser.add_argument("--pictures", type=Path, default=default, help="folder with JPEGs, at any depth")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--large", nargs=2, metavar=("FOLDER", "STEP"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.large:
        print(json.dumps(first_batch(Path(options.large[0]), int(options.large[1]))))
        return
    from _page import setting_of, write_page

    from allsight.launch.bench.report import aligned

    with tempfile.TemporaryDirectory() as folder:
        speed, about = speeds(options.pictures, Path(folder) / "pictures", options.rounds)
        large = large_set(Path(folder) / "large")
    method = f"{options.rounds} rounds, one thread, CPU time, turn by turn; medians"
    setting = setting_of(__file__, method)
    write_page("data_shards", "Shards", setting, [about, aligned(speed), aligned(large)], options.out)


def speeds(pictures: Path, folder: Path, rounds: int) -> tuple[list[list[str]], str]:
    """The table of samples a second, and what was read."""
    from allsight.data.readers import open_reader
    from allsight.data.shards.checking import index_place

    files = sorted(pictures.rglob("*.jpg"))
    if not files:
        raise SystemExit(f"{pictures}: no .jpg; name a folder of pictures with --pictures")
    folder.mkdir()
    members = [
        (f"{n:06}.{ending}", data)
        for n, file in enumerate(files)
        for ending, data in (("cls", str(n % 10).encode()), ("jpg", file.read_bytes()))
    ]
    tar = write_tar(folder / "train-00000.tar", members)
    index_place(folder)
    data = open_reader(f"webdataset:{folder}", classes=tuple("0123456789"))
    raw = in_litdata(folder / "litdata", files)
    order = np.random.default_rng(0).permutation(len(data)).tolist()
    runs = {
        "allsight, read": lambda: [data._shelf.read(n) for n in range(len(data))],
        "webdataset, read": lambda: list(of_webdataset(tar, None)),
        "allsight, read and decode": lambda: [data[n].image for n in range(len(data))],
        "allsight, read and decode, random order": lambda: [data[n].image for n in order],
        "webdataset, read and decode (Pillow)": lambda: list(of_webdataset(tar, "rgb8")),
        "webdataset, read and decode (our decoder)": lambda: list(of_webdataset(tar, ours)),
        "litdata, read": lambda: list(raw),
        "litdata, read and decode (Pillow)": lambda: [by_pillow(sample["image"]) for sample in raw],
        "litdata, read and decode (our decoder)": lambda: [ours("jpg", sample["image"]) for sample in raw],
        "litdata, read and decode (our decoder), random order": lambda: [
            ours("jpg", raw[n]["image"]) for n in order
        ],
    }
    taken = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begun = time.thread_time()
            assert len(run()) == len(data)
            taken[name].append(time.thread_time() - begun)
    rows = [["what", "samples/s", "time, ratio to allsight in the same order"]]
    for name, seconds in taken.items():
        base = "allsight, read and decode" if "decode" in name else "allsight, read"
        base += ", random order" * ("random" in name)
        ratio = median(a / b for a, b in zip(seconds, taken[base], strict=True))
        rows.append([name, f"{len(data) / median(seconds):,.0f}", f"{ratio:.2f}"])
    mean = tar.stat().st_size / len(data) / 1000
    about = f"{len(data)} pictures with classes in one tar, {mean:.0f} kB a sample"
    return rows, f"{about}; webdataset {version('webdataset')}, litdata {version('litdata')}."


def ours(key: str, data: bytes) -> object:
    """Our decoder as a handler of webdataset."""
    from allsight.data.decode import decode_picture

    return decode_picture(bytes(data), "x") if key.endswith("jpg") else None


def of_webdataset(tar: Path, decoder: str | Callable | None) -> Iterator[object]:
    """All samples as webdataset gives them."""
    try:
        import webdataset
    except ImportError as error:
        raise SystemExit(f"webdataset is not installed ({error}); see the head of this file") from error
    data = webdataset.WebDataset(str(tar), shardshuffle=False, empty_check=False)
    return iter(data if decoder is None else data.decode(decoder))


def by_pillow(data: bytes) -> np.ndarray:
    """What most people write; litdata's own type for JPEGs needs torchvision."""
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def in_litdata(folder: Path, files: list[Path]) -> Any:
    """The JPEGs and their classes in litdata's format."""
    try:
        from litdata import StreamingDataset
        from litdata.streaming.writer import BinaryWriter
    except ImportError as error:
        raise SystemExit(f"litdata is not installed ({error}); see the head of this file") from error
    folder.mkdir()
    writer = BinaryWriter(str(folder), chunk_bytes=64 * 2**20)
    for n, file in enumerate(files):
        writer[n] = {"image": file.read_bytes(), "label": n % 10}
    writer.done()
    writer.merge(1)
    return StreamingDataset(str(folder))


def large_set(folder: Path) -> list[list[str]]:
    """The table of what ten million samples cost."""
    from allsight.data.shards.catalogue import Catalogue, catalogue_name
    from allsight.data.shards.index import index_tar

    folder.mkdir()
    tar = write_tar(
        folder / "train-00000.tar",
        [(f"{n:04}.{e}", d) for n in range(PER_SHARD) for e, d in (("cls", b"1"), ("txt", b"some words"))],
    )
    index = index_tar(tar)
    names = [f"train-{n:05}.tar" for n in range(SHARDS)]
    for name in names:
        (folder / f"{name}.index").write_bytes(index.pack())
        if name != tar.name:
            os.link(tar, folder / name)
    catalogue = Catalogue.of(names, [index.header] * SHARDS, ("text", "label"))
    (folder / catalogue_name("train")).write_bytes(catalogue.pack())
    found = {}
    for step in (0, 10**6):
        words = [sys.executable, __file__, "--large", str(folder), str(step)]
        times = [json.loads(subprocess.run(words, check=True, capture_output=True).stdout) for _ in range(5)]
        found[step] = {name: median(time[name] for time in times) for name in times[0]}
    start, late = found[0], found[10**6]
    return [
        [f"{SHARDS * PER_SHARD:,} samples in {SHARDS:,} shards", "measured", "bar"],
        ["from nothing to the first batch of 256, random order", f"{start['first_s']:.2f} s", "< 2 s"],
        ["the same at step 1,000,000", f"{late['first_s']:.2f} s", "< 1 s"],
        ["index in memory, all of it loaded", f"{start['index_bytes']:.1f} B a sample", "<= 24"],
        ["resident memory it takes", f"{start['resident_bytes']:.1f} B a sample", "<= 24"],
        ["index in memory by default (`index_mb=64`)", f"{start['default_mb']:.0f} MB", ""],
    ]


class Words:
    """The least task that the loader takes: texts as they come."""

    name = "words"

    class config:
        batch_size, share, group_size, policy = 256, 1.0, 1, Policy()

    def transform(self, split: str) -> Callable:
        return lambda sample, rng: sample

    def collate(self, samples: list) -> object:
        from allsight.types import Batch

        return Batch("words", tuple(sample.id for sample in samples), {})


def first_batch(folder: Path, step: int) -> dict[str, float]:
    """Seconds to the first batch, and what the index takes when all of it is loaded."""
    from allsight.data.loader import MetaDataloader
    from allsight.data.readers import open_reader
    from allsight.data.sampler import Plan

    begun = time.perf_counter()
    reader = open_reader(f"webdataset:{folder}", classes=("a", "b"))
    plan = Plan.of_tasks({"words": Words()}, {"words": reader}, seed=1)
    assert len(next(MetaDataloader(plan, step)).batches["words"][0]) == 256
    first_s = time.perf_counter() - begun
    if step:
        return {"first_s": first_s}
    for shard in range(SHARDS):
        reader._shelf.name(shard * PER_SHARD), reader._shelf._indexes[shard]
    default_mb = reader.index_bytes / 2**20
    whole = open_reader(f"webdataset:{folder}", classes=("a", "b"), index_mb=1000)
    before = resident_bytes()
    for shard in range(SHARDS):
        _ = whole._shelf._indexes[shard]
    return {
        "first_s": first_s,
        "default_mb": default_mb,
        "index_bytes": whole.index_bytes / len(whole),
        "resident_bytes": (resident_bytes() - before) / len(whole),
    }


def resident_bytes() -> int:
    """Memory of this process that is in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar of (name, bytes)."""
    import io
    import tarfile

    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


if __name__ == "__main__":
    main()
