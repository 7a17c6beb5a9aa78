"""The trust ratio as each package writes it, from a layer's norms: LAMB's ways and LARS's.

The options are those of ``trustlens.optim.Lamb`` and ``Lars``, which say what each one means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trustlens.errors import UsageError
from trustlens.schema import TRUST_RATIO_LIMIT

Options = Mapping[str, Any]

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
"""Options of `Lamb` that make it step as a package's LAMB does with its default switches.

Left to the caller: learning rate, betas, ε and decay (``ratio_eps`` of pytorch_optimizer is
its ε). Switches of theirs: torch-optimizer's ``debias=True`` is ``debias="rate"``;
pytorch_optimizer's ``adam_debias=True`` is ``debias=False`` and its ``weight_decouple=False``
is ``decay="inside"``; timm's ``trust_clip`` is ``clip_ratio=(0, 1)``, its ``decoupled_decay``
is ``decay="first"``, its ``always_adapt`` and apex's ``use_nvlamb`` are ``always_adapt=True``;
bitsandbytes' ``max_unorm`` is ``trust_coefficient``. Newer DeepSpeed debiases as the article.
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
"""What `Lamb` does where an option is not named: the article's way."""

LARS_VARIANTS: Final[Mapping[str, Options]] = {
    "article": {},
    "paper": {"trust_coefficient": 0.001},
    "timm": {"trust_coefficient": 0.001, "eps": 1e-8, "always_adapt": False},
    "torch-optimizer": {"trust_coefficient": 0.01, "eps": 1e-8, "always_adapt": False},
    "optax": {"trust_coefficient": 0.001, "norm": "combined"},
}
"""Options of `Lars` that make it step as a package's LARS does with its default switches.

Left to the caller: learning rate, momentum and decay. timm's ``always_adapt`` is the same here.
The paper and optax keep η inside the momentum buffer, which differs from this only while a
schedule changes η. torch-optimizer leaves out the decay of a layer whose gradient is 0.
"""

LARS_DEFAULTS: Final[Options] = {
    "trust_coefficient": 1.0,
    "norm": "sum",
    "eps": 0.0,
    "always_adapt": True,
    "trust_clip": False,
}
"""What `Lars` does where an option is not named; ``trust_clip`` is timm's and not one of `Lars`."""


@np.errstate(all="ignore")  # 0/0 is a convention's business, or not known
def lamb_ratio(
    options: Options,
    *,
    weight_norm: NDArray[np.float64],
    undecayed_norm: NDArray[np.float64],
    direction_norm: NDArray[np.float64],
    learning_rate: NDArray[np.float64],
    weight_decay: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the trust ratio r that a LAMB applies.

    Formulas: You et al., "Large Batch Optimization for Deep Learning", 2019, Algorithm 2, and
    what each package makes of it (:data:`LAMB_VARIANTS`).

    Parameters
    ----------
    options : mapping
        Options of ``trustlens.optim.Lamb``; :data:`LAMB_DEFAULTS` hold where one is missing.
        ``debias`` and ``max_grad_norm`` are in the direction already and change nothing here.
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
    above, below = weight_norm, undecayed_norm
    if chosen["decay"] == "inside":
        below = direction_norm
    elif chosen["decay"] == "first":
        above = np.abs(1 - learning_rate * weight_decay) * weight_norm
    one = below == 0
    if chosen["unit_at_zero"]:
        one |= above == 0
    bound = chosen["clip_weight_norm"]
    bounded = above if bound is None else np.minimum(above, bound)
    ratio = chosen["trust_coefficient"] * bounded / (below + chosen["ratio_eps"])
    if chosen["clip_ratio"] is not None:
        ratio = np.clip(ratio, *chosen["clip_ratio"])
    ratio = np.where(one & ~np.isnan(above + below), 1.0, ratio)
    return ratio if chosen["always_adapt"] else np.where(weight_decay == 0, 1.0, ratio)


@np.errstate(all="ignore")
def lars_ratio(
    options: Options,
    *,
    weight_norm: NDArray[np.float64],
    grad_norm: NDArray[np.float64],
    direction_norm: NDArray[np.float64],
    learning_rate: NDArray[np.float64],
    weight_decay: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the trust ratio r that a LARS applies.

    Formulas: You et al., "Large Batch Training of Convolutional Networks", 2017, Algorithm 1, and
    what each package makes of it (:data:`LARS_VARIANTS`).

    Parameters
    ----------
    options : mapping
        Options of ``trustlens.optim.Lars``; :data:`LARS_DEFAULTS` hold where one is missing. One
        more, of timm: ``trust_clip`` makes it min(r/η, 1), as LARC does.
    weight_norm, grad_norm, direction_norm : float64 (rows,)
        ‖w‖ before the step, ‖g‖ and ‖g + λw‖.
    learning_rate, weight_decay : float64 (rows,)
        η and λ.

    Returns
    -------
    float64 (rows,)
        NaN where a norm that r depends on is NaN.
    """
    chosen = {**LARS_DEFAULTS, **options}
    measured = below = direction_norm
    if chosen["norm"] == "sum":
        measured, below = grad_norm, grad_norm + weight_decay * weight_norm
    one = ((weight_norm == 0) | (measured == 0)) & ~np.isnan(weight_norm + measured)
    ratio = chosen["trust_coefficient"] * weight_norm / (below + chosen["eps"])
    ratio = np.where(one, 1.0, ratio)
    if chosen["trust_clip"]:
        ratio = np.minimum(ratio / learning_rate, 1.0)
    return ratio if chosen["always_adapt"] else np.where(weight_decay == 0, 1.0, ratio)


def check_option(owner: str, name: str, value: Any) -> None:
    """Require that an option of a ratio, or a weight decay, is in its range.

    Raises
    ------
    UsageError
        It is not; the message begins with `owner`, who was given it.
    """
    fits, remedy = _RANGES[name]
    if not fits(value):
        raise UsageError(f"{owner} got {name}={value!r}: {remedy}")


def _one_of(*choices: bool | str) -> tuple[Callable[[Any], bool], str]:
    def fits(value: Any) -> bool:
        return any(value is c or (type(value) is str and value == c) for c in choices)

    return fits, f"choose one of {', '.join(repr(choice) for choice in choices)}"


def _number(value: Any) -> bool:
    return isinstance(value, Real) and 0 <= float(value) < float("inf")


def _bound(value: Any) -> bool:
    return value is None or (_number(value) and value > 0)


def _bounds(value: Any) -> bool:
    if value is None:
        return True
    pair = isinstance(value, (tuple, list)) and len(value) == 2
    return pair and all(isinstance(end, Real) for end in value) and 0 <= value[0] <= value[1]


_AT_LEAST_0: Final = (_number, "give a number of at least 0")
_ABOVE_0: Final = (_bound, "give a number above 0, or None")

_RANGES: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "debias": _one_of(True, False, "rate", "first"),
    "decay": _one_of("inside", "first", "beside"),
    "norm": _one_of("sum", "combined"),
    "clip_ratio": (_bounds, "give a lower and an upper bound, such as (0, 10), or None"),
    "clip_weight_norm": _ABOVE_0,
    "trust_coefficient": _AT_LEAST_0,
    "ratio_eps": _AT_LEAST_0,
    "always_adapt": _one_of(True, False),
    "unit_at_zero": _one_of(True, False),
    "max_grad_norm": _ABOVE_0,
    "weight_decay": _AT_LEAST_0,
}
