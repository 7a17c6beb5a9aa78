"""The trust ratio of every LAMB and LARS variant, computed from a layer's norms (numpy only).

Options have the names and meanings documented in ``trustlens.optim.Lamb`` and ``Lars``. "The
article" is "An intuitive understanding of the LAMB optimizer".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trustlens.errors import UsageError

Options = Mapping[str, Any]

TRUST_RATIO_LIMIT: Final = 10.0
"""Upper bound of the article's trust ratio."""

LAMB_VARIANTS: Final[Mapping[str, Options]] = {
    "article": {},
    "pytorch-lamb": {"debias": False, "clip_ratio": None, "clip_weight_norm": 10.0},
    "torch-optimizer": {"debias": False, "clip_ratio": None, "clip_weight_norm": 10.0},
    "pytorch_optimizer": {
        "debias": "first",
        "decay": "first",
        "clip_ratio": None,
        "clip_weight_norm": 10.0,
        "ratio_eps": 1e-6,
    },
    "apex": {"clip_ratio": None, "always_adapt": False, "max_grad_norm": 1.0},
    "deepspeed": {"debias": "rate", "clip_ratio": (0.01, 10.0)},
    "timm": {"clip_ratio": None, "always_adapt": False, "max_grad_norm": 1.0},
    "bitsandbytes": {"decay": "beside", "clip_ratio": (0.0, 1.0), "unit_at_zero": False},
    "optax": {"clip_ratio": None},
    "tensorflow-addons": {"clip_ratio": None},
}
"""Variants of LAMB by name; each is a mapping of options of `Lamb`.

With the options of the variant ``"timm"``, `Lamb` computes the same step as timm's LAMB with timm's
default options, and likewise for the other packages. Learning rate, betas, ε and decay are not
included; the caller passes them. In pytorch_optimizer, ε is also the value of ``ratio_eps``.

If an option of a package is not at its default, a different option of `Lamb` corresponds to it:

- torch-optimizer: ``debias=True`` is ``debias="rate"``.
- pytorch_optimizer: ``adam_debias=True`` is ``debias=False``; ``weight_decouple=False`` is
  ``decay="inside"``.
- timm: ``trust_clip`` is ``clip_ratio=(0, 1)``; ``decoupled_decay`` is ``decay="first"``;
  ``always_adapt`` is ``always_adapt=True``.
- apex: ``use_nvlamb`` is ``always_adapt=True``.
- bitsandbytes: ``max_unorm`` is ``trust_coefficient``.

Newer versions of DeepSpeed debias as in the article.
"""

LAMB_DEFAULTS: Final[Options] = {
    "debias": True,
    "decay": "inside",
    "clip_ratio": (0.0, TRUST_RATIO_LIMIT),
    "clip_weight_norm": None,
    "trust_coefficient": 1.0,
    "ratio_eps": 0.0,
    "always_adapt": True,
    "unit_at_zero": True,
    "max_grad_norm": None,
}
"""Default options of `Lamb`: the article's variant."""

LARS_VARIANTS: Final[Mapping[str, Options]] = {
    "article": {},
    "paper": {"trust_coefficient": 0.001},
    "timm": {"trust_coefficient": 0.001, "eps": 1e-8, "always_adapt": False},
    "torch-optimizer": {"trust_coefficient": 0.01, "eps": 1e-8, "always_adapt": False},
    "optax": {"trust_coefficient": 0.001, "norm": "combined"},
}
"""Variants of LARS by name; each is a mapping of options of `Lars`.

With the options of the variant ``"timm"``, `Lars` computes the same step as timm's LARS with timm's
default options, and likewise for the other packages. Learning rate, momentum and decay are not
included; the caller passes them. The option ``always_adapt`` has the same meaning in timm and in
`Lars`.

Two differences remain. The paper and optax multiply by η before they update the momentum buffer;
their steps differ from those of `Lars` when a schedule changes η. torch-optimizer does not decay a
layer whose gradient is 0.
"""

LARS_DEFAULTS: Final[Options] = {
    "trust_coefficient": 1.0,
    "norm": "sum",
    "eps": 0.0,
    "always_adapt": True,
    "trust_clip": False,
}
"""Default options of `Lars`, and ``trust_clip``, which only timm's LARS has."""


