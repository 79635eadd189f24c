"""A world in the formats real data comes in.

imagefolder/{train,val}/<shape>/portrait_000000.jpg     classification: the shape of the main object
coco/images/{train,val}/scene_000000.jpg                detection and instance segmentation
coco/annotations/instances_{train,val}.json
label_maps/{train,val}/scene_000000.jpg                 semantic segmentation, the same scenes as in coco/
label_maps/{train,val}_labels/scene_000000.png          8-bit class values, 255 = ignore
label_maps/classes.json
scenes_{train,val}.jsonl                                the scene graphs behind them, portraits first
world.json                                              what was asked for and what is there
"""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import simplejpeg
from PIL import Image

from allsight.config import ConfigError
from allsight.data.world.masks import to_segmentation
from allsight.data.world.options import World
from allsight.data.world.rendering import Rendered, compose
from allsight.data.world.sampling import SPLITS
from allsight.data.world.scene import Scene
from allsight.data.world.vocabulary import IGNORE_LABEL, LABEL_CLASSES, SHAPES

FORMAT = 1
"""Version of this layout, in world.json."""

# Ids are unique over both splits, as COCO's own are.
_FIRST_IMAGE_ID = {"train": 1, "val": 100_000_001}
_ANNOTATIONS_PER_IMAGE = 100


def make_folders(root: Path) -> None:
    """Create every folder of the layout."""
    for split in SPLITS:
        for shape in SHAPES:
            (root / "imagefolder" / split / shape).mkdir(parents=True)
        (root / "coco" / "images" / split).mkdir(parents=True)
        (root / "label_maps" / split).mkdir(parents=True)
        (root / "label_maps" / f"{split}_labels").mkdir(parents=True)
    (root / "coco" / "annotations").mkdir()


def write_picture(
    config: World.Config, root: Path, split: str, stream: str, index: int
) -> tuple[str, dict | None]:
    """Compose one scene and write its picture and truth.

    Returns:
        Its line of scenes_{split}.jsonl, and its part of the COCO json (`image`, `annotations`), None for
        a portrait.
    """
    scene, rendered = compose(config, split, stream, index)
    jpeg = simplejpeg.encode_jpeg(rendered.picture, quality=config.jpeg_quality, colorsubsampling="444")
    if scene.main is not None:
        files = {"imagefolder": f"imagefolder/{split}/{scene.toys[scene.main].shape}/{scene.name}.jpg"}
        part = None
    else:
        files = {
            "coco": f"coco/images/{split}/{scene.name}.jpg",
            "label_maps": f"label_maps/{split}/{scene.name}.jpg",
        }
        labels = io.BytesIO()
        Image.fromarray(rendered.labels).save(labels, format="PNG", compress_level=4)
        _write_new(root / f"label_maps/{split}_labels/{scene.name}.png", labels.getvalue())
        part = coco_part(scene, rendered)
    first, *others = (root / file for file in files.values())
    _write_new(first, jpeg)
    for other in others:
        same_file(first, other)
    return json.dumps({"files": files, "scene": scene.to_json()}, separators=(",", ":")), part


def _write_new(path: Path, content: bytes) -> None:
    """Write a file that does not exist; half the calls of `Path.write_bytes`, which tell in a small file."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(file, left) :]
    finally:
        os.close(file)


def same_file(written: Path, other: Path) -> None:
    """Give a file a second name, or write it twice where the file system knows no links.

    A new file costs up to a millisecond on a disk, a name ten microseconds and no space.
    """
    try:
        os.link(written, other)
    except OSError:
        shutil.copyfile(written, other)


def coco_part(scene: Scene, rendered: Rendered) -> dict[str, Any]:
    """The image and annotation entries of one scene: boxes and masks of the visible parts."""
    side = scene.camera.size_px
    image_id = _FIRST_IMAGE_ID[scene.split] + scene.index
    annotations = []
    for k, toy in enumerate(scene.toys):
        assert toy.box_xyxy_px is not None, "composed scenes have boxes"
        left, top, right, low = toy.box_xyxy_px
        annotations.append(
            {
                "id": image_id * _ANNOTATIONS_PER_IMAGE + k,
                "image_id": image_id,
                "category_id": SHAPES.index(toy.shape) + 1,
                "bbox": [left, top, right - left, low - top],
                "area": toy.pixels,
                "iscrowd": 0,
                "segmentation": to_segmentation(rendered.instances == k + 1, toy.box_xyxy_px),
                "attributes": {"colour": toy.colour, "size": toy.size, "texture": toy.texture},
                "visible": toy.visible,
            }
        )
    image = {"id": image_id, "file_name": f"{scene.name}.jpg", "width": side, "height": side}
    return {"image": image, "annotations": annotations}


def write_coco(root: Path, split: str, parts: list[dict[str, Any]]) -> int:
    """Write instances_{split}.json; returns the number of annotations."""
    annotations = [annotation for part in parts for annotation in part["annotations"]]
    tree = {
        "info": {"description": "allsight embedded world, generated pictures", "version": str(FORMAT)},
        "licenses": [],
        "images": [part["image"] for part in parts],
        "annotations": annotations,
        "categories": [{"id": n + 1, "name": name, "supercategory": "toy"} for n, name in enumerate(SHAPES)],
    }
    _write_json(root / "coco" / "annotations" / f"instances_{split}.json", tree, indent=None)
    return len(annotations)


def write_class_names(root: Path) -> None:
    """Write label_maps/classes.json: names in order of their values, and the value to ignore."""
    _write_json(
        root / "label_maps" / "classes.json", {"classes": list(LABEL_CLASSES), "ignore": IGNORE_LABEL}
    )


def write_world_json(root: Path, config: World.Config, counts: dict[str, dict[str, int]]) -> None:
    """Write world.json, the last file of a world."""
    options = config.model_dump(mode="json")
    tree = {
        "format": FORMAT,
        "kind": "allsight world",
        "seed": config.seed,
        "options": options,
        "counts": counts,
    }
    _write_json(root / "world.json", tree)


def read_scenes(root: Path | str, split: str) -> Iterator[tuple[Scene, dict[str, str]]]:
    """The scenes of a split in order, each with the files made from it (format -> path below `root`).

    Raises:
        ConfigError: There is no such file; the folder is no world.
    """
    path = Path(root) / f"scenes_{split}.jsonl"
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; expected a folder made by `allsight data world`")
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            data = json.loads(line)
            yield Scene.from_json(data["scene"]), data["files"]


def _write_json(path: Path, tree: dict[str, Any], indent: int | None = 1) -> None:
    separators = (",", ":") if indent is None else None
    path.write_text(json.dumps(tree, indent=indent, separators=separators) + "\n", encoding="utf-8")
