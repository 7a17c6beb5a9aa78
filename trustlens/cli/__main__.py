"""Run the command line as ``python -m trustlens.cli``."""

import sys

from trustlens.cli import main

sys.exit(main())