Norms = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class RatioRule:
    """A formula of the trust ratio together with its options.

    The recorder uses a rule to compute the trust ratio of an optimizer that does not store it.
    Rules are hashable.

    Attributes
    ----------
    formula : callable
        :func:`lamb_ratio`, :func:`lars_ratio` or :func:`pytorch_optimizer_lars_ratio`.
    options : tuple of (str, value)
        The formula's options, as (name, value) items.
    """

    formula: Callable[..., Norms]
    options: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, formula: Callable[..., Norms], options: Options) -> RatioRule:
        """Return a rule from a formula and a mapping of its options."""
        return cls(formula, tuple(options.items()))

    def __call__(self, **norms: Norms) -> Norms:
        """Return the trust ratio; the arguments are those of the formula."""
        return self.formula(dict(self.options), **norms)


def article_trust_ratio(weight_norm: Norms, direction_norm: Norms) -> Norms:
    """Return the article's trust ratio r from r₁ and r₂, as float64 of their shape.

    r = min(r₁ / r₂, 10), and r = 1 where r₁ or r₂ is 0. r is NaN where either norm is NaN or both
    are infinite. The formula is that of You et al., "Large Batch Optimization for Deep Learning",
    2019, Algorithm 2; the limit of 10 and the value of 1 are from the article.
    """
    return _ratio_within_bounds(LAMB_DEFAULTS, weight_norm, direction_norm)


def lamb_ratio(
    options: Options,
    *,
    weight_norm: Norms,
    undecayed_norm: Norms,
    direction_norm: Norms,
    learning_rate: Norms,
    weight_decay: Norms,
) -> Norms:
    """Return the trust ratio r that a LAMB optimizer applies.

    Formulas: You et al., "Large Batch Optimization for Deep Learning", 2019, Algorithm 2, and the
    packages' variants of it (:data:`LAMB_VARIANTS`).

    Parameters
    ----------
    options : mapping
        Options of ``trustlens.optim.Lamb``; defaults are in :data:`LAMB_DEFAULTS`. Other names are
        ignored. The options ``debias`` and ``max_grad_norm`` are also ignored. They change only
        the direction d, and the norms given below are those of the changed d.
    weight_norm, undecayed_norm, direction_norm : float64 (rows,)
        ‖w‖ before the step, ‖d‖ and ‖d + λw‖.
    learning_rate, weight_decay : float64 (rows,)
        η and λ.

    Returns
    -------
    float64 (rows,)
        NaN where a norm that r depends on is NaN.
    """
    chosen = {**LAMB_DEFAULTS, **options}
    numerator, denominator = weight_norm, undecayed_norm
    if chosen["decay"] == "inside":
        denominator = direction_norm
    elif chosen["decay"] == "first":
        with np.errstate(all="ignore"):
            numerator = np.abs(1 - learning_rate * weight_decay) * weight_norm
    ratio = _ratio_within_bounds(chosen, numerator, denominator)
    return ratio if chosen["always_adapt"] else np.where(weight_decay == 0, 1.0, ratio)


@np.errstate(all="ignore")  # 0/0 becomes 1 or stays NaN
def _ratio_within_bounds(options: Options, numerator: Norms, denominator: Norms) -> Norms:
    """Return numerator / denominator within the bounds that LAMB's options set.

    The result is 1 where the denominator is 0 and, with ``unit_at_zero``, where the numerator is 0.
    ``options`` must contain all names of :data:`LAMB_DEFAULTS`.
    """
    is_one = denominator == 0
    if options["unit_at_zero"]:
        is_one |= numerator == 0
    bound = options["clip_weight_norm"]
    bounded = numerator if bound is None else np.minimum(numerator, bound)
    ratio = options["trust_coefficient"] * bounded / (denominator + options["ratio_eps"])
    if options["clip_ratio"] is not None:
        ratio = np.clip(ratio, *options["clip_ratio"])
    return np.where(is_one & ~np.isnan(numerator + denominator), 1.0, ratio)


