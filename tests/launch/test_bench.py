"""The bench of the operators: nothing wrong gets a speed-up, and its page says on what it was measured.

No test here looks at how long anything took.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from allsight import ops
from allsight.config.errors import ConfigError
from allsight.launch import bench
from allsight.launch.bench import cases, measure, report, yardsticks
from allsight.launch.bench.compare import ALLOWED, compare


@pytest.fixture(autouse=True)
def short_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_LEAST_S", {"cpu": 1e-9, "wall": 1e-9})


def results_of(*names: str, threads: int = 1) -> bench.Results:
    return bench.bench_ops(names, pairs=2, threads=threads)


def setting_of(results: bench.Results) -> report.Setting:
    return report.Setting.of_this_process(
        ["allsight", "bench", "ops", "--only=a b"], method=report.turns(results.threads, results.pairs)
    )


@pytest.fixture
def wrong_dcnv3(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator whose output is right, but not the gradient of its offset."""
    right = ops.dcnv3

    def wrong(value, offset, mask, *, backend="auto", **options):
        if backend == "auto":
            offset = offset + 0.1 * (offset - offset.detach())
        return right(value, offset, mask, backend=backend, **options)

    monkeypatch.setattr(ops, "dcnv3", wrong)


@pytest.mark.usefixtures("wrong_dcnv3")
def test_nothing_is_measured_when_a_gradient_differs() -> None:
    results = results_of("call")
    assert results.rows == ()
    found = {(d.case, d.tensor, d.against) for d in results.differences}
    assert found == {("call-dcnv3", "grad of offset", other) for other in ("official", "reference")}
    for difference in results.differences:
        assert difference.relative == pytest.approx(0.1, rel=1e-3)
        assert "call-dcnv3" in str(difference) and "grad of offset differs" in str(difference)


@pytest.mark.parametrize("fault", [float("nan"), float("inf"), 1e-3])
def test_an_output_that_differs_is_found(monkeypatch: pytest.MonkeyPatch, fault: float) -> None:
    right = ops.ms_deform_attn

    def wrong(*tensors, backend="auto", **options):
        output = right(*tensors, backend=backend, **options)
        if backend == "auto":
            output = (
                output + torch.tensor([fault] + [0.0] * (output.shape[-1] - 1)) * output.detach().abs().max()
            )
        return output

    monkeypatch.setattr(ops, "ms_deform_attn", wrong)
    found = compare(cases.select(["call-msda"])[0])
    bad = [difference for difference in found if not difference.is_allowed]
    assert {d.tensor for d in bad} == {"output"} and all(d.relative > ALLOWED for d in bad)


def test_a_small_case_agrees_with_every_other_way() -> None:
    for case in cases.select(["dcnv3-224-b1-s4", "call"]):
        found = compare(case)
        assert {d.softmax for d in found} == {True, False}
        assert {d.tensor for d in found} == {"output", *(f"grad of {name}" for name in case.tensors)}
        assert all(d.is_allowed for d in found), [str(d) for d in found if not d.is_allowed]


def test_report_says_what_was_measured_on_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
    results = results_of("dcnv3-224-b1-s4", "call-msda")
    setting = setting_of(results)
    file = report.write(results, setting, tmp_path / "new")
    text = file.read_text()
    assert file.name.startswith(setting.day) and file.name.endswith("_1-thread.md")
    assert "`THP_MEM_ALLOC_ENABLE=1 allsight bench ops '--only=a b'`" in text
    for word in ("machine", "instruction set", f"torch {torch.__version__}", "must", "stretch", "7x7"):
        assert word in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in rows}) == 1
    assert sum("| official " in line for line in rows) == 2 and sum("torch.add" in line for line in rows) == 1
    picture = file.with_suffix(".png")
    assert f"]({picture.name})" in text
    with Image.open(picture) as image:
        assert image.size[0] == 900 and image.size[1] > 60


def test_json_holds_numbers_and_bars() -> None:
    results = results_of("dcnv3-224-b1-s4")
    tree = report.to_json(results, setting_of(results))
    forward, both = tree["rows"]
    assert (forward["work"], both["work"]) == ("forward", "forward+backward")
    for row in (forward, both):
        assert {"official", "reference"} <= set(row["ratios"]) < set(row["seconds"])
        assert all(seconds > 0 for seconds in row["seconds"].values())
        if tree["isa"] in ("avx2", "avx512"):
            assert row["bars"]["official"]["must"] < row["bars"]["official"]["stretch"]
    assert tree["differences"] == []


def test_with_several_threads_the_only_bar_is_that_of_a_further_thread() -> None:
    before = torch.get_num_threads()
    results = results_of("dcnv3-224-b1-s4", threads=2)
    assert torch.get_num_threads() == before
    assert all(not row.goals and bench.ONE_THREAD in row.samples.seconds for row in results.rows)


def test_a_busy_machine_is_mentioned() -> None:
    samples = measure.Samples({"allsight": (1.0, 1.0), "official": (2.0, 2.0)}, disturbed=1)
    results = bench.Results((bench.Row("a", "", "forward", samples, {}, 0.0),), (), 2, 2)
    assert "busy during 1 of 2 rounds" in report.warning(results)
    assert report.warning(results) in report.markdown(results, setting_of(results), "a.png")
    assert report.warning(bench.Results((), (), 2, 2)) == ""


