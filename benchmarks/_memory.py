"""Peak memory of a piece of work, measured in a fresh process in two ways.

`allocated` is what PyTorch's profiler saw: exact, but blind to what kernels allocate themselves. `resident`
is what the operating system saw (VmHWM): all of it, but with what allocators keep for later. A script that
uses this answers `--peak NAME` by calling `report_peak` with the work of that name.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Peak:
    """Bytes at the highest point above what was there before the work (weights, inputs)."""

    allocated: int
    resident: int


def peak_of(script: str, name: str, *words: str) -> Peak:
    """The peak of the work that `script` knows by this name, in a process of its own."""
    done = subprocess.run(
        [sys.executable, script, "--peak", name, *words], check=True, capture_output=True, text=True
    )
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def report_peak(work: Callable[[], object]) -> None:
    """Do the work three times, the last time under the profiler, and print the peaks for `peak_of`."""
    before = _status_bytes("VmRSS")
    _forget_peak()
    for _ in range(2):
        work()
    resident = _status_bytes("VmHWM") - before
    print(json.dumps(asdict(Peak(allocated_by(work), resident))))


def allocated_by(work: Callable[[], object]) -> int:
    """Highest sum of all allocations and releases during the work.

    A copy that gloo makes of a message is often released by gloo's own thread, where the profiler does not
    look. So of what was allocated while a message was sent and is not seen to be released, the end of the
    sending counts as the release.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        work()
    assert trace.profiler is not None and trace.profiler.kineto_results is not None
    events = sorted(_memory_events(trace.profiler.kineto_results.experimental_event_tree(), None))
    changes: list[tuple[int, int]] = []
    there: dict[int, tuple[int, int | None]] = {}
    for at_ns, place, size, sent_ns in events:
        known = there.pop(place, None)
        if size > 0 and known is not None:
            # Its place was given away once more, so it had been released.
            changes.append((known[1] or at_ns, -known[0]))
        changes.append((at_ns, size))
        if size > 0:
            there[place] = size, sent_ns
    changes += [(sent_ns, -size) for size, sent_ns in there.values() if sent_ns is not None]
    total = highest = 0
    for _, size in sorted(changes, key=lambda change: change[0]):
        total += size
        highest = max(highest, total)
    return highest


def _memory_events(events: Sequence[Any], sent_ns: int | None) -> Iterator[tuple[int, int, int, int | None]]:
    """(time, address, bytes, end of the message it belongs to) of each allocation; releases are negative."""
    for event in events:
        if event.tag == _EventType.Allocation:
            fields = event.extra_fields
            yield event.start_time_ns, fields.ptr, fields.alloc_size, sent_ns
        is_message = event.name.startswith(("c10d::", "gloo:"))
        yield from _memory_events(event.children, event.end_time_ns if is_message else sent_ns)


def mib(count: float) -> str:
    return f"{count / 2**20:.0f} MiB"


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}")


def _forget_peak() -> None:
    """From now on VmHWM counts anew, where the kernel allows that; else it holds the imports' peak too."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("VmHWM could not be reset", file=sys.stderr)
