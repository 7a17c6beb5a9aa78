"""Record and show what an optimizer does to each layer of a PyTorch model.

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

from trustlens._version import __version__ as __version__
from trustlens.errors import MissingDependencyError
from trustlens.errors import TrustlensError as TrustlensError

if TYPE_CHECKING:
    from trustlens import export as export
    from trustlens import figures as figures
    from trustlens import optim as optim
    from trustlens.analysis.dataset import dataset as dataset
    from trustlens.analysis.discovery import find_runs as find_runs
    from trustlens.analysis.discovery import open_run as open_run
    from trustlens.analysis.run import Run as Run
    from trustlens.recording.recorder import Recorder as Recorder
    from trustlens.recording.recorder import record as record
    from trustlens.recording.writing.sink import Listener as Listener

# Imported on first use, so that `import trustlens` is fast and imports neither torch nor plotly.
_MODULES = ("export", "figures", "optim")
_HOMES = {
    "Listener": "trustlens.recording.writing.sink",
    "Recorder": "trustlens.recording.recorder",
    "Run": "trustlens.analysis.run",
    "dataset": "trustlens.analysis.dataset",
    "find_runs": "trustlens.analysis.discovery",
    "open_run": "trustlens.analysis.discovery",
    "record": "trustlens.recording.recorder",
}

_NAMES = ("TrustlensError", "__version__", *_MODULES, *_HOMES)
__all__ = list(_NAMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    try:
        if name in _HOMES:
            return getattr(importlib.import_module(_HOMES[name]), name)
        if name in _MODULES:
            return importlib.import_module(f"trustlens.{name}")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingDependencyError(f"trustlens.{name}", "torch") from None
    raise AttributeError(f"module 'trustlens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
