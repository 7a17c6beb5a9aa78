"""Run the command line as ``python -m trustlens``."""

import sys

from trustlens.cli import main

sys.exit(main())
