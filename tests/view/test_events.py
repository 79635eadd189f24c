import json
import math
from pathlib import Path

import pytest

from allsight.config import ConfigError
from allsight.view import read_events


def line(step: int, **values: object) -> str:
    return json.dumps({"time": 1.0, "step": step, "rank": 0, "kind": "train", "task": None, "values": values})


def test_events_come_in_order_with_all_fields(fake_run):
    folder = fake_run().begin().train(0, 3).write()
    events = list(read_events(folder))
    assert [event["kind"] for event in events] == ["system"] + ["train"] * 6
    assert all(set(e) == {"time", "step", "rank", "kind", "task", "values", "text"} for e in events)


def test_a_torn_last_line_is_left_out_and_told(fake_run):
    told: list[str] = []
    folder = fake_run().begin().train(0, 2).write(torn='{"time": 12.5, "ste')
    assert len(list(read_events(folder, tell=told.append))) == 5
    assert told == ["events.jsonl: the last line (line 6) is torn, as a kill leaves it; left out"]


def test_a_torn_line_in_the_middle_is_left_out_and_told(tmp_path: Path):
    told: list[str] = []
    (tmp_path / "events.jsonl").write_text(f'{line(0)}\n{{"time": 1.0, "st\n\n{line(1)}\n')
    assert [e["step"] for e in read_events(tmp_path, tell=told.append)] == [0, 1]
    assert told == ["events.jsonl: line 2 is not an event (torn by a kill?); left out"]


def test_a_line_torn_within_a_letter_is_left_out(tmp_path: Path):
    (tmp_path / "events.jsonl").write_bytes(f"{line(0)}\n".encode() + b'{"text": "M\xc3')
    assert len(list(read_events(tmp_path))) == 1


@pytest.mark.parametrize("text", ["[1, 2]", "3", "null", '{"step": 1}', '{"kind": "train", "step": "x"}'])
def test_json_that_is_no_event_is_left_out(tmp_path: Path, text: str):
    told: list[str] = []
    (tmp_path / "events.jsonl").write_text(text + "\n")
    assert list(read_events(tmp_path, tell=told.append)) == []
    assert len(told) == 1


def test_words_for_non_finite_numbers_become_numbers(tmp_path: Path):
    (tmp_path / "events.jsonl").write_text(
        line(0, loss="nan", grad_norm="inf", lr="-inf", note="text") + "\n"
    )
    values = next(iter(read_events(tmp_path)))["values"]
    assert math.isnan(values["loss"])
    assert (values["grad_norm"], values["lr"]) == (math.inf, -math.inf)
    assert "note" not in values


def test_a_file_of_one_rank_can_be_read(tmp_path: Path):
    file = tmp_path / "rank-1.jsonl"
    file.write_text(line(4) + "\n")
    assert [event["step"] for event in read_events(file)] == [4]


def test_a_folder_without_events_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"events\.jsonl: there is no such file"):
        list(read_events(tmp_path))
