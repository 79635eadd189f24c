"""Folders that one process at a time writes into."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Callable
from typing import IO

from allsight.config import ConfigError

_UNKNOWN = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
"""What network disks say that know no locks."""

Lock = Callable[[int, int], object]


def take(file: IO[bytes] | int, refused: str, *, lock: Lock = fcntl.flock) -> None:
    """Lock an open file until it is closed, or its process ends, however it does.

    On disks that know no locks nothing is held.

    Args:
        refused: What is said if somebody else has it.
        lock: `fcntl.flock`, which belongs to the open file, or `fcntl.lockf`, which belongs to the process:
            it may take the lock again, and its children do not inherit it.
    Raises:
        ConfigError: Somebody else has it.
    """
    try:
        lock(file if isinstance(file, int) else file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise ConfigError(refused) from None
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