@np.errstate(all="ignore")
def lars_ratio(
    options: Options,
    *,
    weight_norm: Norms,
    undecayed_norm: Norms,
    direction_norm: Norms,
    learning_rate: Norms,
    weight_decay: Norms,
) -> Norms:
    """Return the trust ratio r that a LARS optimizer applies.

    Formulas: You et al., "Large Batch Training of Convolutional Networks", 2017, Algorithm 1, and
    the packages' variants of it (:data:`LARS_VARIANTS`).

    Parameters
    ----------
    options : mapping
        Options of ``trustlens.optim.Lars``; defaults are in :data:`LARS_DEFAULTS`. The
        option ``trust_clip`` of timm's LARS is accepted, too. If it is True, the result is
        min(r/η, 1), as in LARC.
    weight_norm, undecayed_norm, direction_norm : float64 (rows,)
        ‖w‖ before the step, ‖d‖ and ‖d + λw‖. For LARS, the direction d is the gradient.
    learning_rate, weight_decay : float64 (rows,)
        η and λ.

    Returns
    -------
    float64 (rows,)
        NaN where a norm that r depends on is NaN.
    """
    chosen = {**LARS_DEFAULTS, **options}
    measured = denominator = direction_norm
    if chosen["norm"] == "sum":
        measured, denominator = undecayed_norm, undecayed_norm + weight_decay * weight_norm
    is_one = ((weight_norm == 0) | (measured == 0)) & ~np.isnan(weight_norm + measured)
    ratio = chosen["trust_coefficient"] * weight_norm / (denominator + chosen["eps"])
    ratio = np.where(is_one, 1.0, ratio)
    if chosen["trust_clip"]:
        ratio = np.minimum(ratio / learning_rate, 1.0)
    return ratio if chosen["always_adapt"] else np.where(weight_decay == 0, 1.0, ratio)


@np.errstate(all="ignore")
def pytorch_optimizer_lars_ratio(
    options: Options,
    *,
    weight_norm: Norms,
    undecayed_norm: Norms,
    weight_decay: Norms,
    **_: Norms,
) -> Norms:
    """Return the trust ratio of pytorch_optimizer's LARS: c·‖w‖ / (‖g‖ + λ‖w‖).

    Unlike in other LARS optimizers, the ratio is not 1 where g is 0 but λ is not. The arguments are
    those of :func:`lars_ratio`; the only option is ``trust_coefficient``.
    """
    denominator = undecayed_norm + weight_decay * weight_norm
    ratio = options["trust_coefficient"] * weight_norm / denominator
    return np.where((weight_norm == 0) | (denominator == 0), 1.0, ratio)


def check_option(owner: str, name: str, value: Any) -> None:
    """Check that an option of a trust ratio, or a weight decay, is in its range.

    Parameters
    ----------
    owner : str
        The function or class that received the value; the error message begins with it.
    name : str
        The option.
    value : object
        The value to check.

    Raises
    ------
    UsageError
        If the value is out of range.
    """
    is_valid, remedy = _RANGES[name]
    if not is_valid(value):
        raise UsageError(f"{owner} got {name}={value!r}: {remedy}")


def _one_of(*choices: bool | str) -> tuple[Callable[[Any], bool], str]:
    def is_valid(value: Any) -> bool:
        return any(value is c or (type(value) is str and value == c) for c in choices)

    return is_valid, f"choose one of {', '.join(repr(choice) for choice in choices)}"


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and 0 <= float(value) < float("inf")


def _is_bound(value: Any) -> bool:
    return value is None or (_is_number(value) and value > 0)


def _is_pair_of_bounds(value: Any) -> bool:
    if value is None:
        return True
    pair = isinstance(value, (tuple, list)) and len(value) == 2
    return pair and all(isinstance(end, Real) for end in value) and 0 <= value[0] <= value[1]


_AT_LEAST_0: Final = (_is_number, "give a number of at least 0")
_ABOVE_0: Final = (_is_bound, "give a number above 0, or None")

_RANGES: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "debias": _one_of(True, False, "rate", "first"),
    "decay": _one_of("inside", "first", "beside"),
    "norm": _one_of("sum", "combined"),
    "clip_ratio": (_is_pair_of_bounds, "give a lower and an upper bound, such as (0, 10), or None"),
    "clip_weight_norm": _ABOVE_0,
    "trust_coefficient": _AT_LEAST_0,
    "ratio_eps": _AT_LEAST_0,
    "always_adapt": _one_of(True, False),
    "unit_at_zero": _one_of(True, False),
    "max_grad_norm": _ABOVE_0,
    "weight_decay": _AT_LEAST_0,
}
