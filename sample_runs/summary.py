"""Print the results of all runs in a folder: the values in the table of README.md.

python sample_runs/summary.py sample_runs/recorded
"""

from __future__ import annotations

import sys
from pathlib import Path

import trustlens
from trustlens.analysis.diagnose import verdict
from trustlens.errors import TrustlensError

LAST = 50  # steps over which the last loss is averaged


def describe(run: trustlens.Run) -> str:
    """Return the results of one run, one per line."""
    logged = run.metrics().pivot_table(index="step", columns="name", values="value", dropna=False)
    loss, accuracy = logged["loss"], logged["test_accuracy"].dropna()
    ratio = run.matrix("trust_ratio")
    first, highest = ratio.iloc[0], ratio.max(axis=1)
    norms = run.matrix("weight_norm")
    ratio_text = "not recorded"
    if highest.notna().any():
        peak = int(highest.idxmax())
        ratio_text = (
            f"{first.min():.2g} to {first.max():.2g} at step 1, "
            f"highest {highest[peak]:.3g} at step {peak} ({ratio.loc[peak].idxmax()})"
        )
    rows = {
        "steps": f"{run.last_step:,}",
        "loss": f"{loss.iloc[-LAST:].mean():.3g} (mean of the last {LAST} steps), "
        f"lowest {loss.min():.3g} at step {loss.idxmin()}, highest {loss.max():.3g}",
        "test accuracy": f"{100 * accuracy.iloc[-1]:.2f} % at the end, "
        f"best {100 * accuracy.max():.2f} % at step {accuracy.idxmax()}",
        "trust ratio": ratio_text,
        "weight norm": f"largest growth {(norms.max() / norms.iloc[0]).max():.3g} × "
        f"({(norms.max() / norms.iloc[0]).idxmax()})",
        "diagnosis": verdict(run.diagnose(), run),
    }
    return "\n".join([run.name, *(f"  {name:14}{text}" for name, text in rows.items())])


def main() -> int:
    """Print each run in the folder that is given."""
    if len(sys.argv) != 2:
        print("usage: python sample_runs/summary.py RUNS", file=sys.stderr)
        return 2
    try:
        for path in trustlens.find_runs(Path(sys.argv[1])):
            print(describe(trustlens.open_run(path)), end="\n\n")
    except TrustlensError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
