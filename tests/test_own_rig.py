"""The page about one's own rig, done by the letter on a generated drive."""

import json
import re
from pathlib import Path

import pytest
import torch

from allsight import Trainer
from allsight.cli import main
from allsight.config import replace
from allsight.data.readers import open_reader
from allsight.data.world.drives import Drives, generate_drives
from allsight.recipes import find_config

PAGE = Path(__file__).parents[1] / "docs" / "own_rig.md"


@pytest.fixture
def rig(tmp_path, monkeypatch):
    """Folders of pictures as the page wants them, and a run that has learned nothing."""
    monkeypatch.chdir(tmp_path)
    generate_drives(
        tmp_path / "drives", Drives.Config.variant("easy", train=1, val=1, frames=2, hw_px=(32, 64))
    )
    reader = open_reader(f"nuscenes:{tmp_path / 'drives'}", split="val")
    calibration, poses = {}, {}
    for number in range(2):
        frame = reader.frame(number)
        name = f"{number:06d}"
        pose = frame.world_from_ref @ torch.linalg.inv(torch.from_numpy(frame.ego_from_ref)).numpy()
        poses[name] = {"time_s": frame.time_s, "ego2world": pose.tolist()}
        for shot in frame.shots:
            folder = tmp_path / "my_rig" / shot.name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.jpg").write_bytes((tmp_path / "drives" / shot.file).read_bytes())
    tables = tmp_path / "drives" / "v1.0-world"
    sensors = {row["token"]: row["channel"] for row in json.loads((tables / "sensor.json").read_text())}
    for row in json.loads((tables / "calibrated_sensor.json").read_text()):
        if row["camera_intrinsic"]:
            w, x, y, z = row["rotation"]
            turn = torch.tensor(
                [
                    [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                    [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                    [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
                ],
                dtype=torch.float64,
            )
            matrix = torch.eye(4, dtype=torch.float64)
            matrix[:3, :3], matrix[:3, 3] = turn, torch.tensor(row["translation"])
            calibration[sensors[row["sensor_token"]]] = {
                "cam2img": row["camera_intrinsic"],
                "cam2ego": matrix.tolist(),
                "width": 64,
                "height": 32,
            }
    (tmp_path / "my_rig" / "calibration.json").write_text(json.dumps(calibration))
    (tmp_path / "my_rig" / "poses.json").write_text(json.dumps(poses))
    config = replace(
        find_config("bevformer_micro_smoke")[0],
        {
            "name": "bevformer_micro_drives",
            "data.root": str(tmp_path),
            "tasks.boxes.hw_px": (32, 64),
            "tasks.map": None,
            "schedule.steps": 1,
            "schedule.warmup_steps": 0,
        },
    )
    trainer = Trainer(config, folder=tmp_path / "runs" / "bevformer_micro_drives")
    trainer.fit()
    trainer.close()
    return reader


def test_the_page_leads_from_folders_to_answers(rig, capsys):
    space = {}
    for code in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(compile(code, PAGE.name, "exec"), space)
    said = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[0] for line in said[-2:]] == ["all/drive-1/000000", "all/drive-1/000001"]
    # The same frame through either format; only the motion between exposures is not in the folders.
    own, tables = space["reader"][0].inputs["rig"], rig[0].inputs["rig"]
    assert sorted(own.camera_names) == sorted(tables.camera_names)
    order = [own.camera_names.index(name) for name in tables.camera_names]
    point = torch.tensor([0.0, 12.0, 0.0, 1.0])
    a = own.img_from_ref[order] @ point
    b = tables.img_from_ref @ point
    ahead = (a[:, 2] > 1) & (b[:, 2] > 1)
    assert bool(ahead.any())
    assert bool(((a / a[:, 2:])[ahead] - (b / b[:, 2:])[ahead]).abs().max() < 1.5)
    answers_are_drawn_and_cameras_dropped(capsys)


def answers_are_drawn_and_cameras_dropped(capsys):
    """The commands of the page; here, since a trained run takes seconds to make."""
    run = "runs/bevformer_micro_drives"
    assert main(["predict", run, "infos:my_rig", "--split", "all", "--out", "drawn"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("all/drive-1/000000: boxes: ") and Path("drawn/scene-0000-0001.png").is_file()
    assert main(["predict", run, "infos:my_rig", "--split", "all", "--out", "drawn", "--gif", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["sample"] for row in found] == ["all/drive-1/000000", "all/drive-1/000001"]
    assert Path("drawn/scene-0000.gif").is_file()
    assert main(["predict", run, "drawn/scene-0000-0001.png"]) == 2
    assert "name their data set" in capsys.readouterr().err
    assert main(["eval", run, "--drop-cameras", "--json"]) == 0
    table = json.loads(capsys.readouterr().out)["without"]
    assert len(table) == 7 and "boxes/nds" in table["CAM_BACK"]
