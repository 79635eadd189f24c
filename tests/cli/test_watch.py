"""`allsight watch`, as a user calls it."""

from allsight.cli import main


def test_a_run_is_watched_to_its_end_or_looked_at_once(trained, capsys):
    for words in (["watch", str(trained)], ["watch", str(trained), "--once"]):
        assert main(words) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith(f"{trained}: finished ")
        assert lines[1].startswith("step 4/4  ")
        assert {line.split("  ")[1] for line in lines if line.startswith("eval at 4")} >= {
            "shapes",
            "scenes",
        }


def test_what_is_no_run_is_said_in_one_line(tmp_path, capsys):
    assert main(["watch", str(tmp_path / "nothing"), "--once"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'nothing'}: has not begun\n"
    (tmp_path / "notes.txt").write_text("x")
    assert main(["watch", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err
