"""Run the benchmark: ``python -m benchmarks.overhead --help``."""

import sys

from benchmarks.overhead.run import main

sys.exit(main())
