"""The command line. `allsight --help` loads neither torch nor a recipe: verbs import what they need to run.

Exit status: 0 fine; 1 the run failed; 2 the user's input is wrong; 75 a run was told to stop and saved; 130
interrupted; 141 nobody read on what was printed (a training goes on all the same). What is the user's to mend
is said in one line a fault on the error stream; anything else is our bug and keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from allsight.cli.pipes import UNREAD, drop_unread, say


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words after the program's name; default those of this process.
    Returns:
        The exit status.
    """
    status = _run(list(sys.argv[1:] if arguments is None else arguments))
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = status or UNREAD
    drop_unread()
    return status


def _run(words: list[str]) -> int:
    from allsight.cli.app import app

    debug = words[:1] == ["--debug"]
    try:
        status = app(words, prog_name="allsight", standalone_mode=False)
    except SystemExit as error:
        # Typer makes this of any broken pipe, that of a connection included.
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        if drop_unread():
            return UNREAD
        raise error.__context__ from None
    except Exception as error:
        from allsight.cli.faults import fault_of

        fault = fault_of(error, words)
        if fault is None or debug:
            raise
        if fault.text:
            say(fault.text)
        return fault.status
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    return status if isinstance(status, int) else 0
