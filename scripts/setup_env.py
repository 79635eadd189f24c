"""Make `.venv` hold allsight and everything it needs; do nothing when it already does.

Called by every target of the Makefile. Speaks to the person at the terminal in one line when something is in
the way (what, where, remedy) and repairs what an interrupted call left behind. Only the standard library, and
only syntax of Python 3.6, because it also has to tell owners of an old Python what they need.
"""

import errno
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List, Optional, Tuple

ROOT = Path(__file__).resolve().parent.parent
OLDEST = (3, 11)
NEEDED_BYTES = 3 * 10**9
INPUTS = ("pyproject.toml", "constraints.txt", "scripts/setup_env.py")
NATIVE_INPUTS = ("CMakeLists.txt", "src/allsight/ops/csrc/*")
NATIVE_NOTE = "src/allsight/ops/not_built.txt"
IN_PROGRESS = "in progress"
NAMES = ("python3.11", "python3.12", "python3.13", "python3.14", "python3", "python")


class SetupError(Exception):
    """Why the set-up cannot go on, in one line for the user."""


def main() -> int:
    """Set up the environment of this checkout; the exit status."""
    try:
        set_up(ROOT)
        build_native(ROOT)
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"set-up: {_disk_full(ROOT)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("set-up: interrupted; the next call starts it anew", file=sys.stderr)
        return 130
    return 0


def set_up(root: Path) -> None:
    """Bring `root/.venv` up to date with the checkout.

    Raises:
        SetupError: No usable Python, disk full, or a package that cannot be had.
    """
    venv = root / ".venv"
    if is_current(root):
        return
    python = find_python()
    if sys.version_info < OLDEST:
        os.execv(python, [python, str(root / "scripts" / "setup_env.py")])
    with _only_one(root):
        if is_current(root):
            return
        if not _reusable(venv):
            _discard(venv)
            _require_space(root)
            _say(f"making .venv with {python} (once; fetching the packages takes some minutes)")
            _make_environment(python, venv)
        else:
            _say("bringing .venv up to date")
            _write_state(venv, IN_PROGRESS)
        pip = _pip_command(python, venv)
        log = venv / "setup.log"
        log.write_text("")
        run_pip([*pip, "install", "-c", str(root / "constraints.txt"), *requirements(root)], root, log)
        # The project itself comes apart from its dependencies: without them pip needs no index for it, and
        # without isolation it is built with the pinned tools.
        run_pip([*pip, "install", "--no-build-isolation", "--no-deps", "-e", str(root)], root, log)
        _try_imports(venv, log)
        _write_state(venv, fingerprint(root))
        _say("done")


def is_current(root: Path) -> bool:
    """Whether the environment is whole and was made from the files as they are now."""
    venv = root / ".venv"
    return _read_state(venv) == fingerprint(root) and _venv_python(venv).exists()


def fingerprint(root: Path) -> str:
    """Hash of all that decides what the environment holds, its place included (venvs cannot be moved)."""
    digest = hashlib.sha256(str(root).encode())
    for name in INPUTS:
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


def requirements(root: Path) -> List[str]:
    """The dependencies of the project and of its tests and tools, as pyproject.toml names them."""
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["dependencies"] + project["optional-dependencies"]["dev"]


# --- the compiled operators ---------------------------------------------------------------------------------


def build_native(root: Path) -> None:
    """Compile the operators into the checkout, or say why not: without them everything works, only slower."""
    state, current = root / ".venv" / "native-state", native_fingerprint(root)
    if current == "" or (state.exists() and state.read_text() == current):
        return
    with _only_one(root):
        if state.exists() and state.read_text() == current:
            return
        log = root / ".venv" / "native.log"
        _say("compiling the operators (about half a minute)")
        reason = _compile(root, log)
        note = root / NATIVE_NOTE
        if reason:
            note.write_text(reason + "\n")
            _say(f"operators not compiled: {reason}; allsight works without, more slowly; log: {log}")
        elif note.exists():
            note.unlink()
        state.write_text(current)


