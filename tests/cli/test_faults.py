"""What is the user's to mend is one line on the error stream and exit status 2; a bug keeps its traceback."""

from __future__ import annotations

import errno
import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from allsight import ops
from allsight.cli import main
from allsight.config import dump, dump_yaml
from allsight.recipes import find_config

Capture = pytest.CaptureFixture[str]


def fault(words: list[str], capsys: Capture, status: int = 2) -> str:
    """The one line that a command says on the error stream."""
    assert main(words) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err.strip()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("trian x", "no command 'trian'; did you mean 'train'?"),
        ("data wrld x", "no command 'wrld'; did you mean 'world'?"),
        ("train", "Missing argument 'RECIPE'; see allsight train --help"),
        ("train joint_world --resum", "No such option: --resum"),
        ("config", "name a recipe, or --list to see them"),
        ("config joint_world --list", "--list lists all recipes; leave out 'joint_world'"),
        ("predict joint_world", "Missing argument 'PICTURE...'; see allsight predict --help"),
        ("predict joint_world x.jpg --top 0", "Invalid value for '--top'"),
        ("train joint_world --processes 0", "Invalid value for '--processes'"),
        ("train joint_world --processes 2 --gpus 2", "--processes and --gpus say the same thing; give one"),
        ("train joint_world --gpus 64", "--gpus 64: this machine has "),
    ],
)
def test_a_wrong_command_is_one_line(words: str, line: str, capsys: Capture) -> None:
    assert line in fault(words.split(), capsys)


