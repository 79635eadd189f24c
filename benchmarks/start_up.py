"""How long does it take until something can be typed? Imports and `--help` in fresh processes.

    python benchmarks/start_up.py

Wall time, as a person waits, and CPU time beside it; the commands take turns, the first round is not counted
(it writes byte code and fills the disk cache). Results go to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from _page import RESULTS, setting_of, write_page

from allsight.launch.bench.report import aligned

SCRIPT = Path(sys.executable).with_name("allsight")
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import allsight": [sys.executable, "-c", "import allsight"],
    "import torch": [sys.executable, "-c", "import torch"],
    "import allsight.ops": [sys.executable, "-c", "import allsight.ops"],
    "allsight --help": [str(SCRIPT), "--help"]
    if SCRIPT.is_file()
    else [sys.executable, "-m", "allsight.cli", "--help"],
}


def run(words: list[str]) -> tuple[float, float]:
    """(wall, CPU) seconds of a command."""
    begun = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)
    return wall, usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=20, help="fresh processes of each command")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for number in range(chosen.pairs + 1):
        for name in reversed(COMMANDS) if number % 2 else COMMANDS:
            took = run(COMMANDS[name])
            if number:
                times[name].append(took)

    def seconds(name: str, which: int) -> float:
        return median(sample[which] for sample in times[name])

    def beyond_torch(which: int) -> float:
        """Of neighbouring processes, in the median."""
        pairs = zip(times["import allsight.ops"], times["import torch"], strict=True)
        return median(ours[which] - torchs[which] for ours, torchs in pairs)

    lines = [["what", "wall, s", "CPU, s", "bar of the wall time"]]
    bars = {"import allsight": "< 0.15", "allsight --help": "< 0.5"}
    lines += [[n, f"{seconds(n, 0):.3f}", f"{seconds(n, 1):.3f}", bars.get(n, "")] for n in COMMANDS]
    beyond = [f"{beyond_torch(which):.3f}" for which in (0, 1)]
    lines.append(["import allsight.ops beyond import torch", *beyond, "<= 0.15"])
    setting = setting_of(__file__, f"{chosen.pairs} fresh processes of each command, in turns; medians")
    parts = [aligned(lines), "Times of whole processes, the start of Python included."]
    write_page("start_up", "Start-up", setting, parts, chosen.out)


if __name__ == "__main__":
    main()