def native_fingerprint(root: Path) -> str:
    """Hash of all that the compiled operators are made from; empty if this checkout has none."""
    files = sorted(file for pattern in NATIVE_INPUTS for file in root.glob(pattern) if file.is_file())
    # With a compiler that was not there before, it is tried again.
    compilers = [str(shutil.which(name)) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")]
    digest = hashlib.sha256(" ".join([str(root), *compilers]).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest() if files else ""


def _compile(root: Path, log: Path) -> str:
    """Why the operators could not be compiled; empty if they were."""
    tools, build = root / ".venv" / "bin", root / "build" / "native"
    # A folder of an earlier place or generator cannot be used again.
    shutil.rmtree(str(build), ignore_errors=True)
    cmake, ninja = str(tools / "cmake"), "-DCMAKE_MAKE_PROGRAM=" + str(tools / "ninja")
    with log.open("w", encoding="utf-8") as file:
        for command in (
            [cmake, "-S", str(root), "-B", str(build), "-G", "Ninja", ninja],
            [cmake, "--build", str(build)],
            [cmake, "--install", str(build), "--prefix", str(root / "src")],
        ):
            try:
                if subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode:
                    break
            except OSError as error:
                return f"{command[0]} cannot be run ({error.strerror})"
        else:
            return ""
    text = log.read_text(encoding="utf-8", errors="replace")
    if "no C++ compiler found" in text:
        return "no C++ compiler was found (Debian, Ubuntu: apt install g++, then make again)"
    found = re.search(r"(?m)^.*(?:error|Error): .*$", text)
    return found.group(0).strip() if found else "the build failed"


# --- finding a Python ---------------------------------------------------------------------------------------


def find_python() -> str:
    """Path of a Python that is new enough: the running one, else one on PATH.

    Raises:
        SetupError: There is none.
    """
    too_old = []  # type: List[str]
    for candidate in (sys.executable, *NAMES):
        found = inspect_python(candidate)
        if found is None:
            continue
        path, (major, minor) = found
        if (major, minor) >= OLDEST:
            return path
        too_old.append(f"{path} is {major}.{minor}")
    seen = ", ".join(sorted(set(too_old))) or "none was found on PATH"
    raise SetupError(
        f"Python 3.11 or newer is needed, but {seen}; install one, or name it: make PYTHON=/path/to/python"
    )


def inspect_python(name: str) -> Optional[Tuple[str, Tuple[int, int]]]:
    """Path of the interpreter behind a name, a virtual environment or a launcher, and its version.

    None if it is not there or does not run: a launcher may have nothing behind it, so only running it tells.
    """
    code = (
        "import os, sys; print(os.path.realpath(getattr(sys, '_base_executable', sys.executable)));"
        " print(*sys.version_info[:2])"
    )
    try:
        done = subprocess.run(
            [name, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30, check=True
        )
        path, version = done.stdout.decode().splitlines()[-2:]
        major, minor = version.split()
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return path, (int(major), int(minor))


# --- the environment and its state --------------------------------------------------------------------------


def _venv_python(venv: Path) -> Path:
    return venv / "bin" / "python"


def _read_state(venv: Path) -> Optional[str]:
    try:
        return (venv / "setup-state").read_text()
    except OSError:
        return None


def _write_state(venv: Path, state: str) -> None:
    new = venv / "setup-state.new"
    new.write_text(state)
    os.replace(str(new), str(venv / "setup-state"))


def _reusable(venv: Path) -> bool:
    """Whether packages can be added to what is there: it runs, and no set-up was cut short in it."""
    if _read_state(venv) == IN_PROGRESS or not _venv_python(venv).exists():
        return False
    found = inspect_python(str(_venv_python(venv)))
    return found is not None and found[1] >= OLDEST


def _discard(venv: Path) -> None:
    """Remove an environment; cut short at any moment, it leaves nothing that looks like one."""
    stale = venv.with_name(".venv.stale")
    shutil.rmtree(str(stale), ignore_errors=True)
    if venv.exists():
        _say("removing a .venv that is not whole")
        os.replace(str(venv), str(stale))
        shutil.rmtree(str(stale), ignore_errors=True)


def _make_environment(python: str, venv: Path) -> None:
    venv.mkdir()
    _write_state(venv, IN_PROGRESS)
    # Some systems ship venv without the bundled pip; then the pip of `python` itself installs into it.
    for extra in ([], ["--without-pip"]):
        command = [python, "-m", "venv", *extra, str(venv)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode == 0:
            return
    said = done.stdout.decode(errors="replace").strip().splitlines() or ["no reason given"]
    if "No space left" in " ".join(said):
        raise SetupError(_disk_full(venv.parent))
    raise SetupError(
        f"{python} -m venv failed ({said[-1]}); install the venv module (Debian, Ubuntu: apt install"
        " python3-venv) or name another Python: make PYTHON=..."
    )


def _pip_command(python: str, venv: Path) -> List[str]:
    common = ["--disable-pip-version-check", "--no-input"]
    own = [str(_venv_python(venv)), "-m", "pip"]
    if _succeeds([*own, "--version"]):
        return [*own, *common]
    outer = [python, "-m", "pip"]
    if _succeeds([*outer, "--version"]):
        return [*outer, *common, "--python", str(_venv_python(venv))]
    raise SetupError(
        f"{python} has neither ensurepip nor pip; install one (Debian, Ubuntu: apt install python3-venv"
        " python3-pip) or name another Python: make PYTHON=..."
    )


def _succeeds(command: List[str]) -> bool:
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


@contextmanager
def _only_one(root: Path) -> Iterator[None]:
    """Let a second call wait for the first, so that it does not take its work for an interrupted one."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with (root / "pyproject.toml").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _say("waiting for another set-up of this checkout")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- installing, and saying why it failed -------------------------------------------------------------------


def run_pip(command: List[str], root: Path, log: Path) -> None:
    """Run pip with its output in `log`.

    Raises:
        SetupError: pip failed; the text names the package and the log.
    """
    lines = []  # type: List[str]
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(command, cwd=str(root), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        with process:
            for raw in process.stdout or ():
                line = raw.decode("utf-8", errors="replace").rstrip()
                lines.append(line)
                file.write(line + "\n")
                _show_progress(line)
        status = process.returncode
    _show_progress("")
    if status:
        raise SetupError(explain(lines, status, root, log))


def explain(lines: List[str], status: int, root: Path, log: Path) -> str:
    """One line on why pip failed, from what it printed."""
    text = "\n".join(lines)
    if "No space left on device" in text or "Errno 28" in text:
        return _disk_full(root)
    if status < 0:
        return f"pip was ended by signal {-status} (too little memory?); run make again; log: {log}"
    unbuilt = re.search(r"Failed building (?:wheel|editable) for (\S+)|Failed to build '?([\w.-]+)", text)
    if unbuilt:
        return f"package {unbuilt.group(1) or unbuilt.group(2)} could not be built; the reason is in {log}"
    clash = re.search(r"Cannot install (.+?) because these package versions", text)
    if clash:
        return f"packages {clash.group(1)} contradict each other; mend constraints.txt; log: {log}"
    package = _missing_package(text) or "(unnamed)"
    if re.search(r"Max retries exceeded|timed out|ConnectionError|IncompleteRead|Connection refused", text):
        why = "the package index does not answer; check the network or pip's index settings"
    elif "No matching distribution" in text or "Could not find a version" in text:
        version = ".".join(platform.python_version_tuple()[:2])
        why = (
            f"the index has none for Python {version} on {platform.system()} {platform.machine()};"
            " check pip's index settings or name another Python: make PYTHON=..."
        )
    else:
        why = ([line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["pip said nothing"])[-1]
    return f"package {package} cannot be had: {why}; then run make again; log: {log}"


def _missing_package(text: str) -> Optional[str]:
    # The first two name what failed; the last two only what pip was busy with when it gave up.
    for pattern in (
        r"No matching distribution found for (\S+)",
        r"Could not find a version that satisfies the requirement (\S+)",
        r"exceeded with url: \S*/([\w.-]+?)(?:-\d\S*\.(?:whl|tar\.gz)\S*|/) ",
        r"(?s:.*)\n\s*Downloading \S*?([\w.]+-\d[\w.+]*)-\S*\.whl",
        r"(?s:.*)Collecting (\S+)",
    ):
        found = re.search(pattern, text)
        if found:
            return found.group(1)
    return None


def _try_imports(venv: Path, log: Path) -> None:
    command = [str(_venv_python(venv)), "-c", "import allsight, numpy, torch"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        said = done.stdout.decode(errors="replace")
        with log.open("a", encoding="utf-8") as file:
            file.write(said)
        reason = (said.strip().splitlines() or ["no reason given"])[-1]
        raise SetupError(f"the packages do not import ({reason}); try 'make clean', then again; log: {log}")


def free_bytes(path: Path) -> int:
    """Free space of the disk that holds `path`."""
    return shutil.disk_usage(str(path)).free


def _require_space(root: Path) -> None:
    free = free_bytes(root)
    if free < NEEDED_BYTES:
        raise SetupError(
            f"not enough disk space in {root}: {free / 1e9:.1f} GB free, .venv needs about"
            f" {NEEDED_BYTES / 1e9:.0f} GB; free some, then run make again"
        )


def _disk_full(root: Path) -> str:
    temporary = Path(tempfile.gettempdir())
    places = ", ".join(f"{place}: {free_bytes(place) / 1e9:.1f} GB free" for place in (root, temporary))
    return f"the disk ran full ({places}); free some, then run make again"


# --- speaking -----------------------------------------------------------------------------------------------


def _say(text: str) -> None:
    print("set-up: " + text, flush=True)


def _show_progress(line: str) -> None:
    """Keep one moving line on a terminal, so that a long download is not taken for a hang."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        print("\r" + line.strip()[:width].ljust(width) + "\r", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
