"""Separate streams of randomness: initialisation, and the stochastic layers of each forward pass.

Seeds are pure functions of the run's seed and the place of use; rank and worker appear nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from allsight.data.order import place_key


def stream_seed(seed: int, *place: str | int) -> int:
    """A 63-bit seed for one place of use."""
    return place_key(seed, *place) >> 65


@contextmanager
def seeded(seed: int, *place: str | int, device: torch.device | None = None) -> Iterator[None]:
    """Within, PyTorch's global generators start from this place's seed; afterwards they are as before.

    Args:
        device: A GPU's generator starts anew too; those of other devices are left alone.
    """
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        number = stream_seed(seed, *place)
        # Not `torch.manual_seed`, which would also seed all other devices, for good, and takes a stack trace
        # for each kind of device that is not there.
        torch.default_generator.manual_seed(number)
        for each in devices:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(number)
        yield
