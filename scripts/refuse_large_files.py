"""Refuse files over 400 kB in a commit: data and weights do not belong in the repository."""

import sys
from pathlib import Path

LIMIT_BYTES = 400_000


def main(paths: list[str]) -> int:
    """Name every file over the limit; 1 if there is one."""
    large = [path for path in paths if Path(path).is_file() and Path(path).stat().st_size > LIMIT_BYTES]
    for path in large:
        size_kb = Path(path).stat().st_size // 1000
        print(f"{path}: {size_kb} kB, more than {LIMIT_BYTES // 1000} kB; keep data and weights outside")
    return 1 if large else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
