"""Helper modules of these tests are imported by name, also by the processes that tests start."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "contracts"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
