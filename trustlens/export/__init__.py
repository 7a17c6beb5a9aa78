"""Recorded runs for other tools: TensorBoard.

Lazy, since each needs a package of its own: ``trustlens.export.to_tensorboard(run, logdir)``.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trustlens.export.tensorboard import TensorBoardListener, to_tensorboard

__all__ = ["TensorBoardListener", "to_tensorboard"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'trustlens.export' has no attribute {name!r}")
    return getattr(importlib.import_module("trustlens.export.tensorboard"), name)
