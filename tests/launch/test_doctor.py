"""The doctor finds what is there, says what is missing, and changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from allsight.launch import doctor


def test_versions_name_what_is_installed() -> None:
    found = {finding.name: finding for finding in doctor.versions()}
    assert found["torch"].ok and found["torch"].value.startswith("2.")
    assert {"python", "allsight", "numpy", "pillow"} <= set(found)


def test_every_operator_has_a_reason() -> None:
    for finding in doctor.operators():
        assert finding.value["chosen"] in finding.value["backends"]
        assert all(state["why"] for state in finding.value["backends"].values())
        assert finding.value["chosen"] in finding.text


def test_a_missing_package_says_how_to_get_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy>=2", "no-such-package-at-all>=1; extra == 'nuscenes'", "numpy>=2; extra == 'other'"]
    monkeypatch.setattr(doctor, "requires", lambda name: lines)
    found = {finding.name: finding for finding in doctor.extras()}
    assert found["nuscenes"].text == "missing no-such-package-at-all; pip install 'allsight[nuscenes]'"
    assert (found["nuscenes"].value, found["other"].value) == (False, True)


def test_disk_names_the_data_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALLSIGHT_DATA", raising=False)
    assert "export ALLSIGHT_DATA=DIR" in doctor.disk(tmp_path / "runs", None)[1].text
    (tmp_path / "camvid").mkdir()
    monkeypatch.setenv("ALLSIGHT_DATA", str(tmp_path))
    runs, data = doctor.disk(tmp_path / "no" / "such" / "runs", None)
    assert data.value == ["camvid"] and data.ok and runs.value > 0
    assert not doctor.disk(tmp_path, tmp_path / "none")[1].ok
    assert not (tmp_path / "no").exists()


def test_findings_are_plain_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_SECONDS", 0.01)
    found = doctor.examine(runs=tmp_path)
    text = json.dumps({section: [f.to_json() for f in part] for section, part in found.items()})
    assert "pictures/s" in text
    assert all(finding.value > 0 for finding in found["speed"])
