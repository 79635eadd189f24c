"""Where nobody reads any more what a command prints, as after `allsight config --list | head`."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

UNREAD = 141
"""Exit status of a command whose output was left unread: 128 and the number of SIGPIPE, as shells count."""


@contextmanager
def unread_is_fine() -> Iterator[None]:
    """Within, prints for which there is no reader end the block and not the command.

    For the words after long work, which has done what it should whether or not anybody hears of it.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        if not drop_unread():
            raise


def say(text: str) -> None:
    """Print a line on the error stream, if anybody reads it."""
    with suppress(BrokenPipeError):
        print(text, file=sys.stderr)


def drop_unread() -> bool:
    """Send to nowhere what goes to a stream that nobody reads; whether there is one.

    Else Python finds the same fault once more when it ends, and says so.
    """
    found = False
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is None or stream.closed or not _is_unread(stream.fileno()):
            continue
        found = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    return found


def _is_unread(descriptor: int) -> bool:
    """Whether it is a pipe whose other end is closed; streams themselves forget a write that failed."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
