"""A few steps looked at closely: a trace of every rank, its memory, and a summary that can be read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from allsight.config import ConfigError
from allsight.engine.config import ProfileConfig
from allsight.engine.distributed import Ranks
from allsight.engine.events import EventLog
from allsight.engine.profiler.summary import Summary, operators_of, rank_profile
from allsight.engine.profiler.timeline import Timeline

__all__ = ["Profiler", "check_profile"]

_MOST_ALLOCATIONS = 200_000


def check_profile(config: ProfileConfig, folder: Path | None, steps: int) -> None:
    """Whether a run of so many steps can be looked at.

    Raises:
        ConfigError: No folder to write to, or the run has no such steps.
    """
    span = config.span()
    if span and folder is None:
        raise ConfigError("config.profile.steps: needs a run folder to write to; none was given")
    if span and span.stop > steps:
        raise ConfigError(
            f"config.profile.steps: {config.steps} goes beyond the end; the run has {steps} steps, 0:{steps}"
        )


class Profiler:
    """Profiles the steps of `profile.steps` and writes what it saw into `profile/` of the run folder.

    `trace-rank-N.json` is a Chrome trace of every rank (chrome://tracing, Perfetto), `memory-rank-N.pickle`
    on a GPU PyTorch's snapshot of the allocator; `summary.json` and `summary.txt` are about all ranks. Steps
    take longer while they are looked at. What cannot be written is an alarm, no error.

    Args:
        config: Which steps; see `check_profile`.
        folder: Of the run.
    """

    def __init__(self, config: ProfileConfig, folder: Path | None, ranks: Ranks, events: EventLog) -> None:
        self._span = config.span()
        self._folder = folder
        self._ranks, self._events = ranks, events
        self._profile: profile | None = None
        self._wait_s, self._samples, self._first = 0.0, 0, 0

    def before(self, step: int) -> None:
        """Before the data of a step are fetched."""
        if self._profile is None and step in self._span:
            activities = [ProfilerActivity.CPU]
            if self._ranks.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
                torch.cuda.memory._record_memory_history(max_entries=_MOST_ALLOCATIONS)
            self._wait_s, self._samples, self._first = 0.0, 0, step
            self._profile = profile(activities=activities, profile_memory=True, acc_events=True)
            self._profile.start()

    def after(self, step: int, *, samples: int, wait_s: float) -> None:
        """After a step, before it is judged or saved; all ranks call this alike.

        Args:
            samples: Of the step, over all ranks.
            wait_s: How long this rank waited for their data.
        """
        if self._profile is None:
            return
        self._wait_s, self._samples = self._wait_s + wait_s, self._samples + samples
        if step + 1 == self._span.stop:
            seen, self._profile = self._profile, None
            seen.stop()
            self._write(seen, step)

    def close(self) -> None:
        """Give up a profile that is going on, as when the run fails."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _write(self, seen: profile, last: int) -> None:
        assert self._folder is not None
        folder = self._folder / "profile"
        rank, device = self._ranks.rank, self._ranks.device
        timeline = Timeline.of(seen, device)
        own = rank_profile(rank, timeline, data_s=self._wait_s)
        everyone = self._ranks.gather(own)
        summary = Summary(
            first=self._first,
            last=last,
            device=str(device.type),
            samples=self._samples,
            ranks=tuple(everyone),
            operators=operators_of(seen, device),
            memory=timeline.memory(),
            lanes=timeline.lanes(),
        )
        problem = ""
        try:
            folder.mkdir(exist_ok=True)
            seen.export_chrome_trace(str(folder / f"trace-rank-{rank}.json"))
            if device.type == "cuda":
                torch.cuda.memory._dump_snapshot(str(folder / f"memory-rank-{rank}.pickle"))
            if self._ranks.is_first:
                (folder / "summary.json").write_text(
                    json.dumps({**asdict(summary), "text": summary.gist}) + "\n"
                )
                (folder / "summary.txt").write_text(summary.to_text() + "\n", encoding="utf-8")
        except (OSError, RuntimeError) as error:
            problem = str(error)
        if device.type == "cuda":
            torch.cuda.memory._record_memory_history(enabled=None)
        for number, theirs in enumerate(self._ranks.gather(problem)):
            if theirs:
                text = f"profile of rank {number} not written: {theirs}; training goes on"
                self._events.write("alarm", last, text=text)
        values = {"exposed_share": summary.communication_share, "data_share": summary.data_share}
        self._events.write("note", last, values=values, text=f"{summary.gist}; see profile/summary.txt")
