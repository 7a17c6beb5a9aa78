"""See what your optimizer does to each layer.

>>> import trustlens
>>> with trustlens.record(optimizer, "runs/lamb", model=model) as recorder:
...     for batch in loader:
...         loss = train_step(batch)
...         recorder.log(loss=loss)
>>> run = trustlens.open_run("runs/lamb")
>>> trustlens.figures.ridgeline(run, "trust_ratio")
"""

import importlib
from typing import TYPE_CHECKING, Any

from trustlens._version import __version__
from trustlens.errors import MissingDependencyError

if TYPE_CHECKING:
    from trustlens import export, figures, optim
    from trustlens.analysis.dataset import open_runs
    from trustlens.analysis.discovery import find_runs, open_run
    from trustlens.analysis.names import quantity
    from trustlens.analysis.run import Run
    from trustlens.errors import TrustlensError
    from trustlens.recording.recorder import Recorder, record

__all__ = [
    "Recorder",
    "Run",
    "TrustlensError",
    "__version__",
    "export",
    "figures",
    "find_runs",
    "open_run",
    "open_runs",
    "optim",
    "quantity",
    "record",
]

_HOMES = {
    "Recorder": "trustlens.recording.recorder",
    "record": "trustlens.recording.recorder",
    "Run": "trustlens.analysis.run",
    "open_run": "trustlens.analysis.discovery",
    "find_runs": "trustlens.analysis.discovery",
    "open_runs": "trustlens.analysis.dataset",
    "TrustlensError": "trustlens.errors",
    "quantity": "trustlens.analysis.names",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `import trustlens` costs nothing and drags in neither torch nor plotly.
    try:
        if name in _HOMES:
            return getattr(importlib.import_module(_HOMES[name]), name)
        if name in __all__:
            return importlib.import_module(f"trustlens.{name}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingDependencyError(f"trustlens.{name}", "torch") from None
    raise AttributeError(f"module 'trustlens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
