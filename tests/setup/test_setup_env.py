"""The set-up of .venv: what it does once, what it does again, and what it says when it cannot."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "setup_env.py"

# Stands for both the Python that makes the environment and the one inside it. What pip should do is in the
# file `pip-does` beside the checkout; each call of pip leaves a line in `pip-calls`.
FAKE_PYTHON = """#!/bin/sh
case "$1 $2" in
"-m venv")
    case "$*" in *--without-pip*) ;; *) if [ -e {place}/no-ensurepip ]; then exit 1; fi ;; esac
    for last; do :; done
    mkdir -p "$last/bin"
    cp "$0" "$last/bin/python"
    ;;
"-m pip")
    case "$0 $*" in *.venv/bin/python*--version*) if [ -e {place}/no-ensurepip ]; then exit 1; fi ;; esac
    case "$*" in *--version*) exit 0 ;; esac
    echo "$*" >> {place}/pip-calls
    if [ -e {place}/pip-does ]; then . {place}/pip-does; fi
    ;;
"-c import allsight"*) ;;
-c*) echo {place}/python; echo 3 11 ;;
esac
"""

NO_TORCH = """
echo 'Looking in links: /somewhere'
echo 'Collecting numpy>=2.0'
echo 'ERROR: Could not find a version that satisfies the requirement torch==2.13.0 (from versions: none)'
echo 'ERROR: No matching distribution found for torch==2.13.0'
exit 1
"""


@pytest.fixture
def setup_env(monkeypatch):
    spec = importlib.util.spec_from_file_location("setup_env", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path, setup_env, monkeypatch):
    """A checkout with a fake Python, so that nothing is installed; `setup_env.main()` works on it."""
    root = tmp_path / "allsight"
    (root / "scripts").mkdir(parents=True)
    (root / "scripts" / "setup_env.py").write_text(SCRIPT.read_text())
    (root / "constraints.txt").write_text("torch==2.13.0\n")
    (root / "pyproject.toml").write_text(
        '[project]\ndependencies = ["torch>=2.11"]\noptional-dependencies.dev = ["pytest>=8.3"]\n'
    )
    python = tmp_path / "python"
    python.write_text(FAKE_PYTHON.replace("{place}", str(tmp_path)))
    python.chmod(0o755)
    monkeypatch.setattr(setup_env, "ROOT", root)
    monkeypatch.setattr(setup_env, "find_python", lambda: str(python))
    return root


def pip_calls(checkout):
    file = checkout.parent / "pip-calls"
    return file.read_text().splitlines() if file.exists() else []


def let_pip(checkout, shell):
    (checkout.parent / "pip-does").write_text(shell)


def only_line(text):
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]


def test_first_call_installs_requirements_under_constraints_then_the_project(checkout, setup_env):
    assert setup_env.main() == 0
    first, second = pip_calls(checkout)
    assert f"-c {checkout}/constraints.txt torch>=2.11 pytest>=8.3" in first
    assert f"--no-deps -e {checkout}" in second
    assert "index" not in first + second and "find-links" not in first + second


def test_python_without_ensurepip_installs_with_its_own_pip(checkout, setup_env):
    (checkout.parent / "no-ensurepip").touch()
    assert setup_env.main() == 0
    first, second = pip_calls(checkout)
    for call in (first, second):
        assert f"--python {checkout}/.venv/bin/python install" in call


def test_second_call_runs_nothing_and_says_nothing(checkout, setup_env, monkeypatch, capsys):
    setup_env.main()
    capsys.readouterr()

    def refuse(*args, **kwargs):
        raise AssertionError(f"started {args}")

    monkeypatch.setattr(setup_env.subprocess, "run", refuse)
    monkeypatch.setattr(setup_env.subprocess, "Popen", refuse)
    assert setup_env.main() == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_changed_requirements_are_installed_into_the_environment_that_is_there(checkout, setup_env, changed):
    setup_env.main()
    (checkout / ".venv" / "mine").touch()
    with (checkout / changed).open("a") as file:
        file.write("# changed\n")
    assert setup_env.main() == 0
    assert len(pip_calls(checkout)) == 4
    assert (checkout / ".venv" / "mine").exists()


def test_moved_checkout_is_set_up_again(checkout, setup_env, monkeypatch):
    setup_env.main()
    moved = checkout.with_name("elsewhere")
    checkout.rename(moved)
    monkeypatch.setattr(setup_env, "ROOT", moved)
    assert setup_env.main() == 0
    assert f"-e {moved}" in pip_calls(moved)[-1]


def test_environment_whose_python_is_gone_is_made_anew(checkout, setup_env):
    setup_env.main()
    python = checkout / ".venv" / "bin" / "python"
    python.unlink()
    assert setup_env.main() == 0
    assert python.exists()
    assert len(pip_calls(checkout)) == 4


def test_killed_set_up_is_started_anew_by_the_next_call(checkout, setup_env):
    let_pip(checkout, "kill -9 $PPID")
    code = (
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('setup_env', {str(SCRIPT)!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        f"module.find_python = lambda: {str(checkout.parent / 'python')!r}\n"
        f"module.set_up(module.Path({str(checkout)!r}))"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == -9
    (checkout / ".venv" / "half-a-package").touch()
    (checkout.parent / "pip-does").unlink()

    assert setup_env.main() == 0
    assert not (checkout / ".venv" / "half-a-package").exists()
    assert setup_env.is_current(checkout)


def test_failed_set_up_is_not_taken_for_done(checkout, setup_env):
    let_pip(checkout, "exit 1")
    assert setup_env.main() == 1
    (checkout.parent / "pip-does").unlink()
    assert setup_env.main() == 0


@pytest.mark.parametrize(
    ("shell", "said"),
    [
        (NO_TORCH, ["torch==2.13.0", "index has none"]),
        ("echo 'ERROR: Failed building wheel for simplejpeg'; exit 1", ["simplejpeg", "could not be built"]),
        (
            "echo 'ERROR: Could not install packages due to an OSError: HTTPSConnectionPool(host=h): Max"
            " retries exceeded with url: /packages/ab/scipy-1.17.1-cp311-linux.whl (Caused by X)'; exit 1",
            ["package scipy cannot", "does not answer"],
        ),
        (
            "echo 'Collecting einops>=0.8'; echo 'ERROR: what is this'; exit 1",
            ["einops>=0.8", "what is this"],
        ),
        ("kill -9 $$", ["signal 9", "memory"]),
    ],
)
def test_package_that_cannot_be_had_is_one_line_with_its_name_and_the_log(
    checkout, setup_env, capsys, shell, said
):
    let_pip(checkout, shell)
    assert setup_env.main() == 1
    line = only_line(capsys.readouterr().err)
    for words in said:
        assert words in line
    assert "make" in line or "reason" in line
    assert str(checkout / ".venv" / "setup.log") in line
    assert (checkout / ".venv" / "setup.log").exists()


def test_full_disk_is_refused_before_anything_is_made(checkout, setup_env, monkeypatch, capsys):
    monkeypatch.setattr(setup_env, "free_bytes", lambda path: 10**9)
    assert setup_env.main() == 1
    line = only_line(capsys.readouterr().err)
    assert "1.0 GB free" in line and "3 GB" in line and str(checkout) in line
    assert not (checkout / ".venv").exists()
    assert pip_calls(checkout) == []


@pytest.mark.parametrize(
    "shell",
    [
        "echo 'ERROR: Could not install packages due to [Errno 28] No space left on device'; exit 1",
        "echo 'OSError: [Errno 28] No space left on device: /somewhere'; exit 2",
    ],
)
def test_disk_that_runs_full_while_installing_is_one_line(checkout, setup_env, capsys, shell):
    let_pip(checkout, shell)
    assert setup_env.main() == 1
    line = only_line(capsys.readouterr().err)
    assert "disk ran full" in line and str(checkout) in line and "free some" in line


def test_disk_that_is_full_for_the_log_is_one_line(checkout, setup_env, monkeypatch, capsys):
    def no_space(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(setup_env, "run_pip", no_space)
    assert setup_env.main() == 1
    assert "disk ran full" in only_line(capsys.readouterr().err)


def test_only_old_pythons_are_refused_by_name(setup_env, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(setup_env, "ROOT", tmp_path)
    for name in setup_env.INPUTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(setup_env, "inspect_python", lambda name: ("/usr/bin/python3.9", (3, 9)))
    assert setup_env.main() == 1
    line = only_line(capsys.readouterr().err)
    assert "Python 3.11 or newer" in line and "/usr/bin/python3.9 is 3.9" in line and "make PYTHON=" in line
    assert not (tmp_path / ".venv").exists()


def test_newer_python_on_path_is_found_by_an_old_one(setup_env, monkeypatch):
    there = {sys.executable: ("/old", (3, 8)), "python3.12": ("/usr/bin/python3.12", (3, 12))}
    monkeypatch.setattr(setup_env, "inspect_python", there.get)
    assert setup_env.find_python() == "/usr/bin/python3.12"


def test_launcher_without_a_python_behind_it_is_no_python(setup_env, tmp_path):
    launcher = tmp_path / "python3.12"
    launcher.write_text("#!/bin/sh\necho 'python3.12: command not found' >&2\nexit 127\n")
    launcher.chmod(0o755)
    assert setup_env.inspect_python(str(launcher)) is None
    assert setup_env.inspect_python(str(tmp_path / "absent")) is None
    path, version = setup_env.inspect_python(sys.executable)
    assert version == sys.version_info[:2] and os.path.exists(path)


def test_script_is_readable_for_python_3_6():
    ast.parse(SCRIPT.read_text(), feature_version=(3, 6))


def test_make_without_any_python_says_so_in_one_line(tmp_path):
    make = shutil.which("make")
    assert make is not None
    done = subprocess.run(
        [make, "-C", str(SCRIPT.parents[1]), "--no-print-directory", "SHELL=/bin/sh", "setup"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert len(ours) == 1 and "Python 3.11 or newer" in ours[0] and "make PYTHON=" in ours[0]


@pytest.mark.skipif(sys.platform == "win32", reason="locks are POSIX")
def test_second_call_waits_for_the_first(checkout, setup_env, capsys):
    import fcntl

    let_pip(checkout, f"[ -e {checkout}/go ] || touch {checkout}/too-early")
    with (checkout / "pyproject.toml").open("rb") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [sys.executable, "-c", f"import time; time.sleep(0.5); open({str(checkout / 'go')!r}, 'w')"],
            pass_fds=[first.fileno()],
        )
    assert setup_env.main() == 0
    assert process.wait() == 0
    assert pip_calls(checkout) and not (checkout / "too-early").exists()
    assert "waiting" in capsys.readouterr().out


# --- the compiled operators ---------------------------------------------------------------------------------

FAKE_CMAKE = """#!/bin/sh
echo "$1" >> {place}/cmake-calls
if [ -e {place}/cmake-does ]; then . {place}/cmake-does; fi
"""


@pytest.fixture
def with_sources(checkout, setup_env):
    """The checkout with kernels to compile, and an environment whose cmake only writes down its calls."""
    sources = checkout / "src" / "allsight" / "ops" / "csrc"
    sources.mkdir(parents=True)
    (sources / "kernels.cpp").write_text("// none\n")
    (checkout / "CMakeLists.txt").write_text("# none\n")
    assert setup_env.main() == 0
    return checkout


def install_cmake(checkout, does=""):
    cmake = checkout / ".venv" / "bin" / "cmake"
    cmake.write_text(FAKE_CMAKE.replace("{place}", str(checkout.parent)))
    cmake.chmod(0o755)
    (checkout.parent / "cmake-does").write_text(does)
    (checkout / ".venv" / "native-state").unlink(missing_ok=True)
    (checkout.parent / "cmake-calls").write_text("")


def cmake_calls(checkout):
    return (checkout.parent / "cmake-calls").read_text().split()


def test_operators_are_compiled_once_and_again_when_their_sources_change(with_sources, setup_env):
    install_cmake(with_sources)
    for _ in range(2):
        assert setup_env.main() == 0
        assert cmake_calls(with_sources) == ["-S", "--build", "--install"]
    (with_sources / "src" / "allsight" / "ops" / "csrc" / "kernels.cpp").write_text("// others\n")
    assert setup_env.main() == 0
    assert len(cmake_calls(with_sources)) == 6


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        ("echo 'no C++ compiler found: so what'; exit 1", "no C++ compiler was found"),
        (
            'if [ "$1" = --build ]; then echo "a.cpp:1: error: no such thing"; exit 1; fi',
            "error: no such thing",
        ),
        ("exit 1", "the build failed"),
    ],
)
def test_without_compiled_operators_the_set_up_goes_on_and_leaves_the_reason(
    with_sources, setup_env, capsys, does, reason
):
    install_cmake(with_sources, does)
    capsys.readouterr()
    assert setup_env.main() == 0
    said = capsys.readouterr().out.splitlines()[-1]
    note = with_sources / "src" / "allsight" / "ops" / "not_built.txt"
    assert reason in said and "works without" in said
    assert reason in note.read_text()
    install_cmake(with_sources)
    assert setup_env.main() == 0
    assert not note.exists()


def test_a_compiler_that_was_installed_since_is_tried(with_sources, setup_env, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    before = setup_env.native_fingerprint(with_sources)
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert setup_env.native_fingerprint(with_sources) != before
