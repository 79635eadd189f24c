"""Files on servers, read in ranges, with patience: what fails for a moment is tried again, what cannot
succeed ends at once with one line.

`http://` and `https://` are spoken here, over Python's own urllib, since fsspec would need two more packages
for them and leaves short answers and slow servers to its callers. All other schemes (`s3://`, `gs://`,
`memory://`, ...) go through fsspec and the package it names for each.
"""

from __future__ import annotations

import http.client
import os
import random
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from allsight.config import ConfigError
from allsight.data.shards.stores import Counts, RemoteError

_PIECE = 2**16
_TRANSIENT_STATUS = (408, 425, 429)
_SLOWEST_BYTES_PER_S = 10_000
_NO_KEYS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
"""How botocore and google-auth call it that nothing says who asks."""


class Momentary(Exception):
    """One try failed in a way that the next one may not.

    Args:
        reason: What happened.
        wait_s: What the server asks to wait, if it does.
    """

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Patience:
    """How long and how often a server is asked.

    Args:
        tries: Requests before a read is given up.
        timeout_s: Longest silence of a server; a whole answer may take this and 100 s a megabyte.
        first_wait_s: Pause after the first failure; it doubles each time, and each is scaled by a random
            factor from 0.5 to 1.5, so that many readers do not come back together.
        longest_wait_s: The pauses do not grow beyond this.
        sleep: Waits so many seconds.
    """

    tries: int = 6
    timeout_s: float = 30.0
    first_wait_s: float = 0.25
    longest_wait_s: float = 20.0
    sleep: Callable[[float], None] = time.sleep

    def ask(self, where: str, once: Callable[[], bytes], counts: Counts) -> bytes:
        """Call `once` until it answers.

        Raises:
            RemoteError: It raised `Momentary` each time.
        """
        # The pauses need not be the same in the next run, but should differ between processes in this one.
        rng = random.Random(f"{socket.gethostname()} {os.getpid()} {where}")
        begun = time.monotonic()
        for attempt in range(1, self.tries + 1):
            counts.requests += 1
            counts.retries += attempt > 1
            try:
                data = once()
            except Momentary as failure:
                if attempt == self.tries:
                    raise RemoteError(
                        f"{where}: no answer in {self.tries} tries over {time.monotonic() - begun:.0f} s, "
                        f"the last: {failure}; check the network and the server, then run the command again"
                    ) from failure
                pause = min(self.longest_wait_s, self.first_wait_s * 2 ** (attempt - 1))
                asked = min(failure.wait_s or 0.0, 3 * self.longest_wait_s)
                self.sleep(max(asked, pause * (0.5 + rng.random())))
            else:
                counts.received += len(data)
                return data
        raise AssertionError("at least one try")


@dataclass(frozen=True)
class HttpStore:
    """The files below a URL `http://` or `https://`. A part of the URL after `?` is sent with each name."""

    base: str
    query: str = ""
    patience: Patience = field(default_factory=Patience)
    counts: Counts = field(default_factory=Counts, compare=False)

    def where(self, name: str) -> str:
        return f"{self.base}/{name}"

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        if size == 0:
            return b""
        url = f"{self.base}/{name}" + (f"?{self.query}" if self.query else "")
        where = self.where(name)
        return self.patience.ask(where, lambda: self._once(url, where, start, size), self.counts)

    def _once(self, url: str, where: str, start: int, size: int | None) -> bytes:
        headers = {"User-Agent": "allsight", "Accept-Encoding": "identity"}
        if size is not None:
            headers["Range"] = f"bytes={start}-{start + size - 1}"
        try:
            request = urllib.request.Request(url, headers=headers)
            with urllib.request.urlopen(request, timeout=self.patience.timeout_s) as answer:
                if size is not None:
                    _check_range(answer, where, start)
                return self._body(answer, size)
        except urllib.error.HTTPError as error:
            with error:
                raise _of_status(error, where) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise ConfigError(
                    f"{where}: its certificate is not trusted ({error.reason.verify_message})"
                ) from error
            raise Momentary(str(error.reason)) from error
        except http.client.InvalidURL as error:
            raise ConfigError(f"{where}: not a URL ({error})") from error
        except TimeoutError as error:
            raise Momentary(f"silent for {self.patience.timeout_s:g} s") from error
        except (http.client.HTTPException, OSError) as error:
            raise Momentary(f"{type(error).__name__}: {error}") from error

    def _body(self, answer: Any, size: int | None) -> bytes:
        stated = answer.headers.get("Content-Length")
        expected = size if size is not None else int(stated) if stated and stated.isdecimal() else None
        begun, parts, got = time.monotonic(), [], 0
        while expected is None or got < expected:
            piece = answer.read1(_PIECE if expected is None else min(_PIECE, expected - got))
            if not piece:
                break
            parts.append(piece)
            got += len(piece)
            if time.monotonic() - begun > self.patience.timeout_s + got / _SLOWEST_BYTES_PER_S:
                raise Momentary(f"only {got} bytes in {time.monotonic() - begun:.0f} s")
        if expected is not None and got != expected:
            raise Momentary(f"a short answer: {got} of {expected} bytes")
        return b"".join(parts)


