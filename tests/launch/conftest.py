"""Small runs of the engine's tests, for tests that start them by the command line."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
for folder in (HERE, HERE.parent / "engine", HERE.parent / "contracts"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
