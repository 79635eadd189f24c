"""`python -m allsight.cli`: how the processes of a run are started."""

import sys

from allsight.cli import main

sys.exit(main())
