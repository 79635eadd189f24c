"""What a trace says about time: when phases, computation and communication ran, and what memory did."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch.autograd import DeviceType
from torch.profiler import profile

from allsight.engine.profiler.clock import RANGE

Spans = Float64[np.ndarray, "_ 2"]
"""Begins and ends in seconds; in order, without overlaps."""

_COMMUNICATION = ("gloo:", "nccl:", "ncclDevKernel", "ncclKernel")
_NO_WORK = (
    "c10d::",
    "FSDP::",
    "RegisterPostBackward",
    "DistributedDataParallel.",
    "Optimizer.",
    "autograd::engine",
    "ProfilerStep",
)
"""Ranges around operators, which are also there while nothing but waiting happens."""
_MOST_POINTS = 400


@dataclass(frozen=True)
class Timeline:
    """One rank's profile as spans of time from its beginning on.

    Args:
        seconds: Length of the profile.
        phases: Phase of a step -> when it ran.
        communication: When exchanges with other ranks were under way.
        work: When operators (on a GPU: kernels) ran.
        allocated: Rows (seconds, bytes): how far memory was above or below what was there at the beginning.
    """

    seconds: float
    phases: dict[str, Spans]
    communication: Spans
    work: Spans
    allocated: Float64[np.ndarray, "_ 2"]

    @classmethod
    def of(cls, seen: profile, device: torch.device) -> Timeline:
        """From a profile that has ended."""
        assert seen.profiler is not None and seen.profiler.kineto_results is not None
        where = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
        begun_ns = seen.profiler.kineto_results.trace_start_ns()
        spans: dict[str, list[tuple[float, float]]] = {}
        sent: list[tuple[float, float]] = []
        work: list[tuple[float, float]] = []
        memory: list[tuple[float, float]] = []
        end = 0.0
        found: list[Any] = seen.profiler.kineto_results.events()
        for event in found:
            name, start = event.name(), (event.start_ns() - begun_ns) / 1e9
            span = (start, start + event.duration_ns() / 1e9)
            if name == "[memory]":
                if event.device_type() == where:
                    memory.append((start, float(event.nbytes())))
                continue
            end = max(end, span[1])
            if name.startswith(RANGE):
                # On a GPU ranges come twice; those of the CPU say when the work was ordered, not done.
                if event.device_type() == where or name == f"{RANGE}data":
                    spans.setdefault(name.removeprefix(RANGE), []).append(span)
            elif name.startswith(_COMMUNICATION):
                if event.device_type() == where:
                    sent.append(span)
            elif event.device_type() == where and not name.startswith(_NO_WORK):
                work.append(span)
        memory.sort()
        times = np.array([at for at, _ in memory], dtype=np.float64)
        level = np.cumsum([size for _, size in memory], dtype=np.float64)
        phases = {name: union(found) for name, found in spans.items()}
        return cls(end, phases, union(sent), union(work), np.stack([times, level], 1).reshape(-1, 2))

    def exposed(self) -> Spans:
        """When ranks were speaking, or waiting for each other, and nothing else ran."""
        return minus(self.communication, self.work)

    def memory(self) -> list[tuple[float, int]]:
        """(seconds, bytes) thinned to the highest points."""
        parts = np.array_split(self.allocated, max(1, min(_MOST_POINTS, len(self.allocated))))
        tops = [part[part[:, 1].argmax()] for part in parts if len(part)]
        return [(round(float(at), 6), int(size)) for at, size in tops]

    def lanes(self) -> list[tuple[str, float, float]]:
        """(phase, begin, end), in order of time."""
        found = [
            (name, round(float(begin), 6), round(float(end), 6))
            for name, spans in self.phases.items()
            for begin, end in spans
        ]
        return sorted(found, key=lambda lane: lane[1])


def union(spans: Iterable[tuple[float, float]]) -> Spans:
    """The time that is in any of the spans."""
    found = np.array(sorted(spans), dtype=np.float64).reshape(-1, 2)
    if not len(found):
        return found
    ends = np.maximum.accumulate(found[:, 1])
    starts_new = np.append(True, found[1:, 0] > ends[:-1])
    firsts = np.flatnonzero(starts_new)
    lasts = np.append(firsts[1:], len(found)) - 1
    return np.stack([found[firsts, 0], ends[lasts]], 1)


def minus(spans: Spans, others: Spans) -> Spans:
    """The time that is in `spans` and not in `others`."""
    if not len(others):
        return spans
    outside = np.stack([np.append(-np.inf, others[:, 1]), np.append(others[:, 0], np.inf)], 1)
    return common(spans, outside)


def common(a: Spans, b: Spans) -> Spans:
    """The time that is in both."""
    found: list[Any] = []
    i = j = 0
    while i < len(a) and j < len(b):
        begin, end = max(a[i, 0], b[j, 0]), min(a[i, 1], b[j, 1])
        if begin < end:
            found.append((begin, end))
        if a[i, 1] < b[j, 1]:
            i += 1
        else:
            j += 1
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def length(spans: Spans) -> float:
    """Seconds in all."""
    return float((spans[:, 1] - spans[:, 0]).sum())
