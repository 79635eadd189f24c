"""Choosing a backend: precedence, refusals, and the status table."""

import subprocess
import sys

import pytest
import torch

from allsight.ops import current_backend, dcnv3, status, use_backend
from allsight.ops._dispatch import Implementation, Operator

CALL = (torch.zeros(1, 2, 2, 1), torch.zeros(1, 2, 2, 18), torch.zeros(1, 2, 2, 9))


def operator(fast_unusable=None, fast_refuses=None):
    """An operator with a fast and a plain implementation that return their names."""
    return Operator(
        "toy",
        (
            Implementation(
                "cpu", lambda: "cpu", "compiled", lambda: fast_unusable, lambda *call: fast_refuses
            ),
            Implementation("reference", lambda: "reference", "plain", lambda: None, lambda *call: None),
        ),
    )


def test_auto_takes_the_first_that_serves():
    assert operator().pick("auto")() == "cpu"
    assert operator(fast_unusable="no compiler").pick("auto")() == "reference"
    assert operator(fast_refuses="no bfloat16").pick("auto")() == "reference"


def test_argument_beats_context_beats_environment(monkeypatch):
    monkeypatch.setenv("ALLSIGHT_BACKEND", "triton")
    assert current_backend() == "triton"
    with use_backend("reference"):
        assert operator().pick("auto")() == "reference"
        assert operator().pick("cpu")() == "cpu"
        with use_backend("auto"):
            assert operator().pick("auto")() == "cpu"
        assert current_backend() == "reference"
    assert current_backend() == "triton"


def test_wish_ends_with_its_block_even_after_an_error():
    with pytest.raises(RuntimeError, match="inside"), use_backend("reference"):
        raise RuntimeError("inside")
    assert current_backend() == "auto"


@pytest.mark.parametrize("reason", [dict(fast_unusable="no compiler"), dict(fast_refuses="no bfloat16")])
def test_a_forced_backend_that_cannot_serve_says_why(reason):
    with pytest.raises(
        ValueError, match=rf"toy: backend 'cpu' \(argument backend\).*{next(iter(reason.values()))}"
    ):
        operator(**reason).pick("cpu")


def test_a_backend_this_version_lacks_is_refused_with_its_origin(monkeypatch):
    refusal = r"toy: backend 'triton' \(use_backend\).*no such implementation"
    with use_backend("triton"), pytest.raises(ValueError, match=refusal):
        operator().pick("auto")
    monkeypatch.setenv("ALLSIGHT_BACKEND", "triton")
    with pytest.raises(ValueError, match=r"environment variable ALLSIGHT_BACKEND"):
        operator().pick("auto")
    assert dcnv3(*CALL, groups=1, backend="reference").shape == (1, 2, 2, 1)


def test_unknown_names_are_errors_wherever_they_come_from(monkeypatch):
    monkeypatch.setenv("ALLSIGHT_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"ALLSIGHT_BACKEND: expected one of .*, got 'fast'"):
        dcnv3(*CALL, groups=1)


def test_status_tells_choice_and_reason_of_every_backend():
    state = status()["dcnv3"]
    assert state.op == "dcnv3"
    assert state.chosen in state.backends
    assert state.backends[state.chosen].usable
    assert set(state.backends) == {"reference", "cpu", "triton"}
    assert all(item.why for item in state.backends.values())
    assert state.forced is None
    with use_backend("reference"):
        assert status()["dcnv3"].forced == "reference"
    assert str(state).startswith("dcnv3")


def test_operators_load_only_light_modules():
    code = (
        "import sys, allsight.ops; "
        "heavy = {'pydantic', 'scipy', 'PIL', 'yaml', 'rich', 'typer', 'einops', 'safetensors'}; "
        "print(sorted(heavy & set(sys.modules)), [m for m in sys.modules if m.startswith('allsight.')"
        " and not m.startswith('allsight.ops')])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[] []"
