"""How much memory do the operators take for forward and backward, against the official formulations?

    python benchmarks/operator_memory.py

Peaks above the inputs, in a fresh process each. Results go to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from _memory import mib, peak_of, report_peak
from _page import RESULTS, setting_of, write_page

from allsight.launch.bench.cases import OFFICIAL, OURS, REFERENCE, select
from allsight.launch.bench.compare import gradient_like, with_gradients
from allsight.launch.bench.report import aligned

CASES = ("msda-encoder", "dcnv3-224-b8-s1", "dcnv3-512-b1-s1")
# Share of the official formulation's peak at most: what must be and what should be.
BARS = {"msda-encoder": (0.15, 0.12)}


def report(name: str, way: str) -> None:
    """Forward and backward of one case."""
    case = select([name])[0]
    inputs, ways = with_gradients(case.make(True)), case.ways()
    with torch.no_grad():
        grad = gradient_like(ways[OURS](*inputs, False))
    report_peak(lambda: torch.autograd.grad(ways[way](*inputs, False), inputs, grad))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.peak:
        report(*chosen.peak.split(":"))
        return
    lines = [["forward and backward of", "on", "allocated", "VmHWM", "allsight's share", "must", "stretch"]]
    for name in CASES:
        ours = peak_of(__file__, f"{name}:{OURS}")
        lines.append([name, OURS, mib(ours.allocated), mib(ours.resident), "", "", ""])
        for way in (OFFICIAL, REFERENCE):
            peak = peak_of(__file__, f"{name}:{way}")
            bars = [f"<= {bar}" for bar in BARS.get(name, ())] if way == OFFICIAL else []
            share = f"{ours.allocated / peak.allocated:.2f}"
            lines.append(["", way, mib(peak.allocated), mib(peak.resident), share, *(bars or ["", ""])])
    note = "Peaks above the inputs; the share is what allsight allocated in that."
    setting = setting_of(__file__, "1 thread, a fresh process for each line")
    write_page("operator_memory", "Memory of the operators", setting, [aligned(lines), note], chosen.out)


if __name__ == "__main__":
    main()
