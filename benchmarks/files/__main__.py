"""Run the benchmark: ``python -m benchmarks.files --help``."""

import sys

from benchmarks.files.run import main

sys.exit(main())
