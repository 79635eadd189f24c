"""A tiny data set in each format that a reader is registered for: splits `train` (3) and `val` (2)."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from data.toy_drives import write_infos, write_nuscenes
from PIL import Image as PillowImage

from allsight.data.shards.pack import pack

HEIGHT, WIDTH = 6, 8
SPLITS = {"train": 3, "val": 2}


def picture(number: int = 0) -> bytes:
    """A png of 8 x 6, another one for each number."""
    buffer = io.BytesIO()
    PillowImage.new("RGB", (WIDTH, HEIGHT), (40 * number, 90, 200 - 30 * number)).save(buffer, "PNG")
    return buffer.getvalue()


def values_png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PillowImage.fromarray(values.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def put(file: Path, data: bytes | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data.encode() if isinstance(data, str) else data)
    return file


def numbered() -> Iterator[tuple[str, int, int]]:
    """Split, number in it, and a number of its own for each picture."""
    for split, count in SPLITS.items():
        for n in range(count):
            yield split, n, n + 3 * (split == "val")


def imagefolder(root: Path) -> Path:
    for split, n, k in numbered():
        put(root / f"{split}/{('cat', 'dog')[n % 2]}/{n}.png", picture(k))
    return root / "train/cat/0.png"


def label_maps(root: Path) -> Path:
    put(root / "classes.json", json.dumps({"classes": ["sky", "sea"], "ignore": 9}))
    for split, n, k in numbered():
        put(root / f"{split}/{n}.png", picture(k))
        values = np.zeros((HEIGHT, WIDTH))
        values[:, 3:], values[0] = 1, 9
        put(root / f"{split}_labels/{n}.png", values_png(values))
    return root / "train/0.png"


def ade20k(root: Path) -> Path:
    for split, n, k in numbered():
        folder = {"train": "training", "val": "validation"}[split]
        put(root / f"images/{folder}/{n}.png", picture(k))
        put(root / f"annotations/{folder}/{n}.png", values_png(np.arange(48).reshape(HEIGHT, WIDTH)))
    return root / "images/training/0.png"


def cityscapes(root: Path) -> Path:
    for split, n, k in numbered():
        put(root / f"leftImg8bit/{split}/ulm/ulm_{n}_leftImg8bit.png", picture(k))
        values = np.minimum(np.arange(48), 33).reshape(HEIGHT, WIDTH)
        put(root / f"gtFine/{split}/ulm/ulm_{n}_gtFine_labelIds.png", values_png(values))
        put(root / f"gtFine/{split}/ulm/ulm_{n}_gtFine_color.png", picture())
    return root / "leftImg8bit/train/ulm/ulm_0_leftImg8bit.png"


def _coco(root: Path, stem: str, annotation: Callable[[int], dict], **more: list) -> Path:
    for split, count in SPLITS.items():
        images = [{"id": n, "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH} for n in range(count)]
        tree = {"images": images, "annotations": [annotation(n) for n in range(count)], **more}
        put(root / f"annotations/{stem}_{split}.json", json.dumps(tree))
    for split, n, k in numbered():
        put(root / f"images/{split}/{n}.png", picture(k))
    return root / "images/train/0.png"


def coco(root: Path) -> Path:
    def annotation(n: int) -> dict:
        return {"id": n, "image_id": n, "category_id": 4, "bbox": [1, 1, 4, 3]}

    return _coco(root, "instances", annotation, categories=[{"id": 4, "name": "cat"}])


def coco_captions(root: Path) -> Path:
    return _coco(root, "captions", lambda n: {"id": n, "image_id": n, "caption": f" picture {n} "})


def coco_panoptic(root: Path) -> Path:
    def annotation(n: int) -> dict:
        segments = [{"id": 7, "category_id": 2, "iscrowd": 1}, {"id": 300, "category_id": 5}]
        return {"image_id": n, "file_name": f"{n}.png", "segments_info": segments}

    categories = [{"id": 5, "name": "sky", "isthing": 0}, {"id": 2, "name": "cat", "isthing": 1}]
    first = _coco(root, "panoptic", annotation, categories=categories)
    for split, n, _ in numbered():
        ids = np.zeros((HEIGHT, WIDTH, 3))
        ids[:, 2:5, 0] = 7
        ids[:, 5:, :2] = 300 % 256, 300 // 256
        put(root / f"annotations/panoptic_{split}/{n}.png", values_png(ids))
    return first


def coco_vqa(root: Path) -> Path:
    for split, count in SPLITS.items():
        name = f"{split}2014"
        questions = [{"question_id": 10 + n, "image_id": n, "question": "what?"} for n in range(count)]
        answers = [
            {"question_id": 10 + n, "answers": [{"answer": "cat"}, {"answer": "dog"}, {"answer": "dog"}]}
            for n in range(count)
        ]
        put(root / f"v2_OpenEnded_mscoco_{name}_questions.json", json.dumps({"questions": questions}))
        put(root / f"v2_mscoco_{name}_annotations.json", json.dumps({"annotations": answers}))
    for split, n, k in numbered():
        put(root / f"{split}2014/COCO_{split}2014_{n:012d}.jpg", picture(k))
    return root / "train2014/COCO_train2014_000000000000.jpg"


def voc_xml(objects: str, width: int = WIDTH, height: int = HEIGHT) -> str:
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>{size}{objects}</annotation>"


def voc_object(name: str, *corners: object, more: str = "") -> str:
    keys = ("xmin", "ymin", "xmax", "ymax")
    box = "".join(f"<{key}>{value}</{key}>" for key, value in zip(keys, corners, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


def voc(root: Path) -> Path:
    for split, n, k in numbered():
        put(root / f"JPEGImages/{split}{n}.jpg", picture(k))
        put(root / f"Annotations/{split}{n}.xml", voc_xml(voc_object("cat", 2, 2, 5, 4)))
    for split, count in SPLITS.items():
        put(root / f"ImageSets/Main/{split}.txt", "".join(f"{split}{n}\n" for n in range(count)))
        put(root / f"ImageSets/Main/cat_{split}.txt", f"{split}0 -1\n")
    return root / "JPEGImages/train0.jpg"


def voc_label_maps(root: Path) -> Path:
    for split, n, k in numbered():
        put(root / f"JPEGImages/{split}{n}.jpg", picture(k))
        values = np.zeros((HEIGHT, WIDTH))
        values[2:, 3:], values[2] = 20, 255
        put(root / f"SegmentationClass/{split}{n}.png", values_png(values))
    for split, count in SPLITS.items():
        put(root / f"ImageSets/Segmentation/{split}.txt", "".join(f"{split}{n}\n" for n in range(count)))
    return root / "JPEGImages/train0.jpg"


def yolo(root: Path) -> Path:
    put(root / "data.yaml", "train: ../images/train\nval: images/val\nnames:\n  0: cat\n  1: dog\n")
    for split, n, k in numbered():
        put(root / f"images/{split}/{n}.png", picture(k))
        put(root / f"labels/{split}/{n}.txt", f"{n % 2} 0.5 0.5 0.5 1.0\n")
    return root / "images/train/0.png"


def manifest(root: Path) -> Path:
    for split, count in SPLITS.items():
        rows = [{"image": f"pictures/{split}{n}.png", "label": ("cat", "dog")[n % 2]} for n in range(count)]
        put(root / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for split, n, k in numbered():
        put(root / f"pictures/{split}{n}.png", picture(k))
    return root / "pictures/train0.png"


def text(root: Path) -> Path:
    for split, count in SPLITS.items():
        put(root / f"{split}.txt", "".join(f"line {n}\n" for n in range(count)))
    return root / "train.txt"


def _table(n: int, k: int) -> dict:
    return {"image": {"bytes": picture(k), "path": None}, "label": n % 2, "caption": f"picture {n}"}


def _features() -> dict[bytes, bytes]:
    """What `datasets` writes into schemas."""
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def parquet(root: Path) -> Path:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for split, count in SPLITS.items():
        rows = [_table(n, n + 3 * (split == "val")) for n in range(count)]
        for part, some in enumerate((rows[:1], rows[1:])):
            file = root / f"data/{split}-{part:05d}-of-00002-0a1b.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            table = arrow.Table.from_pylist(some).replace_schema_metadata(_features())
            parquet.write_table(table, file, row_group_size=1, compression="none")
    return root / "data/train-00000-of-00002-0a1b.parquet"


def hf_datasets(root: Path) -> Path:
    arrow = pytest.importorskip("pyarrow")
    put(root / "dataset_dict.json", json.dumps({"splits": list(SPLITS)}))
    for split, count in SPLITS.items():
        rows = [_table(n, n + 3 * (split == "val")) for n in range(count)]
        names = []
        for part, some in enumerate((rows[:1], rows[1:])):
            names.append({"filename": f"data-{part:05d}-of-00002.arrow"})
            table = arrow.Table.from_pylist(some).replace_schema_metadata(_features())
            sink = arrow.BufferOutputStream()
            with arrow.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            put(root / split / names[-1]["filename"], sink.getvalue().to_pybytes())
        put(root / f"{split}/state.json", json.dumps({"_data_files": names, "_indices_files": None}))
    return root / "train/data-00000-of-00002.arrow"


def clip(number: int, num_frames: int = 6) -> bytes:
    """A video whose frames grow brighter, at 10 a second."""
    av = pytest.importorskip("av")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        for n in range(num_frames):
            pixels = np.full((16, 32, 3), 40 * n + number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def video(root: Path) -> Path:
    for split, n, k in numbered():
        put(root / f"{split}/{('cat', 'dog')[n % 2]}/{n}.mkv", clip(k))
    return root / "train/cat/0.mkv"


def webdataset(root: Path) -> Path:
    with TemporaryDirectory() as folder:
        imagefolder(Path(folder))
        for split in SPLITS:
            # One sample a shard, so that a damaged file is one damaged sample.
            pack("imagefolder:.", root, root=folder, split=split, shard_bytes=1)
    return root / "train-00000.tar"


def damage(file: Path) -> None:
    """Spoil the sample in a file: the picture in a table, most of anything else; texts get a wrong byte."""
    data = file.read_bytes()
    if file.suffix == ".txt":
        file.write_bytes(b"\xff" + data)
    elif file.suffix in (".parquet", ".arrow"):
        file.write_bytes(data.replace(b"PNG", b"GNP"))
    else:
        file.write_bytes(data[:40])


WRITERS: dict[str, Callable[[Path], Path]] = {
    "ade20k": ade20k,
    "cityscapes": cityscapes,
    "coco": coco,
    "coco_captions": coco_captions,
    "coco_panoptic": coco_panoptic,
    "coco_vqa": coco_vqa,
    "hf_datasets": hf_datasets,
    "imagefolder": imagefolder,
    "infos": write_infos,
    "label_maps": label_maps,
    "manifest": manifest,
    "nuscenes": write_nuscenes,
    "parquet": parquet,
    "text": text,
    "video": video,
    "voc": voc,
    "voc_label_maps": voc_label_maps,
    "webdataset": webdataset,
    "yolo": yolo,
}
"""Format -> function that writes a set into a folder and says which file the first training sample is in."""
