"""Reference optimizers: the LAMB and LARS of the article, with other packages' variants as options.

``Lamb(params, **LAMB_VARIANTS["timm"])`` steps as timm's LAMB does.
"""

from trustlens.optim.lamb import Lamb
from trustlens.optim.lars import Lars
from trustlens.trust_ratio import LAMB_VARIANTS, LARS_VARIANTS

__all__ = ["LAMB_VARIANTS", "LARS_VARIANTS", "Lamb", "Lars"]
