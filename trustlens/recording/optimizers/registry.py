"""The table of all known optimizers.

To add an optimizer, write the function that returns its direction (in ``torch_optim``, ``own``,
``third_party`` or ``measured``), add one line to :data:`FAMILIES`, and add its options as a case
to ``tests/support/supported.py`` (torch.optim) or ``tests/support/third_party.py``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

from torch.optim import Optimizer

from trustlens.families import ADAM, ADAMAX, ADAMW, LAMB, LARS, NADAM, RADAM, SGD
from trustlens.recording.optimizers import measured, own, third_party
from trustlens.recording.optimizers import torch_optim as to
from trustlens.recording.optimizers.direction import Family, always

_GRAD_OVERWRITTEN: Final[Mapping[str, Any]] = {"overwrites_grad": always, "uses_first_grad": True}

FAMILIES: Final[Mapping[tuple[str, str], Family | Callable[[], Family]]] = {
    ("torch", "Adam"): Family(ADAM, to.adam, always, cacheable=True),
    ("torch", "AdamW"): Family(ADAMW, to.adam, always, cacheable=True),
    ("torch", "SGD"): Family(
        SGD,
        to.sgd,
        always,
        overwrites_grad=to.adds_momentum_to_grad,
        uses_first_grad=True,
        cacheable=True,
    ),
    ("torch", "NAdam"): Family(NADAM, to.nadam, to.without_coupled_decay),
    ("torch", "RAdam"): Family(RADAM, to.radam, always, cacheable=True),
    ("torch", "Adamax"): Family(ADAMAX, to.adamax, always),
    ("torch", "Adagrad"): Family("Adagrad", to.adagrad, to.without_coupled_decay, cacheable=True),
    ("torch", "RMSprop"): Family("RMSprop", to.rmsprop, to.is_rmsprop_invertible, cacheable=True),
    ("torch", "Rprop"): Family("Rprop", to.rprop, always),
    ("torch", "Adadelta"): Family("Adadelta", to.adadelta, to.without_coupled_decay),
    ("torch", "ASGD"): Family("ASGD", to.asgd, always, state_entry_before="eta"),
    ("torch", "Adafactor"): Family("Adafactor", to.adafactor, to.takes_short_steps),
    ("torch", "SparseAdam"): Family("SparseAdam", to.sparse_adam, always),
    ("torch", "Muon"): Family("Muon", measured.muon),
    ("torch", "LBFGS"): Family("LBFGS", measured.lbfgs, **_GRAD_OVERWRITTEN),
    ("trustlens", "Lamb"): Family(LAMB, own.own_lamb, own.is_lamb_invertible, provides_sums=True),
    ("trustlens", "Lars"): Family(
        LARS, own.lars_direction, provides_sums=True, provides_weights_before=True
    ),
    ("pytorch_lamb", "Lamb"): Family(LAMB, third_party.pytorch_lamb, variant="pytorch-lamb"),
    ("torch_optimizer", "Lamb"): Family(LAMB, third_party.pytorch_lamb, variant="torch-optimizer"),
    ("pytorch_optimizer", "Lamb"): Family(
        LAMB, third_party.pytorch_optimizer_lamb, variant="pytorch_optimizer"
    ),
    # Older versions of timm clip p.grad in place: `clip_factor` then finds nothing to clip.
    ("timm", "Lamb"): Family(
        LAMB, third_party.timm_lamb, variant="timm", grad_factor=third_party.clip_factor
    ),
    ("apex", "FusedLAMB"): Family(
        LAMB,
        third_party.apex_lamb,
        variant="apex",
        grad_factor=third_party.clip_factor,
        **_GRAD_OVERWRITTEN,
    ),
    ("deepspeed", "FusedLamb"): third_party.deepspeed_lamb,
    ("bitsandbytes", "lamb"): Family(LAMB, third_party.bitsandbytes_lamb, variant="bitsandbytes"),
    ("torch_optimizer", "LARS"): Family(
        LARS, third_party.torch_optimizer_lars, variant="torch-optimizer"
    ),
    ("timm", "Lars"): Family(LARS, third_party.timm_lars, variant="timm", **_GRAD_OVERWRITTEN),
    ("pytorch_optimizer", "LARS"): Family(
        LARS,
        third_party.pytorch_optimizer_lars,
        grad_factor=third_party.sign_factor,
        **_GRAD_OVERWRITTEN,
    ),
    ("bitsandbytes", "lars"): Family(LARS, third_party.bitsandbytes_lars),
}
"""Family of each known optimizer. The keys are (package, class name).

A value may be a function that returns a new family for each optimizer object. bitsandbytes has one
class for several optimizers: its keys hold the attribute ``optimizer_name`` instead of the class.
"""

UNKNOWN: Final = Family("", third_party.unknown, overwrites_grad=always)
"""The family of an optimizer that is not in the table."""


def family_of(optimizer: Optimizer) -> Family:
    """Return the family of an optimizer, or :data:`UNKNOWN` if the table does not contain it.

    A subclass of a known optimizer has the same family only if it does not override ``step``.
    """
    step = _step_of(type(optimizer))
    for kind in type(optimizer).__mro__:
        if _step_of(kind) is not step:
            continue
        package, name = kind.__module__.partition(".")[0], kind.__qualname__
        if package == "bitsandbytes":
            name = getattr(optimizer, "optimizer_name", "")
        family = FAMILIES.get((package, name))
        if family is not None:
            return family if isinstance(family, Family) else family()
    return UNKNOWN


def _step_of(kind: type) -> Any:
    """Return a class's ``step`` without the wrapper that torch adds at the first instantiation."""
    step = getattr(kind, "step", None)
    return None if step is None else inspect.unwrap(step)
