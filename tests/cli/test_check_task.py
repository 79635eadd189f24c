"""`allsight check-task`, as a user of an own task calls it."""

import json
import sys
from pathlib import Path

import pytest

from allsight.cli import main

TOYS = Path(__file__).parents[1] / "contracts" / "toys.py"

BROKEN = '''
"""A task whose loss is a sum."""

from allsight.tasks import Classification


class Summed(Classification):
    class Config(Classification.Config):
        factor: int

    def loss(self, outputs, batch):
        losses = super().loss(outputs, batch)
        return {name: value * len(batch) * self.config.factor for name, value in losses.items()}
'''


@pytest.fixture
def broken(tmp_path, monkeypatch):
    file = tmp_path / "summed_task.py"
    file.write_text(BROKEN)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield f"{file}:Summed"
    sys.modules.pop("summed_task", None)


def test_a_task_that_keeps_its_promises_passes(world, capsys):
    assert (
        main(
            [
                "check-task",
                "classification",
                "data=imagefolder:imagefolder",
                "size_px=32",
                "--root",
                str(world),
            ]
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok       its settings survive being written and read"
    assert lines[-1].startswith("classification: ")
    assert lines[-1].endswith(" promises kept, 0 broken, 3 not checked")


def test_a_task_of_a_file_is_told_what_is_wrong(world, broken, capsys):
    words = [
        "check-task",
        broken,
        "data=imagefolder:imagefolder",
        "size_px=32",
        "factor=2",
        "--root",
        str(world),
    ]
    assert main(words) == 1
    fault = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("FAULT"))
    assert "losses do not depend on how a batch is split: loss 'cross_entropy' is" in fault
    assert main([*words, "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert [f["promise"] for f in findings if f["problem"]] == [
        "losses do not depend on how a batch is split"
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing.py:Task"], "TASK: {cwd}/nothing.py: no such file"),
        (["classificaton"], "TASK: no task 'classificaton'; did you mean 'classification'?"),
        (["classification", "size=3"], "config.size: no such field; did you mean 'size_px'?"),
        (["classification", "data=imagefolder:nothing", "--root", "/"], "/nothing does not exist"),
    ],
)
def test_what_is_the_users_to_mend_is_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["check-task", *words]) == 2
    error = capsys.readouterr().err
    assert message.format(cwd=tmp_path) in error
    assert error.count("\n") == 1


def test_a_required_setting_that_is_missing_is_named(broken, capsys):
    assert main(["check-task", broken]) == 2
    assert "factor" in capsys.readouterr().err
