"""The optimizers LAMB and LARS. Their options include the variants of other packages.

``Lamb(params, **LAMB_VARIANTS["timm"])`` computes the same steps as timm's LAMB.
"""

from trustlens.optim.lamb import Lamb
from trustlens.optim.lars import Lars
from trustlens.trust_ratio import LAMB_VARIANTS, LARS_VARIANTS

__all__ = ["LAMB_VARIANTS", "LARS_VARIANTS", "Lamb", "Lars"]