def test_bars_depend_on_the_instruction_set() -> None:
    case, encoder = cases.select(["dcnv3-224-b1-s1", "msda-encoder"])
    assert case.goal("forward", "official", "avx512") == cases.Goal(15, 25)
    assert case.goal("forward", "official", "avx2") == cases.Goal(10, 16)
    assert case.goal("forward", "reference", "avx512") is None
    assert case.goal("forward", "official", None) is None
    assert encoder.goal("forward+backward", "official", "avx2") == cases.Goal(18, 30)
    assert encoder.goal("forward+backward", yardsticks.TORCH_MS_DEFORM_ATTN, "avx2") == cases.Goal(3, 6)


def test_verdict_names_the_bar_that_was_reached() -> None:
    samples = measure.Samples({"allsight": (1e-5, 1e-5), "official": (1e-4, 1e-4)})
    row = bench.Row("a", "", "forward", samples, {"official": cases.Goal(9, 11)}, 0.0)
    assert row.ratio("official") == pytest.approx(10) and row.verdict("official") == "must"
    assert row.verdict("reference") == ""
    call = bench.Row("a", "", "call", samples, {"allsight": cases.Goal(9, 8)}, 0.0)
    assert call.verdict("allsight") == "missed"


def test_cases_are_found_by_their_first_words_in_the_order_of_the_table() -> None:
    names = [case.name for case in cases.all_cases()]
    assert len(names) == len(set(names))
    assert [case.name for case in cases.select([])] == names
    assert [case.name for case in cases.select(["msda-encoder", "dcnv3-512-b1"])] == [
        *(f"dcnv3-512-b1-s{stage}" for stage in (1, 2, 3, 4)),
        "msda-encoder",
    ]
    assert len(cases.select(bench.QUICK)) == 5
    with pytest.raises(ConfigError, match="no case 'msda-encodr'; did you mean 'msda-encoder'"):
        cases.select(["msda-encodr"])


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("dcnv3-224-b1-s4", None), ("msda-bev-spatial", (25, 15)), ("msda-bev-temporal", (50, 50))],
)
def test_no_coordinate_lies_on_a_pixel_center(name: str, sizes: tuple[int, int] | None) -> None:
    _, places, _ = cases.select([name])[0].make(True)
    pixels = places if sizes is None else places * torch.tensor(sizes) - 0.5
    assert float((pixels - pixels.round()).abs().min()) > 0.009


def test_official_formulations_give_the_official_numbers(parity) -> None:
    """dcnv3/core and msdeformattn/core: output and gradients, in float32 as people run them."""
    about, tensors = parity("dcnv3/core")
    for name in ("k3_basic", "k3_gc3_scale2", "k3_far_outside"):
        case = about["cases"][name]
        inputs = [tensors[f"{name}.{key}"].float().requires_grad_() for key in ("input", "offset", "mask")]
        output = yardsticks.official_dcnv3(
            *inputs, groups=case["group"], softmax=False, offset_scale=case["offset_scale"]
        )
        assert torch.allclose(output.double(), tensors[f"{name}.output"].double(), atol=1e-5)
        grads = torch.autograd.grad(output, inputs, tensors[f"{name}.loss_weight"].float())
        assert torch.allclose(grads[0].double(), tensors[f"{name}.grad_input"].double(), atol=1e-4)
    about, tensors = parity("msdeformattn/core")
    for name in about["cases"]:
        value, locations, weights = (
            tensors[f"{name}.{key}"].float() for key in ("value", "sampling_locations", "attention_weights")
        )
        shapes = tuple(map(tuple, tensors[f"{name}.spatial_shapes"].tolist()))
        output = yardsticks.official_ms_deform_attn(value, shapes, locations, weights, softmax=False)
        assert torch.allclose(output.double(), tensors[f"{name}.output"].double(), atol=1e-5)


def test_ways_take_turns_and_every_second_round_is_reversed() -> None:
    order: list[str] = []
    samples = measure.interleave(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, pairs=3, calls=1
    )
    assert order[-6:] == ["a", "b", "b", "a", "a", "b"]
    assert len(samples.seconds["a"]) == len(samples.seconds["b"]) == 3 and samples.disturbed == 0


def test_rounds_in_which_others_worked_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = iter([0.9, 0.0, 0.5, 0.05, 0.9, 0.7])
    monkeypatch.setattr(measure._OthersWatch, "cores", lambda self: next(busy))
    clean = measure.interleave({"a": lambda: None}, pairs=2, clock="wall", calls=1)
    assert clean.disturbed == 0 and next(busy) == 0.9
    monkeypatch.setattr(measure._OthersWatch, "cores", lambda self: 0.9)
    assert measure.interleave({"a": lambda: None}, pairs=2, clock="wall", calls=1).disturbed == 2


@pytest.mark.parametrize(("own", "busy", "others"), [(2.0, 2.0, 0.0), (0.5, 2.5, 1.0), (1.0, None, 0.0)])
def test_own_work_is_not_that_of_others(
    monkeypatch: pytest.MonkeyPatch, own: float, busy: float | None, others: float
) -> None:
    times = iter([(10.0, 0.0, None if busy is None else 0.0), (12.0, own, busy)])
    monkeypatch.setattr(measure._OthersWatch, "_now", staticmethod(lambda: next(times)))
    assert measure._OthersWatch().cores() == others


def test_upper_bound_is_above_the_median() -> None:
    values = np.linspace(1.0, 2.0, 31)
    assert 1.5 < measure.upper_bound(values) < 2.0
