"""The embedded world: repeatable, true to its own scene graphs, complete in every format."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from allsight.config import ConfigError
from allsight.data.world import Scene, World, compose, generate_world, read_scenes, render
from allsight.data.world.sampling import sample_scene
from allsight.data.world.vocabulary import COLOURS, IGNORE_LABEL, LABEL_CLASSES, SHAPES, TEXTURES

SMALL = World.Config(seed=7, size_px=48, train=36, val=12)


def fingerprint(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_world(tmp_path_factory.mktemp("made") / "world", SMALL)


@pytest.fixture(scope="module")
def composed() -> list[tuple[Scene, object]]:
    hard = World.Config.variant("hard", seed=3)
    return [compose(hard, "train", "scenes", index) for index in range(25)]


def test_the_same_seed_gives_the_same_bytes_with_one_or_two_workers(world: Path, tmp_path: Path):
    again = generate_world(tmp_path / "again", SMALL, workers=2)
    assert fingerprint(again) == fingerprint(world)


def test_another_seed_gives_other_pictures():
    first, second = (compose(World.Config(seed=seed), "train", "scenes", 0)[1].picture for seed in (0, 1))
    assert (first != second).mean() > 0.5


def test_a_scene_depends_on_its_number_and_not_on_how_many_there_are(world: Path, tmp_path: Path):
    fewer = generate_world(tmp_path / "fewer", SMALL.model_copy(update={"train": 24}))
    ours, theirs = fingerprint(fewer), fingerprint(world)
    pictures = [name for name in ours if name.endswith((".jpg", ".png"))]
    assert len(pictures) == 4 * (24 + 12)
    assert all(ours[name] == theirs[name] for name in pictures)


def test_train_and_val_share_no_picture(world: Path):
    prints = {name: digest for name, digest in fingerprint(world).items() if name.endswith(".jpg")}
    splits = [
        {digest for name, digest in prints.items() if f"/{split}/" in name} for split in ("train", "val")
    ]
    assert len(splits[0]) == 72 and len(splits[1]) == 24
    assert not splits[0] & splits[1]


def test_a_scene_read_from_its_line_renders_to_the_picture_that_was_written(world: Path):
    seen = 0
    for scene, files in read_scenes(world, "val"):
        rendered = render(scene)
        if "label_maps" in files:
            stored = Image.open(
                world / files["label_maps"].replace("val/", "val_labels/").replace(".jpg", ".png")
            )
            assert stored.mode == "L" and (np.array(stored) == rendered.labels).all()
        jpeg = simplejpeg.encode_jpeg(rendered.picture, quality=SMALL.jpeg_quality, colorsubsampling="444")
        assert all((world / file).read_bytes() == jpeg for file in files.values())
        assert Scene.from_json(json.loads(json.dumps(scene.to_json()))) == scene
        seen += 1
    assert seen == 24


def test_boxes_are_tight_around_the_visible_masks(composed: list):
    for scene, rendered in composed:
        assert scene.toys
        for number, toy in enumerate(scene.toys):
            mask = rendered.instances == number + 1
            rows, columns = np.nonzero(mask)
            tight = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert toy.box_xyxy_px == tight
            assert toy.pixels == mask.sum()
        assert rendered.instances.max() == len(scene.toys)


def test_every_toy_is_as_visible_as_is_said_and_as_was_asked(composed: list):
    hidden = 0
    for scene, rendered in composed:
        for number, toy in enumerate(scene.toys):
            alone = render(replace(scene, toys=(toy,), stones=(), relations=(), main=None)).instances == 1
            visible = (rendered.instances == number + 1).sum() / alone.sum()
            assert toy.visible == pytest.approx(visible, abs=1e-4)
            assert toy.visible >= 1 - 0.7
            hidden += toy.visible < 0.95
    assert hidden > 20, "the hard world should hide things"


def test_nothing_is_hidden_where_no_occlusion_is_wanted():
    easy = World.Config.variant("easy")
    for index in range(20):
        scene, _ = compose(easy, "train", "scenes", index)
        assert all(toy.visible == 1.0 for toy in scene.toys)
        assert all(relation != "hides" for _, relation, _ in scene.relations)


def test_label_maps_agree_with_instance_maps(composed: list):
    for scene, rendered in composed:
        of_instance = np.array([0] + [LABEL_CLASSES.index(toy.shape) for toy in scene.toys])
        things = rendered.instances > 0
        assert (rendered.labels[things] == of_instance[rendered.instances[things]]).all()
        rest = rendered.labels[~things]
        assert ((rest < 4) | (rest == IGNORE_LABEL)).all()
        assert (rest == IGNORE_LABEL).any() <= bool(scene.stones)


def test_relations_follow_from_what_is_seen(composed: list):
    kinds = set()
    for scene, _ in composed:
        for first, relation, second in scene.relations:
            a, b = scene.toys[first], scene.toys[second]
            kinds.add(relation)
            if relation == "left_of":
                assert a.box_xyxy_px[0] + a.box_xyxy_px[2] < b.box_xyxy_px[0] + b.box_xyxy_px[2]
            elif relation == "in_front_of":
                assert a.y_m < b.y_m
            else:
                assert relation == "hides" and b.visible < 1.0
    assert kinds == {"left_of", "in_front_of", "hides"}


def test_words_of_the_scenes_are_those_of_the_vocabulary(composed: list):
    toys = [toy for scene, _ in composed for toy in scene.toys]
    assert {toy.shape for toy in toys} == set(SHAPES)
    assert {toy.colour for toy in toys} == set(COLOURS)
    assert {toy.texture for toy in toys} == set(TEXTURES)
    for size, other in (("small", "medium"), ("medium", "large")):
        smaller = max(toy.scale_m for toy in toys if toy.size == size)
        assert smaller < min(toy.scale_m for toy in toys if toy.size == other)


def test_portraits_are_balanced_and_show_their_class_largest():
    config = World.Config(seed=5)
    scenes = [compose(config, "train", "portraits", index)[0] for index in range(36)]
    assert sorted(scene.toys[scene.main].shape for scene in scenes) == sorted(SHAPES * 3)
    for scene in scenes:
        main, *others = scene.toys
        assert main.visible > 0.9
        assert all(main.pixels > other.pixels for other in others)
        assert main.pixels > 0.04 * 96 * 96


def test_image_folders_have_the_class_in_their_name(world: Path):
    for split, count in (("train", 36), ("val", 12)):
        folders = sorted((world / "imagefolder" / split).iterdir())
        assert [folder.name for folder in folders] == list(SHAPES)
        assert [len(list(folder.iterdir())) for folder in folders] == [count // 12] * 12


def test_coco_json_is_complete_and_agrees_with_the_pictures(world: Path):
    ids: set[int] = set()
    for split, count in (("train", 36), ("val", 12)):
        tree = json.loads((world / "coco" / "annotations" / f"instances_{split}.json").read_text())
        assert [c["name"] for c in tree["categories"]] == list(SHAPES)
        assert len({c["id"] for c in tree["categories"]}) == 12
        images = {image["id"]: image for image in tree["images"]}
        assert len(images) == count
        files = sorted(path.name for path in (world / "coco" / "images" / split).iterdir())
        assert sorted(image["file_name"] for image in images.values()) == files
        scenes = [scene for scene, _ in read_scenes(world, split) if scene.stream == "scenes"]
        toys = [toy for scene in scenes for toy in scene.toys]
        assert len(toys) == len(tree["annotations"])
        for toy, annotation in zip(toys, tree["annotations"], strict=True):
            assert annotation["id"] not in ids
            ids.add(annotation["id"])
            x, y, w, h = annotation["bbox"]
            assert (x, y, x + w, y + h) == toy.box_xyxy_px
            assert annotation["area"] == toy.pixels
            assert tree["categories"][annotation["category_id"] - 1]["name"] == toy.shape
            assert annotation["image_id"] in images and annotation["iscrowd"] == 0
            if isinstance(annotation["segmentation"], list):
                corners = np.concatenate([np.reshape(p, (-1, 2)) for p in annotation["segmentation"]])
                assert (*corners.min(axis=0), *corners.max(axis=0)) == toy.box_xyxy_px


def test_the_readers_of_real_data_give_back_what_was_rendered(world: Path):
    from allsight.data.readers import open_reader

    detection, segmentation, classification = (
        open_reader(f"{format}:{format}", root=world, split="val")
        for format in ("coco", "label_maps", "imagefolder")
    )
    assert detection.classes == classification.classes == SHAPES and segmentation.classes == LABEL_CLASSES
    portraits = {sample.id.rpartition("/")[2]: sample for sample in (classification[i] for i in range(12))}
    number = {"portraits": 0, "scenes": 0}
    for scene, _ in read_scenes(world, "val"):
        number[scene.stream] += 1
        if scene.main is not None:
            label = portraits[f"{scene.name}.jpg"].targets["label"]
            assert classification.classes[label] == scene.toys[scene.main].shape
            continue
        index, rendered = scene.index, render(scene)
        labels = segmentation[index].targets["label_map"].pixels.numpy()
        assert (labels == rendered.labels).all()
        objects = detection[index].targets["objects"]
        assert [detection.classes[label] for label in objects.labels] == [toy.shape for toy in scene.toys]
        assert objects.boxes_xyxy_px.tolist() == [list(toy.box_xyxy_px) for toy in scene.toys]
        for position, mask in enumerate(objects.masks.numpy()):
            assert (mask == (rendered.instances == position + 1)).all()
        pixels = detection[index].inputs["image"].pixels.permute(1, 2, 0).numpy().astype(int)
        assert np.abs(pixels - rendered.picture).mean() < 6
    assert number == {"portraits": 12, "scenes": 12}


def test_the_world_says_what_it_is(world: Path):
    tree = json.loads((world / "world.json").read_text())
    assert tree["format"] == 1 and tree["seed"] == 7
    assert World.Config(**tree["options"]) == SMALL
    assert tree["counts"]["val"]["portraits"] == 12
    names = json.loads((world / "label_maps" / "classes.json").read_text())
    assert names == {"classes": list(LABEL_CLASSES), "ignore": 255}


@pytest.mark.parametrize("size", [32, 33, 97, 256])
def test_any_size_can_be_drawn(size: int):
    for stream in ("portraits", "scenes"):
        scene, rendered = compose(World.Config(size_px=size), "val", stream, 2)
        assert rendered.picture.shape == (size, size, 3) and scene.toys


@pytest.mark.parametrize("option", ["noise", "clutter", "texture", "colour_similarity"])
def test_difficulty_does_what_it_says(option: str):
    low, high = (World.Config.variant("easy", **{option: value}) for value in (0.0, 1.0))
    scenes = [
        [sample_scene(config, "train", "scenes", index) for index in range(30)] for config in (low, high)
    ]
    if option == "noise":
        assert {scene.noise for scene in scenes[0]} == {0} and min(scene.noise for scene in scenes[1]) >= 12
    elif option == "clutter":
        assert not any(scene.stones or scene.place.hills or scene.place.clouds for scene in scenes[0])
        assert sum(bool(scene.stones) for scene in scenes[1]) > 10
    elif option == "texture":
        textures = [{toy.texture for scene in part for toy in scene.toys} for part in scenes]
        assert textures[0] == {"plain"} and textures[1] == set(TEXTURES) - {"plain"}
    else:
        away = []
        for part in scenes:
            pairs = [(toy.rgb, scene.place.ground_rgb) for scene in part for toy in scene.toys]
            away.append(np.abs(np.diff(np.array(pairs, dtype=int), axis=1)).mean())
        assert away[1] < 0.6 * away[0]


def test_an_existing_folder_is_refused_and_left_alone(world: Path, tmp_path: Path):
    before = fingerprint(world)
    with pytest.raises(ConfigError, match="exists and is not an empty folder; remove it"):
        generate_world(world, SMALL)
    assert fingerprint(world) == before
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ConfigError, match="not an empty folder"):
        generate_world(file, SMALL)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert (generate_world(empty, SMALL.model_copy(update={"train": 12, "val": 12})) / "world.json").is_file()


@pytest.mark.parametrize(
    "wrong",
    [{"size_px": 16}, {"size_px": 512}, {"objects": (3, 2)}, {"train": 3}, {"noise": 2.0}, {"sizes": 96}],
)
def test_wrong_options_are_refused(wrong: dict):
    with pytest.raises(ConfigError):
        World.Config(**wrong)


def test_no_world_is_no_world(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"scenes_train\.jsonl: no such file"):
        next(read_scenes(tmp_path, "train"))
    with pytest.raises(ConfigError, match="workers"):
        generate_world(tmp_path / "w", SMALL, workers=0)


def test_an_interrupted_generation_leaves_nothing(tmp_path: Path):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate_world(tmp_path / "world", SMALL, on_progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_generation_never_looks_complete_and_is_cleared_away(tmp_path: Path):
    code = (
        "from allsight.data.world import *; import sys;"
        "say = lambda *_: print('on', flush=True);"
        "generate_world(sys.argv[1], World.Config(train=100000), on_progress=say)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "world")], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"on\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "world").exists()
    assert len(list(tmp_path.iterdir())) == 1
    generate_world(tmp_path / "world", SMALL.model_copy(update={"train": 12, "val": 12}))
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


def test_progress_is_told(tmp_path: Path):
    calls: list[tuple[int, int]] = []
    generate_world(
        tmp_path / "w",
        SMALL.model_copy(update={"train": 12, "val": 12}),
        on_progress=lambda *c: calls.append(c),
    )
    assert calls[-1] == (48, 48) and calls == sorted(calls)


def test_the_world_needs_no_torch():
    code = "import sys, allsight.data.world; sys.exit('torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
