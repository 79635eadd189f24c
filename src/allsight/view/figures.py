"""Numbers as people write them."""

from __future__ import annotations

import math
from datetime import UTC, datetime


def short(value: float) -> str:
    """Three to four significant digits: `0.6123`, `12.3`, `4,120`, `1.9e-05`; `nan` and `inf` as such."""
    if not math.isfinite(value):
        return str(float(value))
    size = abs(value)
    if value == 0:
        return "0"
    if size >= 1e7 or size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
        return f"{mantissa}e{int(exponent):+03d}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 3 - math.floor(math.log10(size)))}f}" if size >= 1 else f"{value:.4f}"


def count(value: float) -> str:
    """A whole number with thousands apart: `12,345`."""
    return f"{round(value):,}" if math.isfinite(value) else str(float(value))


def compact(value: float) -> str:
    """A large number in few letters: `950`, `12.3k`, `2.01M`, `125M`, `1.1G`."""
    if not math.isfinite(value):
        return str(float(value))
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit * 0.9995:
            scaled = value / unit
            digits = 0 if abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
            text = f"{scaled:.{digits}f}"
            return (text.rstrip("0").rstrip(".") if "." in text else text) + name
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.3g}"


def percent(share: float) -> str:
    """A share as a percentage: `61.2 %`."""
    if not math.isfinite(share):
        return "–"
    value = 100 * share
    return f"{value:.0f} %" if abs(value) >= 99.95 or value == 0 else f"{value:.1f} %"


def clock(seconds: float) -> str:
    """A duration: `0.8s`, `12s`, `3m12s`, `2h05m`, `3d04h`; `?` if it is not known."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 60:
        return f"{whole}s"
    if hours < 1:
        return f"{minutes}m{whole % 60:02d}s"
    if days < 1:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{days}d{hours % 24:02d}h"


def size(num_bytes: float) -> str:
    """A file size: `812 kB`, `14.2 MB`."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= unit:
            scaled = num_bytes / unit
            return f"{scaled:.0f} {name}" if scaled >= 100 else f"{scaled:.1f} {name}"
    return f"{num_bytes:.0f} B"


def moment(time_s: float) -> str:
    """Seconds since 1970 as date and time: `2026-11-24 04:05:10 UTC`."""
    try:
        return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return "?"
