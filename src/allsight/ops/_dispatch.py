"""Which implementation of an operator serves a call, and why.

Precedence: argument `backend=` > `use_backend(...)` > environment variable `ALLSIGHT_BACKEND` > "auto".
"auto" takes the first implementation of the operator's list that serves the call; a backend that was asked
for by name and cannot serve the call is an error that says why, never a silent fall-back.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

Backend = Literal["auto", "reference", "cpu", "triton"]
BACKENDS: tuple[str, ...] = get_args(Backend)
ENVIRONMENT_VARIABLE = "ALLSIGHT_BACKEND"

# Of the whole process and not a ContextVar or thread-local: torch.compile guards a plain global, so that a
# compiled model follows `use_backend`, and backward threads that recompute a block see the same wish.
_forced: str | None = None


@dataclass(frozen=True)
class Availability:
    """Whether a backend can be used on this machine, and the reason in words."""

    usable: bool
    why: str


@dataclass(frozen=True)
class BackendStatus:
    """What "auto" takes for one operator on this machine, and the state of every backend.

    Attributes:
        op: Name of the operator.
        chosen: Backend that "auto" takes for ordinary float32 calls.
        why: Reason of that choice.
        forced: Backend that `use_backend` or `ALLSIGHT_BACKEND` asks for at the moment, else None.
        backends: Availability of every backend name, in order of preference.
    """

    op: str
    chosen: str
    why: str
    forced: str | None
    backends: Mapping[str, Availability]

    def __str__(self) -> str:
        forced = f"; forced: {self.forced}" if self.forced else ""
        return f"{self.op:<20}{self.chosen:<10}({self.why}{forced})"


@dataclass(frozen=True)
class Implementation:
    """One way to compute an operator.

    Attributes:
        name: Backend name.
        run: The function; all implementations of an operator take the same arguments.
        about: What to say of it where it is usable.
        unusable: Reason why this machine cannot run it, or None when it can.
        refuses: Reason why this call (dtype, device, sizes) cannot be served, or None when it can.
    """

    name: str
    run: Callable[..., Any]
    about: str
    unusable: Callable[[], str | None]
    refuses: Callable[..., str | None]


@dataclass(frozen=True)
class Operator:
    """The implementations of one operator, fastest first; the last one serves every valid call."""

    name: str
    implementations: tuple[Implementation, ...]

    def pick(self, backend: str, *call: Any) -> Callable[..., Any]:
        """Choose the function for a call.

        Args:
            backend: The caller's argument; "auto" leaves the choice to context, environment and this table.
            call: What the implementations look at to decide whether they serve the call.

        Raises:
            ValueError: Unknown backend name, or the backend asked for cannot serve the call.
        """
        name, origin = _wish(backend)
        if name == "auto":
            for candidate in self.implementations:
                if candidate.unusable() is None and candidate.refuses(*call) is None:
                    return candidate.run
            raise AssertionError(f"{self.name}: no implementation serves the call, not even the reference")
        reason = f"{self.name} has no such implementation in this version of allsight"
        for candidate in self.implementations:
            if candidate.name == name:
                reason = candidate.unusable() or candidate.refuses(*call)
                if reason is None:
                    return candidate.run
        usable = ", ".join(c.name for c in self.implementations if c.unusable() is None)
        raise ValueError(
            f"{self.name}: backend '{name}' ({origin}) cannot serve this call: {reason}; "
            f"use 'auto' or one of: {usable}"
        )

    def run(self, backend: str, *call: Any) -> Any:
        """Compute on the implementation that `pick` finds, which also gets the call."""
        return self.pick(backend, *call)(*call)

    def status(self) -> BackendStatus:
        """Describe the choice on this machine."""
        backends = {}
        for implementation in self.implementations:
            reason = implementation.unusable()
            backends[implementation.name] = Availability(reason is None, reason or implementation.about)
        chosen = next(name for name, state in backends.items() if state.usable)
        for name in BACKENDS[1:]:
            backends.setdefault(name, Availability(False, "not part of this version of allsight"))
        others = ", ".join(f"{n}: {s.why}" for n, s in backends.items() if n != chosen and not s.usable)
        why = backends[chosen].why + (f"; {others}" if others else "")
        forced = _wish("auto")[0]
        return BackendStatus(self.name, chosen, why, None if forced == "auto" else forced, backends)


def current_backend() -> str:
    """Return what `use_backend` or the environment asks for at the moment ("auto" when neither does)."""
    return _wish("auto")[0]


@contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Ask for a backend in all operator calls of the process while this block runs, other threads included.

    Args:
        name: "auto", "reference", "cpu" or "triton"; "auto" lifts an outer wish and `ALLSIGHT_BACKEND`.

    Raises:
        ValueError: Unknown name. A known backend that cannot serve a call raises at that call.
    """
    _check_name(name, "use_backend")
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def _wish(argument: str) -> tuple[str, str]:
    """Return the backend name that holds and where it was asked for."""
    _check_name(argument, "argument backend")
    if argument != "auto":
        return argument, "argument backend"
    if _forced is not None:
        return _forced, "use_backend"
    variable = os.environ.get(ENVIRONMENT_VARIABLE)
    if variable:
        _check_name(variable, f"environment variable {ENVIRONMENT_VARIABLE}")
        return variable, f"environment variable {ENVIRONMENT_VARIABLE}"
    return "auto", "default"


def _check_name(name: str, where: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{where}: expected one of {', '.join(BACKENDS)}, got {name!r}")