@dataclass(frozen=True)
class FsspecStore:
    """The files below a URL of any scheme that fsspec knows. Time-outs are those of the package behind it."""

    base: str
    patience: Patience = field(default_factory=Patience)
    counts: Counts = field(default_factory=Counts, compare=False)

    def where(self, name: str) -> str:
        return f"{self.base}/{name}"

    def read(self, name: str, start: int = 0, size: int | None = None) -> bytes:
        if size == 0:
            return b""
        where = self.where(name)
        return self.patience.ask(where, lambda: self._once(where, start, size), self.counts)

    def _once(self, where: str, start: int, size: int | None) -> bytes:
        import fsspec.core

        try:
            # fsspec keeps one object for each server and process.
            files, path = fsspec.core.url_to_fs(where)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{where}: {' '.join(str(error).split())}") from error
        try:
            data = files.cat_file(
                path, start=None if size is None else start, end=None if size is None else start + size
            )
        except FileNotFoundError:
            raise
        except (PermissionError, NotImplementedError) as error:
            raise ConfigError(
                f"{where}: {type(error).__name__}: {error}; check the address and your rights"
            ) from error
        except Exception as error:
            raise _of_package(error, where) from error
        if size is not None and len(data) != size:
            raise Momentary(f"a short answer: {len(data)} of {size} bytes")
        return data


def _check_range(answer: Any, where: str, start: int) -> None:
    if answer.status != 206:
        raise ConfigError(
            f"{where}: the server does not serve ranges of files (status {answer.status} instead of 206); "
            "put the shards on one that does, or on a disk"
        )
    stated = answer.headers.get("Content-Range", "")
    if not stated.startswith(f"bytes {start}-"):
        raise Momentary(f"the range {stated!r} instead of one from byte {start}")


def _of_status(error: urllib.error.HTTPError, where: str) -> Exception:
    said = f"HTTP {error.code} {error.reason}"
    if error.code in _TRANSIENT_STATUS or error.code >= 500:
        wait = error.headers.get("Retry-After", "")
        return Momentary(said, float(wait) if wait.isdecimal() else None)
    if error.code == 404:
        return FileNotFoundError(2, f"{where}: {said}", where)
    if error.code == 416:
        return _too_short(where, said)
    return ConfigError(f"{where}: {said}; check the address and your rights")


def _of_package(error: Exception, where: str) -> Exception:
    """What an error of a package behind fsspec means: each has its own, and most may pass.

    Known by what they say, since their packages (botocore, gcsfs, ...) need not be here.
    """
    name, said = type(error).__name__, " ".join(str(error).split())[:200]
    if name in _NO_KEYS:
        return ConfigError(f"{where}: {name}: {said}; check the environment or the files with your keys")
    if re.search(r"range .*not satisf", said, re.IGNORECASE):
        return _too_short(where, said)
    return Momentary(f"{name}: {said}")


def _too_short(where: str, said: str) -> ConfigError:
    return ConfigError(f"{where}: {said}: the file is shorter than its index says; pack or index it anew")
