"""Makes the toys importable here and in worker processes, which inherit `sys.path`."""

import sys
from pathlib import Path

_HERE = str(Path(__file__).parent)
if _HERE not in sys.path:
    sys.path.insert(0, _HERE)
