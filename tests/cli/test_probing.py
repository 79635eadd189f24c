"""`allsight eval --probe`: what it says, and what it leaves in the run folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from allsight.cli import main
from allsight.view.record import read_run
from allsight.view.report import render


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, which may be written to."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_a_probe_is_said_noted_and_shown_in_the_report(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = read_run(run)
    assert main(["eval", str(run), "--probe", "knn", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["probe"] == "knn" and list(said["tasks"]) == ["shapes"]
    top1 = said["tasks"]["shapes"]["top1"]
    assert main(["eval", str(run), "--probe", "knn"]) == 0
    assert f"top1 {top1:.4f}" in " ".join(capsys.readouterr().out.split())
    other = ["--data", "imagefolder:imagefolder", "--weights", "random"]
    assert main(["eval", str(run), "--probe", "knn", *other]) == 0
    after = read_run(run)
    assert [event["values"]["top1"] for event in after.probes[:2]] == pytest.approx([top1] * 2, abs=1e-6)
    assert after.probes[0]["step"] == 4 and "knn on imagefolder:imagefolder" in after.probes[0]["text"]
    assert "weights random" in after.probes[2]["text"]
    # The run itself stands as it did.
    assert (after.status()[0], after.last_s, after.steps_done) == (before.status()[0], before.last_s, 4)
    assert "Probes of the features" in render(after)
    assert "Probes of the features" not in render(before)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "imagefolder:imagefolder"], "--data is for --probe"),
        (
            ["--probe", "knn", "--task", "shape"],
            "task: 'shape' is not there, which --probe needs; did you mean",
        ),
        (["--probe", "knn", "--task", "scenes"], "task: 'scenes' does not classify, which --probe needs"),
        (["--probe", "knn", "--data", "imagefolder:nothing"], "nothing"),
        (["--probe", "nearest"], "nearest"),
        # A world of 24 pictures has two of each class.
        (["--probe", "linear"], "linear probe: weight_decays: choosing among 5 needs a class of 5 training"),
    ],
)
def test_probes_that_cannot_be_are_refused_in_a_line(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(["eval", str(run), *words]) == 2
    said = capsys.readouterr().err
    assert message in " ".join(said.split()) and "Traceback" not in said
    assert not read_run(run).probes