@pytest.mark.parametrize("verb", ["config", "train"])
@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("joint_wrld", "no recipe 'joint_wrld'; did you mean 'joint_world'?"),
        ("joint_world optm.lr=1", "config.optm: no such field; did you mean 'optim'?"),
        ("joint_world optim.lr=fast", "config.optim.lr: expected float, got 'fast'"),
        ("joint_world optim.lr", "'optim.lr': expected key.path=value, such as optim.lr=2e-4"),
        ("joint_world tasks.shaps.share=1", "config.tasks.shaps: no such item; did you mean 'shapes'?"),
        (
            "joint_world schedule.steps=null schedule.epochs=3",
            "config: schedule.epochs=3 needs exactly one task, since tasks have epochs of different lengths;",
        ),
        (
            "joint_world model.backbone.groups=[1]",
            "config.model.backbone: groups: expected one number per stage",
        ),
        ("none.yaml", "none.yaml: no such file"),
        ("none.py:recipe", "none.py: no such file"),
    ],
)
def test_wrong_settings_are_one_line(
    verb: str, words: str, line: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert line in fault([verb, *words.split()], capsys)
    assert not list(tmp_path.iterdir())


def test_two_faults_are_two_lines(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    text = dump_yaml(dump(find_config("joint_world")[0]))
    file.write_text(text.replace("clip_norm", "clip_nrom").replace("workers: 0", "workers: -1"))
    assert main(["config", str(file)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith(f"{file}: config.") for line in lines)


def test_a_run_that_exists_is_refused_with_the_remedy(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/joint_world")
    folder.mkdir(parents=True)
    (folder / "resolved.yaml").write_text("format: 1\n")
    line = fault(["train", "joint_world"], capsys)
    assert line == f"{folder}: a run of this name exists; go on with it by --resume, or choose another --name"
    (Path("runs") / "file").write_text("")
    assert "runs/file: a run of this name exists" in fault(["train", "joint_world", "--name", "file"], capsys)


@pytest.mark.parametrize(
    "words",
    [
        "data pack imagefolder:{world}/imagefolder {file}",
        "data world {file}/below --pictures 12",
        "bench ops --quick --out {file}",
        "export internimage_micro_tiny20 {file}/net.pt2 --weights random",
    ],
)
def test_a_file_where_a_folder_is_to_be_is_named(
    words: str, world: Path, tmp_path: Path, capsys: Capture
) -> None:
    file = tmp_path / "file"
    file.write_text("kept")
    line = fault([word.format(world=world, file=file) for word in words.split()], capsys)
    assert f"{file}: exists and is not a folder; name another, or move it away" in line
    assert file.read_text() == "kept"


@pytest.mark.parametrize("verb", ["inspect", "scan"])
def test_a_relative_path_that_is_nowhere_is_named(
    verb: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALLSIGHT_DATA", raising=False)
    line = fault(["data", verb, "nowhere"], capsys)
    assert line == f"nowhere: no such file or folder (looked in {tmp_path}; ALLSIGHT_DATA is not set)"


def test_recipes_that_helps_name_exist() -> None:
    from typer.main import get_command

    from allsight.cli.app import app
    from allsight.recipes import names

    pending: list[tuple[str, Any]] = [("", get_command(app))]
    while pending:
        path, command = pending.pop()
        pending += [(f"{path} {name}", sub) for name, sub in getattr(command, "commands", {}).items()]
        verbs = r"(?:train|plan|eval|predict|export|config|ask)"
        for named in re.findall(rf"allsight {verbs} ([a-z][a-z0-9_]*)(?=[ \n]|$)", command.help or ""):
            assert named in names(), f"{path}: {named}"


def test_a_missing_data_root_is_named(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ALLSIGHT_DATA", raising=False)
    assert "ALLSIGHT_DATA" in fault(["train", "joint_smoke", "--quiet"], capsys)
    line = fault(["train", "joint_smoke", f"data.root={tmp_path}/none", "--quiet"], capsys)
    assert f"{tmp_path}/none" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("verb", ["eval", "config", "report", "predict", "train"])
def test_a_run_of_a_newer_format_is_refused_by_every_verb(verb: str, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "resolved.yaml").write_text(f"format: 99\n{dump_yaml(dump(find_config('joint_smoke')[0]))}")
    words = {"predict": ["x.jpg"], "train": ["--resume"]}.get(verb, [])
    line = fault([verb, str(folder), *words], capsys)
    assert "99" in line and "newer" in line and "update allsight" in line


@pytest.mark.parametrize("verb", ["eval", "report"])
def test_a_folder_that_is_no_run_is_refused(verb: str, tmp_path: Path, capsys: Capture) -> None:
    assert "not a run folder" in fault([verb, str(tmp_path)], capsys)
    assert "none" in fault([verb, str(tmp_path / "none")], capsys)


def test_weights_that_are_not_there_are_named(
    trained: Path, world: Path, capsys: Capture, tmp_path: Path
) -> None:
    picture = str(min((world / "label_maps" / "val").glob("*.jpg")))
    line = fault(["predict", str(trained), picture, "--weights", str(tmp_path / "none.pth")], capsys)
    assert "none.pth" in line
    assert "tasc" in fault(["predict", str(trained), picture, "--task", "tasc"], capsys)
    line = fault(["predict", str(trained), picture, "--classes", str(tmp_path / "none.txt")], capsys)
    assert line.startswith("classes: ")


def test_a_backend_that_cannot_be_had_is_refused_before_training(
    world: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "joint_smoke", f"data.root={world}", "--runs", str(tmp_path), "--quiet"]
    monkeypatch.setenv("ALLSIGHT_BACKEND", "refrence")
    for verb in (words, ["doctor"]):
        assert "ALLSIGHT_BACKEND: expected one of auto, reference, " in fault(verb, capsys)
    monkeypatch.delenv("ALLSIGHT_BACKEND")
    for name in [name for name, state in ops.status()["dcnv3"].backends.items() if not state.usable]:
        monkeypatch.setenv("ALLSIGHT_BACKEND", name)
        assert f"ALLSIGHT_BACKEND: dcnv3 cannot use '{name}' here" in fault(words, capsys)
    assert not list(tmp_path.iterdir())


def test_a_world_is_not_written_over_something(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    assert "not an empty folder" in fault(["data", "world", str(tmp_path), "--quiet"], capsys)
    words = ["data", "world", str(tmp_path / "w"), "--quiet"]
    for option in ("--size", "--pictures", "--val", "--processes", "--seed"):
        assert f"Invalid value for '{option}'" in fault([*words, option, "-1"], capsys)
    assert "did you mean 'hard'" in fault([*words, "--difficulty", "herd"], capsys)


def _raising(error: BaseException) -> Callable[..., None]:
    def broken(*args: object, **kwargs: object) -> None:
        raise error

    return broken


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("allsight.recipes.names", _raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        main(["config", "--list"])


def test_debug_keeps_the_traceback_of_every_error() -> None:
    with pytest.raises(ValueError, match="no recipe 'nothing'"):
        main(["--debug", "config", "nothing"])


def test_a_full_disk_is_a_failed_run_and_said_in_one_line(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("allsight.recipes.names", _raising(OSError(errno.ENOSPC, "No space", "runs/x")))
    said = fault(["config", "--list"], capsys, status=1)
    assert said == "runs/x: no space left; free some and run the command again"


@pytest.mark.parametrize(
    ("words", "work", "remedy"),
    [
        ("data world {out}", "allsight.data.world.generate_world", "run the command again"),
        (
            "data pack imagefolder:{out} {out}",
            "allsight.data.shards.pack.pack",
            "run the command again: whole shards are kept",
        ),
        (
            "train joint_smoke --runs {out}",
            "allsight.cli.running.train_with_progress",
            "go on with the same words and --resume-or-start",
        ),
    ],
)
def test_a_full_disk_is_followed_by_what_helps_that_command(
    words: str, work: str, remedy: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    importlib.import_module(work.rpartition(".")[0])
    monkeypatch.setattr(work, _raising(OSError(errno.ENOSPC, "No space", "there")))
    line = fault(words.format(out=tmp_path).split(), capsys, status=1)
    assert line == f"there: no space left; free some and {remedy}"


def test_a_run_that_stops_itself_is_status_1(
    world: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from allsight.engine.trainer import RunFailed, Trainer

    monkeypatch.setattr(Trainer, "fit", _raising(RunFailed("20 steps in a row were not finite")))
    words = ["train", "joint_smoke", f"data.root={world}", "--runs", str(tmp_path), "--quiet"]
    assert fault(words, capsys, status=1) == "20 steps in a row were not finite"


def test_a_run_whose_end_could_not_be_saved_has_failed(
    world: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("allsight.engine.saving.save_checkpoint", _raising(OSError(errno.ENOSPC, "No space")))
    words = ["train", "joint_smoke", f"data.root={world}", "--runs", str(tmp_path), "--quiet"]
    line = fault(words, capsys, status=1)
    assert "trained to step 4, but its checkpoint could not be written, nor any before it" in line


def test_later_ranks_say_who_they_are(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    assert fault(["config", "nothing"], capsys).startswith("rank 3: no recipe 'nothing'")


def test_a_program_sees_status_and_no_traceback() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "allsight.cli", "config", "nothing"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("no recipe 'nothing'") and ended.stderr.count("\n") == 1
