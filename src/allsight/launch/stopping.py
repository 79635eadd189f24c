"""Signals by which a scheduler says that time is up, passed on to whoever can save."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers and clouds send some time before they kill; we ask Slurm for SIGUSR1."""


@contextmanager
def stopping_on_signals(ask: Callable[[str], None]) -> Iterator[None]:
    """Within, a signal calls `ask` with its name and stops nothing by itself.

    So does the first Ctrl-C (SIGINT); the next one does what it did before, which stops at once.
    Processes forked meanwhile (data workers) still end by it. Outside the main thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    own = os.getpid()

    def hear(number: int, frame: FrameType | None) -> None:
        if os.getpid() == own:
            if number == signal.SIGINT:
                signal.signal(number, before[signal.SIGINT])
            ask(f"signal {signal.Signals(number).name}")
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    if callable(signal.getsignal(signal.SIGINT)):  # Jobs in the background ignore it, and go on doing so.
        before[signal.SIGINT] = signal.getsignal(signal.SIGINT)
    for number in before:
        signal.signal(number, hear)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
