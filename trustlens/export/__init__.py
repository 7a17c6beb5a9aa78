"""Export recorded runs to other tools: ``trustlens.export.to_tensorboard(run, logdir)``.

Names are imported at their first use, because each tool needs an optional package.
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
