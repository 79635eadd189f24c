"""What the accelerators that can be rented are able to do, as their makers' data sheets say."""

from __future__ import annotations

from dataclasses import dataclass

from allsight.config import ConfigError, did_you_mean


@dataclass(frozen=True)
class Machine:
    """One kind of accelerator and how it is connected.

    Args:
        memory_bytes: Of one accelerator.
        half_flops: Dense matrix products in bfloat16 or float16, per second.
        single_flops: In float32, without reduced inner precision.
        memory_bytes_per_s: Between its memory and its cores.
        near_bytes_per_s: To and from the others of one machine, each way.
        far_bytes_per_s: To and from other machines, each way, for each accelerator.
        per_machine: Accelerators in one machine.
    """

    memory_bytes: int
    half_flops: float
    single_flops: float
    memory_bytes_per_s: float
    near_bytes_per_s: float
    far_bytes_per_s: float
    per_machine: int = 8


_GB = 10**9
MACHINES = {
    "a100-40g": Machine(40 * 2**30, 312e12, 19.5e12, 1555e9, 300e9, 25e9),
    "a100-80g": Machine(80 * 2**30, 312e12, 19.5e12, 2039e9, 300e9, 25e9),
    "h100-80g": Machine(80 * 2**30, 989e12, 67e12, 3350e9, 450e9, 50e9),
    "h200-141g": Machine(141 * _GB, 989e12, 67e12, 4800e9, 450e9, 50e9),
    "l40s-48g": Machine(48 * 2**30, 362e12, 91.6e12, 864e9, 32e9, 12.5e9),
    "rtx4090-24g": Machine(24 * 2**30, 165e12, 82.6e12, 1008e9, 32e9, 3e9),
    "v100-32g": Machine(32 * 2**30, 125e12, 15.7e12, 900e9, 150e9, 12.5e9),
}


def machine(kind: str) -> Machine:
    """The machine of this name.

    Raises:
        ConfigError: There is none.
    """
    if kind not in MACHINES:
        raise ConfigError(f"--kind: no machine '{kind}'{did_you_mean(kind, MACHINES)}")
    return MACHINES[kind]


def by_device_name(name: str) -> Machine | None:
    """The machine whose accelerator calls itself so, such as `NVIDIA H100 80GB HBM3`; None if unknown."""
    plain = name.lower().replace(" ", "")
    # Kinds of one accelerator differ in memory alone, which is not looked at here.
    return next((found for kind, found in MACHINES.items() if kind.partition("-")[0] in plain), None)
