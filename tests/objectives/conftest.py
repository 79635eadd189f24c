"""Helper modules of these tests are imported by name, also by the processes that tests start."""

import sys
from pathlib import Path

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)
