"""Train while the dashboard shows what is recorded; ``make demo`` runs this.

    python sample_runs/demo.py

Adam and LAMB at rate 0.01 train in turns on the embedded digits, then LAMB at 0.1, which diverges.
Each call records into a new folder in ``runs/``.
"""

from __future__ import annotations

import subprocess
import sys
from datetime import datetime
from pathlib import Path

from trustlens import cli


def main() -> int:
    """Start the training in a second process, serve the dashboard, and stop both together."""
    out = Path("runs") / f"demo-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    out.mkdir(parents=True)
    script = Path(__file__).with_name("experiments.py")
    command = [sys.executable, str(script), "--pair", "lamb-lr0.1", "--out", str(out)]
    with subprocess.Popen(command) as training:
        try:
            return cli.main(["dashboard", str(out), *sys.argv[1:]])
        finally:
            training.terminate()


if __name__ == "__main__":
    sys.exit(main())
