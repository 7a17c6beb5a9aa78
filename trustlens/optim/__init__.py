"""Reference optimizers: LAMB and LARS as the article defines them, other packages' as options.

``Lamb(params, **LAMB_VARIANTS["timm"])`` steps as timm's LAMB does.
"""

from trustlens.optim.lamb import LAMB_VARIANTS, Lamb
from trustlens.optim.lars import LARS_VARIANTS, Lars

__all__ = ["LAMB_VARIANTS", "LARS_VARIANTS", "Lamb", "Lars"]
