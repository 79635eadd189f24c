"""What the verbs print and write, driven as the shell would drive them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from allsight.cli import demonstration, main
from allsight.config import apply_overrides, parse_yaml
from allsight.recipes import find_config, names

Capture = pytest.CaptureFixture[str]


def picture_of(world: Path) -> Path:
    return min((world / "label_maps" / "val").glob("*.jpg"))


def events_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "verb",
    [
        "train",
        "eval",
        "predict",
        "ask",
        "export",
        "config",
        "report",
        "doctor",
        "data world",
        "bench ops",
        "demo",
        "check-task",
        "watch",
        "data tokenizer",
    ],
)
def test_help_of_each_verb_has_an_example(verb: str, capsys: Capture) -> None:
    assert main([*verb.split(), "--help"]) == 0
    assert f"\n  allsight {verb}" in capsys.readouterr().out


def test_help_names_all_verbs(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(
        f"  {verb} " in text
        for verb in (
            "train",
            "eval",
            "predict",
            "ask",
            "export",
            "config",
            "report",
            "doctor",
            "bench",
            "demo",
            "check-task",
            "watch",
        )
    )


def test_version_is_printed(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip().count(".") == 2


def test_config_lists_recipes_with_a_line_each(capsys: Capture) -> None:
    assert main(["config", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(names())
    assert main(["config", "--list", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == list(names())


def test_config_prints_yaml_with_changes_marked_that_can_be_passed_in(
    tmp_path: Path, capsys: Capture
) -> None:
    changes = ["optim.lr=1e-3", "model.backbone.variant=nano", "tasks.tiny20.data=imagefolder:on"]
    assert main(["config", "internimage_micro_tiny20", *changes]) == 0
    text = capsys.readouterr().out
    was = find_config("internimage_micro_tiny20")[0].optim.lr
    assert f"  lr: 0.001  # changed, was {was}\n" in text
    assert "    channels: 16  # changed, was 32\n" in text
    file = tmp_path / "printed.yaml"
    file.write_text(text)
    expected = apply_overrides(find_config("internimage_micro_tiny20")[0], changes)
    assert find_config(str(file))[0] == expected
    assert main(["config", str(file)]) == 0
    assert "#" not in capsys.readouterr().out


def test_config_prints_json(capsys: Capture) -> None:
    assert main(["config", "joint_smoke", "seed=3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 3


def test_config_prints_who_gets_which_learning_rate(capsys: Capture) -> None:
    words = ["config", "internimage_h_in1k_640_layer_decay", "--parameters"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["lr", "x", "decay"] and len(lines) == 201
    assert main([*words, "optim.groups.layer_decay=1", "--json"]) == 0
    groups = json.loads(capsys.readouterr().out)
    assert [(group["lr_scale"], group["weight_decay"]) for group in groups] == [(1.0, 0.05), (1.0, 0.0)]
    assert main([*words, "optim.groups.compat=none", "optim.groups.stage_lr=[1]"]) == 2
    assert "stage_lr: expected 5 numbers" in capsys.readouterr().err


def test_train_writes_a_run_folder_and_says_what_came_out(trained: Path, world: Path) -> None:
    tree = parse_yaml((trained / "resolved.yaml").read_text(), where="resolved.yaml")
    assert (tree["format"], tree["name"], tree["data"]["root"]) == (1, "done", str(world))
    numbers = [e["step"] for e in events_of(trained) if e["kind"] == "train" and e["task"] is None]
    assert numbers == list(range(tree["schedule"]["steps"]))
    command = json.loads((trained / "environment.json").read_text())["command"]
    assert command[:3] == ["allsight", "train", "joint_smoke"]


def test_eval_scores_the_best_weights_unless_told(trained: Path, capsys: Capture) -> None:
    assert main(["eval", str(trained), "--json"]) == 0
    best = json.loads(capsys.readouterr().out)
    assert {"shapes/top1", "scenes/miou"} <= set(best["metrics"])
    assert main(["eval", str(trained), "--weights", "last", "--task", "shapes"]) == 0
    text = capsys.readouterr().out
    assert "shapes/top1" in text and "scenes/miou" not in text and "step-00000004 (last)" in text


def test_eval_names_the_pictures_it_had_to_leave_out(
    trained: Path, world: Path, tmp_path: Path, capsys: Capture
) -> None:
    run, data = shutil.copytree(trained, tmp_path / "run"), shutil.copytree(world, tmp_path / "world")
    file = run / "resolved.yaml"
    file.write_text(file.read_text().replace(str(world), str(data)))
    broken = min((data / "label_maps" / "val").glob("*.jpg"))
    broken.write_bytes(b"")
    assert main(["eval", str(run), "--task", "scenes"]) == 2
    assert "1 of 12 validation samples cannot be used" in capsys.readouterr().err
    file.write_text(file.read_text().replace("max_corrupt_fraction: 0.01", "max_corrupt_fraction: 0.1"))
    assert main(["eval", str(run), "--task", "scenes"]) == 0
    captured = capsys.readouterr()
    assert "scenes/miou" in captured.out
    note = f"note: scenes: val/{broken.name}: empty file (0 bytes); expected a picture; left out of the score"
    assert captured.err.splitlines() == [note]


def test_predict_answers_for_every_task_and_draws(
    trained: Path, world: Path, tmp_path: Path, capsys: Capture
) -> None:
    picture, other = picture_of(world), tmp_path / "twin" / picture_of(world).name
    other.parent.mkdir()
    Image.fromarray(np.zeros((40, 500, 3), np.uint8)).save(other)
    out = tmp_path / "drawn"
    assert main(["predict", str(trained), str(picture), str(other), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        [str(path), task] for task in ("shapes", "scenes") for path in (picture, other)
    ]
    drawn = [Path(line.rpartition("-> ")[2]) for line in lines]
    assert len(set(drawn)) == 4 and all(path.parent == out for path in drawn)
    for path in drawn:
        with Image.open(path) as image:
            assert min(image.size) >= 40 and image.mode == "RGB"


def test_predict_explains_what_the_backbone_sees(
    trained: Path, world: Path, tmp_path: Path, capsys: Capture
) -> None:
    picture = next((world / "imagefolder").rglob("*.jpg"))
    words = ["predict", str(trained), str(picture), "--task", "shapes", "--out", str(tmp_path), "--explain"]
    assert main(words) == 0
    assert f"explained: {tmp_path / 'explained' / 'index.html'}" in capsys.readouterr().err
    names = {file.name for file in (tmp_path / "explained").iterdir()}
    stem = picture.stem
    assert names == {
        "explain.json",
        "field.png",
        "index.html",
        f"{stem}-displacement.png",
        f"{stem}-sampling.png",
    }


def test_export_writes_a_program_of_a_run(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "shapes.pt2"
    assert main(["export", str(trained), str(file), "--task", "shapes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == [str(file)] and file.is_file()
    assert told["outputs"] == ["logits"] and max(check["difference"] for check in told["checks"]) < 1e-4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x.pt2"], "task: name one of: shapes, scenes"),
        (["x.pt2", "--task", "shape"], "no task 'shape'"),
        (["x.bin", "--task", "shapes"], "format: cannot tell from 'x.bin'"),
        (["x.pt2", "--size", "big"], "--size: expected pixels as 224 or 256x320"),
        (["x.pt2", "--input", "float"], "--input: expected one of normalised, uint8, got 'float'"),
    ],
)
def test_export_says_what_is_wrong(
    trained: Path, tmp_path: Path, capsys: Capture, words: list[str], said: str
) -> None:
    assert main(["export", str(trained), str(tmp_path / words[0]), *words[1:]]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_predict_prints_json_with_as_many_classes_as_asked(
    trained: Path, world: Path, capsys: Capture
) -> None:
    assert (
        main(["predict", str(trained), str(picture_of(world)), "--json", "--top", "2", "--task", "shapes"])
        == 0
    )
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["picture"] == str(picture_of(world)) and answer["task"] == "shapes"
    assert len(answer["top"]) == 2 and answer["top"][0][1] >= answer["top"][1][1]


def test_predict_leaves_out_what_cannot_be_read_and_says_so(
    trained: Path, world: Path, tmp_path: Path, capsys: Capture
) -> None:
    torn, empty = tmp_path / "torn.jpg", tmp_path / "empty.jpg"
    torn.write_bytes(picture_of(world).read_bytes()[:300])
    empty.write_bytes(b"")
    words = [str(torn), str(tmp_path / "none.jpg"), str(picture_of(world)), str(empty), str(tmp_path)]
    assert main(["predict", str(trained), *words, "--task", "shapes"]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{picture_of(world)}: shapes: ") and captured.out.count("\n") == 1
    faults = captured.err.splitlines()
    assert len(faults) == 4
    for path, line in zip([torn, tmp_path / "none.jpg", empty, tmp_path], faults, strict=True):
        assert line.startswith(str(path))


def test_a_recipe_with_random_weights_predicts_when_told_so(
    world: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALLSIGHT_DATA", str(world))
    words = ["predict", "joint_smoke", str(picture_of(world)), "--weights", "random", "--task", "shapes"]
    assert main(words) == 0
    assert "shapes: " in capsys.readouterr().out
    assert main(["predict", "joint_smoke", str(picture_of(world))]) == 2
    assert "has no weights; give --weights" in capsys.readouterr().err


def test_report_is_one_file_and_can_compare(trained: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(trained), "--out", str(out), "--compare", str(trained)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert out.read_text().startswith("<!doctype html>") or out.read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("presses", "said"),
    [(1, "stopped at step 3 by signal SIGINT, saved"), (2, "stopped at step 2; go on with")],
)
def test_ctrl_c_saves_and_a_second_one_stops_at_once(
    presses: int, said: str, world: Path, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from allsight.engine.trainer import Trainer

    def fit_until_pressed(self: Trainer) -> dict[str, float]:
        for step in self:
            if step.number == 1:
                for _ in range(presses):
                    signal.raise_signal(signal.SIGINT)
        return {}

    monkeypatch.setattr(Trainer, "fit", fit_until_pressed)
    words = ["train", "joint_smoke", f"data.root={world}", "checkpoint.every_steps=4", "--quiet"]
    assert main([*words, "--runs", str(tmp_path)]) == 130
    error = capfd.readouterr().err
    assert said in error and "Ctrl-C again stops at once" in error
    assert (tmp_path / "joint_smoke/checkpoints/step-00000003/COMPLETE").is_file() == (presses == 1)


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(
    trained: Path, world: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from allsight.engine.trainer import Trainer

    whole = Trainer.fit

    def fit_until_interrupted(self: Trainer) -> dict[str, float]:
        for step in self:
            if step.number == 2:
                raise KeyboardInterrupt
        return {}

    words = [
        "train",
        "joint_smoke",
        f"data.root={world}",
        "--runs",
        str(tmp_path),
        "--name",
        "done",
        "--quiet",
    ]
    monkeypatch.setattr(Trainer, "fit", fit_until_interrupted)
    assert main(words) == 130
    assert f"train {tmp_path / 'done'} --resume" in capsys.readouterr().err
    monkeypatch.setattr(Trainer, "fit", whole)
    assert (
        main(["train", str(tmp_path / "done"), "--resume", "--quiet", "data.workers=1", "eval.pictures=2"])
        == 0
    )
    notes = [e["text"] for e in events_of(tmp_path / "done") if e["kind"] == "note"]
    assert "resumed with data.workers=1 (was 0)" in notes and "resumed with eval.pictures=2 (was 4)" in notes
    losses = {
        e["step"]: e["values"]["loss"] for e in events_of(trained) if e["kind"] == "train" and not e["task"]
    }
    again = {
        e["step"]: e["values"]["loss"]
        for e in events_of(tmp_path / "done")
        if e["kind"] == "train" and not e["task"]
    }
    assert again == losses


def test_a_recipe_and_resume_find_the_run_by_its_name(trained: Path, world: Path, capsys: Capture) -> None:
    words = [
        "train",
        "joint_smoke",
        f"data.root={world}",
        "--runs",
        str(trained.parent),
        "--resume",
        "--quiet",
    ]
    assert main([*words, "--name", "done"]) == 0
    assert "run folder:" in capsys.readouterr().out
    assert main([*words, "--name", "other"]) == 2
    assert "no such run to resume" in capsys.readouterr().err
    assert main([*words, "--name", "done", "seed=5"]) == 2
    assert "config.seed: the run was started with 0, now 5" in capsys.readouterr().err


def test_doctor_prints_json(tmp_path: Path, world: Path, capsys: Capture) -> None:
    assert main(["doctor", "--json", "--runs", str(tmp_path / "runs"), "--root", str(world)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"versions", "devices", "operators", "extras", "disk", "speed"}
    assert found["operators"]["dcnv3"]["value"]["chosen"] in ("reference", "cpu", "triton")
    assert not (tmp_path / "runs").exists()


def test_data_world_makes_what_was_asked(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "w"
    words = ["data", "world", str(out), "--pictures", "12", "--val", "12", "--size", "32", "--seed", "3"]
    assert main([*words, "--processes", "1", "--difficulty", "easy", "--quiet"]) == 0
    assert f"data.root={out}" in capsys.readouterr().out
    assert json.loads((out / "world.json").read_text())["seed"] == 3
    with Image.open(picture_of(out)) as image:
        assert image.size == (32, 32)


def test_the_demo_runs_again_and_its_commands_work_as_printed(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demonstration, "_RECIPE", "joint_smoke")
    monkeypatch.setattr(demonstration, "_WORLD", {"seed": 0, "size_px": 32, "train": 24, "val": 12})
    monkeypatch.setattr(demonstration, "_PRETRAINING_RECIPE", "m3i_world_smoke")
    monkeypatch.setattr(demonstration, "_LANGUAGE_RECIPE", "uni_perceiver_world_smoke")
    monkeypatch.setattr(demonstration, "_LANGUAGE", {"seed": 0, "train": 224, "val": 12, "pairs": 32})
    monkeypatch.setattr(demonstration, "_DRIVING_RECIPE", "bevformer_micro_smoke")
    drives = {"seed": 0, "train": 1, "val": 1, "frames": 2, "hw_px": (32, 64)}
    monkeypatch.setattr(demonstration, "_DRIVES", drives)
    monkeypatch.setattr("allsight.launch.run.usable_cores", lambda: 1)
    assert main(["demo", "--quiet"]) == 0
    first = capsys.readouterr().out
    assert "generated 72 pictures" in first and Path("runs/demo/report.html").is_file()
    assert "neighbours by its features find" in first
    assert first.count("asked to describe ") == 3 and Path("runs/demo-language/report.html").is_file()
    page = Path("runs/demo-pretraining/report.html").read_text()
    with Image.open("runs/demo-pretraining/pretraining.png") as sheet:
        assert sheet.width > 7 * 128
    assert page.count("<figcaption>Inputs mixed of two views") == 1 and "top1 of probes" in page
    assert main(["demo", "--quiet"]) == 0
    second = capsys.readouterr().out
    assert "using the world in runs/demo-data" in second and Path("runs/demo-2/report.html").is_file()
    lines = first.partition("five commands to try next:\n")[2].splitlines()
    assert len(lines) == 5
    for line in lines:
        words = shlex.split(line)
        verb = next(
            i for i, word in enumerate(words) if word in ("predict", "eval", "config", "train", "doctor")
        )
        assert main(words[verb:]) == 0, line
    assert Path("runs/bigger/resolved.yaml").is_file()
    # A world of other settings is replaced, anything else is not touched.
    monkeypatch.setitem(demonstration._WORLD, "seed", 1)
    assert main(["demo", "--quiet"]) == 0
    assert "replacing it" in capsys.readouterr().out
    Path("mine/demo-data").mkdir(parents=True)
    Path("mine/demo-data/letter.txt").write_text("dear")
    assert main(["demo", "--quiet", "--runs", "mine"]) == 2
    assert Path("mine/demo-data/letter.txt").read_text() == "dear"


def test_bench_ops_writes_a_page_and_prints_a_table(tmp_path: Path, capsys: Capture) -> None:
    words = ["bench", "ops", "--only", "dcnv3-224-b1-s4", "--pairs", "2", "--out", str(tmp_path)]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "| dcnv3-224-b1-s4 | forward " in text and "instruction set" in text
    (page,) = tmp_path.glob("*.md")
    assert text.splitlines()[-1] == str(page) and page.with_suffix(".png").is_file()
    assert "allsight bench ops --only=dcnv3-224-b1-s4 --pairs=2" in page.read_text()


def test_bench_ops_prints_json(capsys: Capture) -> None:
    assert main(["bench", "ops", "--only", "call", "--pairs", "2", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert [row["case"] for row in tree["rows"]] == ["call-dcnv3", "call-msda"] and tree["pairs"] == 2


def test_bench_ops_refuses_to_speak_of_speed_when_results_differ(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    from allsight import ops

    right = ops.dcnv3
    monkeypatch.setattr(
        ops, "dcnv3", lambda *args, **kwargs: right(*args, **kwargs) * (1 if "backend" in kwargs else 1.01)
    )
    words = ["bench", "ops", "--only", "call", "--pairs", "2"]
    assert main([*words, "--out", str(tmp_path / "none")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and not (tmp_path / "none").exists()
    assert "call-dcnv3: output differs from that of official by 1.0e-02 of its largest value" in err
    assert main([*words, "--json"]) == 1
    tree = json.loads(capsys.readouterr().out)
    assert tree["rows"] == [] and tree["differences"][0]["tensor"] == "output"


def test_bench_ops_names_the_nearest_case(capsys: Capture) -> None:
    assert main(["bench", "ops", "--only", "dcnv3-224-b2"]) == 2
    assert "bench ops: no case 'dcnv3-224-b2'; did you mean 'dcnv3-224-b" in capsys.readouterr().err
    assert main(["bench", "ops", "--only", "call", "--quick"]) == 2


def test_bench_ops_refuses_an_instruction_set_that_is_not_there() -> None:
    words = [sys.executable, "-m", "allsight.cli", "bench", "ops", "--only", "call"]
    environment = {**os.environ, "ALLSIGHT_CPU_ISA": "none-such", "ALLSIGHT_BACKEND": ""}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stderr.startswith("bench ops: the CPU kernels")
    assert done.stderr.count("\n") == 1
