import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from allsight.config import ConfigError
from allsight.view import write_report

VOID = {"br", "col", "hr", "img", "input", "meta"}


class Page(HTMLParser):
    """A page that is parsed strictly: every element is closed, in order."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(self.source)
        self.close()
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def charts(self) -> list[str]:
        return [str(a["aria-label"]) for a in self.all("svg") if "data-chart" in a]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, fake_run_class) -> Page:
    run = fake_run_class(tmp_path_factory.mktemp("runs") / "joint_tiny20_camvid")
    run.event("note", 0, text="eval.weights=auto: averaged weights are used")
    run.event("alarm", 17, {"skipped": 1}, text="step 17: non-finite loss in task 'camvid' (samples a, b)")
    text = "n0_311: truncated JPEG: stops early; replaced by n0_17"
    run.event("data", 21, {"corrupt": 1, "seen": 1280}, "tiny20", text)
    return Page(write_report(run.whole()))


def test_it_says_what_ran_on_what(whole: Page):
    for words in (
        "joint_tiny20_camvid", "finished", "multi_head on internimage · 2.01M parameters", "200 of 200",
        "AMD EPYC 7B13 · 2 cores · device cpu", "torch 2.13.0+cpu", "0123456789ab",
        "allsight train joint_tiny20_camvid optim.lr=2e-3", "imagefolder:camvid", "2026-09-21 14:13:20 UTC",
    ):  # fmt: skip
        assert words in whole.text


def test_it_needs_nothing_from_outside(whole: Page):
    assert "http" not in whole.source
    assert "@import" not in whole.source and "url(" not in whole.source
    assert whole.all("link") == [] and whole.all("iframe") == []
    assert all("src" not in script for script in whole.all("script"))
    assert all(str(image["src"]).startswith("data:image/") for image in whole.all("img"))
    assert all(str(link["href"]).startswith("#") for link in whole.all("a"))


def test_its_links_lead_somewhere(whole: Page):
    anchors = {attributes["id"] for _, attributes in whole.elements if "id" in attributes}
    assert {str(link["href"])[1:] for link in whole.all("a")} <= anchors


def test_its_pictures_can_be_decoded(whole: Page):
    # 12 classified ones, and 3 with picture, truth, answer and mistakes.
    assert len(whole.all("img")) == 12 + 3 * 4
    for image in whole.all("img"):
        content = base64.b64decode(str(image["src"]).split(",", 1)[1])
        with Image.open(io.BytesIO(content)) as opened:
            assert opened.size == (int(str(image["width"])), int(str(image["height"])))


def test_it_has_a_curve_for_everything_that_was_noted(whole: Page):
    assert whole.charts() == [
        "loss over step", "top1 over step", "top5 over step",
        "loss over step", "miou over step", "pixel_accuracy over step",
        "weighted loss over step", "learning rate over step", "gradient norm over step",
        "mean of main metrics over step", "images per second over step", "milliseconds a step",
    ]  # fmt: skip
    for attributes in whole.all("svg"):
        if "data-chart" in attributes:
            data = json.loads(str(attributes["data-chart"]))
            assert data["lines"] and all(len(line["x"]) == len(line["y"]) for line in data["lines"])


def test_it_shows_truth_and_answers_and_marks_the_wrong_ones(whole: Page):
    assert whole.text.count("✗ wrong") == 4
    assert whole.text.count("✓ right") == 8
    assert "8 of the 12 kept are right" in whole.text
    assert len(re.findall(r"[\d.]+ % of the labelled pixels right", whole.text)) == 3


def test_it_has_confusion_and_a_table_of_classes_for_both_tasks(whole: Page):
    heats = [a for a in whole.all("svg") if a.get("class") == "heat"]
    assert len(heats) == 2
    assert re.search(r"tabby cat: right \d+ of \d+ \([\d.]+ %\)", whole.text)
    assert len([a for a in whole.all("table") if a.get("class") == "sortable"]) == 2


def test_it_lists_warnings(whole: Page):
    assert "2 warnings, see below" in whole.text
    assert "step 17: non-finite loss in task 'camvid' (samples a, b)" in whole.text
    for words in ("n0_311", "truncated JPEG: stops early", "replaced by n0_17", "1 of 1,280 samples seen"):
        assert words in whole.text


def test_it_lists_slow_steps_notes_and_settings(whole: Page):
    for words in ("47", "waited for data", "averaged weights are used", "checkpoints/step-00000200"):
        assert words in whole.text
    assert "ops.dcnv3.backend" in whole.text and "kind: internimage" in whole.text


def report(folder: Path, **settings) -> Page:
    return Page(write_report(folder, **settings))


def test_a_run_that_has_only_begun(fake_run):
    run = fake_run().begin()
    page = report(run.write())
    assert "0 of 200" in page.text
    assert "Nothing has been evaluated yet." in page.text


def test_a_run_without_any_event(fake_run):
    page = report(fake_run().folder)
    assert "events.jsonl is not there" in page.text


def test_one_step_and_no_evaluation(fake_run):
    page = report(fake_run().begin().train(0, 1).write())
    assert "1 of 200" in page.text
    assert "not evaluated yet" in page.text


def test_a_killed_run_says_that_its_last_line_is_torn(fake_run):
    page = report(fake_run().begin().train(0, 30).write(torn='{"time": 1, "st'))
    assert "stopped before its end" in page.text
    assert "is torn, as a kill leaves it; left out" in page.text


def test_a_failed_run_gives_its_reason_at_the_top(fake_run):
    run = fake_run().begin().train(0, 30)
    run.event("alarm", 30, text="step 30: 20 steps in a row were not finite; lower optim.lr")
    page = report(run.write())
    assert page.text.index("lower optim.lr") < page.text.index("Curves")


def test_losses_that_are_all_not_finite(fake_run):
    run = fake_run(tasks={"tiny20": ("a", "b")}).begin()
    for step in range(30):
        values = {"loss": "nan", "lr": 0.0, "grad_norm": "inf", "seconds": 0.1, "wait_s": 0.0, "samples": 64}
        run.event("train", step, values).event("train", step, {"loss": "nan", "samples": 64}, "tiny20")
    run.event("eval", 30, {"top1": "nan", "loss": "inf", "seconds": 1.0, "samples": 9}, "tiny20", "raw")
    page = report(run.write())
    assert "No finite values." in page.text
    assert "nan top1" in page.text
    assert "NaN" not in re.sub(r"<script>.*?</script>", "", page.source, flags=re.DOTALL)


def test_single_non_finite_values_are_marked(fake_run):
    run = fake_run(tasks={"tiny20": ("a", "b")}).begin().train(0, 50)
    run.event("train", 50, {"loss": "nan", "samples": 64}, "tiny20")
    run.train(51, 99)
    page = report(run.write())
    assert "not finite at 50" in page.text
    assert "1 not finite" in page.text


def test_names_are_escaped(fake_run):
    bad = "<script>alert('x')</script>"
    run = fake_run(tasks={"tiny20": (bad, '"&"', "c")}).begin().train(0, 30).evaluate(30)
    run.keep_classified(30, number=3).event("note", 0, text=f"{bad}</pre>")
    run.event("data", 3, {"corrupt": 1}, "tiny20", f"{bad}: {bad}; replaced by {bad}")
    run.event("alarm", 3, {"skipped": 1}, "tiny20", bad)
    folder = run.write()
    environment = json.loads((folder / "environment.json").read_text())
    environment["command"] = ["allsight", "train", bad]
    (folder / "environment.json").write_text(json.dumps(environment))
    resolved = (folder / "resolved.yaml").read_text()
    (folder / "resolved.yaml").write_text(f"{resolved}note: {json.dumps(bad)}\n")
    page = report(folder)
    assert "alert" not in "".join(re.findall(r"<script>.*?</script>", page.source, re.DOTALL))
    assert page.source.count("<script>") == 1
    assert page.text.count(bad) > 8


def test_a_huge_run_makes_a_small_file(fake_run):
    run = fake_run(planned=100_000).begin()
    losses = np.random.default_rng(0).lognormal(size=100_000)
    for step, loss in enumerate(losses):
        head = f'{{"time": {run.time + step / 10:.1f}, "step": {step}, "rank": 0, "kind": "train", "task": '
        values = f'"lr": 1e-3, "grad_norm": {loss:.4f}, "seconds": 0.1, "wait_s": 0.01, "samples": 64'
        run.lines.append(f'{head}null, "values": {{"loss": {loss:.4f}, {values}}}, "text": ""}}')
        run.lines.append(f'{head}"tiny20", "values": {{"loss": {loss:.4f}, "samples": 64}}, "text": ""}}')
    run.evaluate(100_000).keep_classified(100_000).keep_segmented(100_000).finish()
    file = written_elsewhere(run.write())
    assert file.stat().st_size < 500_000
    assert "100,000 of 100,000" in Page(file).text


def written_elsewhere(folder: Path) -> Path:
    """The report, written by another process: quick, since types are not checked there."""
    code = (
        "import sys; from pathlib import Path; from allsight.view import write_report; "
        f"write_report(Path({str(folder)!r})); print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n", "a report needs no torch"
    return folder / "report.html"


def test_large_pictures_are_kept_small(fake_run):
    run = fake_run().begin().train(0, 10).evaluate(10)
    big = [run.rng.integers(0, 255, (1500, 2000, 3)).astype(np.uint8)]
    run.keep_classified(10, pictures=big)
    page = report(run.write())
    assert [(a["width"], a["height"]) for a in page.all("img")] == [("360", "270")]
    assert len(page.source) < 400_000


def test_pictures_that_cannot_be_read_are_left_out(fake_run):
    run = fake_run()
    folder = run.whole() / "predictions" / "step-00000200"
    (folder / "tiny20" / "000000.png").write_bytes(b"\x89PNG\r\n")
    (folder / "tiny20" / "000001.png").unlink()
    (folder / "camvid" / "000000-truth-label_map.png").unlink()
    (folder / "camvid" / "tables.json").write_text('{"confusion": [[1, 2]]}')
    page = report(run.folder)
    assert page.text.count("no picture") == 2
    assert "the confusion table is not square" in page.text


def test_files_outside_of_the_run_are_never_shown(fake_run, tmp_path: Path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    run = fake_run().begin().train(0, 10).evaluate(10).keep_classified(10, number=1)
    index = run.folder / "predictions" / "step-00000010" / "tiny20" / "index.json"
    rows = json.loads(index.read_text())
    rows[0]["image"] = str(tmp_path / "secret.png")
    index.write_text(json.dumps(rows))
    assert report(run.write()).all("img") == []


def test_the_newest_predictions_are_shown(fake_run):
    run = fake_run().begin().train(0, 100).evaluate(50).keep_classified(50).evaluate(100).keep_classified(100)
    assert "as the model answered at step 100" in report(run.write()).text


def test_half_of_the_pictures_shown_are_wrong_ones_where_there_are_many(fake_run):
    run = fake_run().begin().train(0, 10).evaluate(10).keep_classified(10, number=60)
    page = report(run.write())
    assert "12 of 60 validation samples" in page.text
    assert page.text.count("✗ wrong") == 6


def test_answers_of_other_kinds_are_shown_in_words(fake_run):
    run = fake_run().begin().train(0, 10).evaluate(10).keep_classified(10, number=2)
    index = run.folder / "predictions" / "step-00000010" / "tiny20" / "index.json"
    rows = json.loads(index.read_text())
    rows[0] |= {"truth": {"kind": "text", "text": "a red cube"}, "answer": {"kind": "text", "text": "a cube"}}
    rows[1] |= {"truth": {"kind": "count", "count": 3}, "answer": {"kind": "count", "count": 4}}
    index.write_text(json.dumps(rows))
    text = report(run.write()).text
    for words in ("truth a red cube", "answer a cube", 'truth {"count": 3}', 'answer {"count": 4}'):
        assert words in text


def test_confusion_of_many_classes_shows_the_worst(fake_run):
    names = tuple(f"class number {i}" for i in range(120))
    run = fake_run(tasks={"tiny20": names}).begin().train(0, 10).evaluate(10).keep_classified(10, number=3)
    page = report(run.write())
    assert "The 40 of 120 classes with most mistakes" in page.text
    assert len(page.source) < 1_000_000


def test_comparison_is_at_equally_many_samples_of_a_task(fake_run):
    joint = fake_run("joint", planned=400).begin()
    for stop in range(100, 401, 100):
        joint.train(stop - 100, stop).evaluate(stop)
    alone = fake_run("alone", planned=400, tasks={"tiny20": ("a", "b")}).begin()
    for stop in range(100, 401, 100):
        alone.train(stop - 100, stop).evaluate(stop)
    page = report(joint.finish().write(), compare=[alone.finish().write()])
    # The joint run drew tiny20 in about half of its steps; the other's evaluation at step 200 is nearest.
    seen = sum('"task": "tiny20"' in line and '"train"' in line for line in joint.lines) * 64
    assert f"{seen:,} 12,800" in page.text
    assert "alone (alone)" in page.text
    assert "tiny20: top1 over own samples" in page.charts()
    assert "camvid: miou over own samples" not in page.charts()


def test_comparison_with_a_run_of_other_tasks_says_so(fake_run):
    other = fake_run("other", tasks={"bccd": ("a", "b")}).begin().train(0, 9).write()
    page = report(fake_run("this").begin().train(0, 30).evaluate(30).write(), compare=[other])
    assert "The other runs have judged none of this run's tasks." in page.text


def test_it_goes_where_it_is_told_and_replaces_the_last_one(fake_run, tmp_path: Path):
    folder = fake_run().begin().write()
    assert write_report(folder) == folder / "report.html"
    assert write_report(folder) == folder / "report.html"
    assert write_report(folder, tmp_path / "out.html") == tmp_path / "out.html"
    assert not list(folder.glob(".*")) and not list(tmp_path.glob(".*"))


def test_a_place_that_cannot_be_written_is_refused_in_one_line(fake_run, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"out\.html: the report cannot be written: No such file") as error:
        write_report(fake_run().begin().write(), tmp_path / "missing" / "out.html")
    assert "\n" not in str(error.value)


def test_a_report_loads_no_torch(fake_run):
    assert Page(written_elsewhere(fake_run().whole())).charts()
