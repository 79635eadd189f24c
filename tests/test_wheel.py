"""What `pip install` gets: with a compiler the operators, without one the same package in plain Python."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_BYTES = 1_500_000


COMPILERS = ["c++", "/nonexistent/c++"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=COMPILERS)
def built(request, tmp_path_factory):
    """A compiler and the wheel made with it."""
    folder = tmp_path_factory.mktemp("wheel")
    tools = Path(sys.executable).parent
    command = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", str(folder)]
    environment = {**os.environ, "CXX": request.param, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    run = subprocess.run(
        [*command, "--config-settings=build-dir=" + str(folder / "build"), str(ROOT)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    (wheel,) = folder.glob("*.whl")
    return request.param, wheel


def test_a_wheel_is_small(built):
    _, wheel = built
    assert wheel.stat().st_size <= MOST_BYTES


def test_a_wheel_works_with_and_without_a_compiler(built, tmp_path):
    compiler, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert "allsight/py.typed" in names
    assert not any("csrc" in name or "not_built" in name for name in names)
    has_library = any(name.endswith("liballsight_ops.so") for name in names)
    assert has_library == (compiler == "c++")
    # Nothing in a wheel depends on the version of Python or PyTorch.
    assert "-py3-none-" in wheel.name

    script = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in type(finder).__module__]
import torch, allsight
from allsight.ops import dcnv3, status
value, offset = torch.randn(1, 5, 5, 8), torch.zeros(1, 5, 5, 2 * 9 * 2)
mask = torch.full((1, 5, 5, 18), 1 / 9)
assert dcnv3(value, offset, mask, groups=2).shape == value.shape
print(allsight.__file__, status()["dcnv3"].chosen, status()["dcnv3"].backends["cpu"].why, sep="\\n")
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    used = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert used.returncode == 0, used.stderr
    place, chosen, why = used.stdout.splitlines()
    assert place.startswith(str(tmp_path))
    if has_library:
        assert chosen == "cpu"
    else:
        assert chosen == "reference" and "no C++ compiler" in why
