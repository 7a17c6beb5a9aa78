"""The trust ratio that another variant of LAMB would have applied, from the stored norms."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from trustlens import families
from trustlens.analysis.names import family_of
from trustlens.analysis.pivot import steps_by_layers
from trustlens.analysis.selection import StepSelection
from trustlens.analysis.tables import RunTables
from trustlens.errors import UsageError
from trustlens.store.run_info import OptimizerInfo
from trustlens.trust_ratio import LAMB_DEFAULTS, LAMB_VARIANTS, check_option, lamb_ratio

Columns = Mapping[str, NDArray[np.float64]]

_COLUMNS: Final = (
    "weight_norm",
    "direction_norm",
    "undecayed_norm",
    "undecayed_dot_weight",
    "debias1",
    "debias2",
    "learning_rate",
    "weight_decay",
    "update_norm",
)

_ADAM: Final = (families.ADAM, families.ADAMW, families.LAMB)
"""Families whose d is m̂/(√v̂+ε), or m/(√v+ε)."""

_OTHER_DIRECTION: Final = {
    "amsgrad": (False, "its v̂ is the largest so far"),
    "caution": (False, "it leaves out the elements of d that disagree with the gradient"),
    "rectify": (False, "its first steps are not divided by √v̂"),
    "grad_averaging": (True, "its m is a sum of gradients and no average"),
}
"""Options of Adam and LAMB that change d: the value they must have, and why."""

_CANCELLED: Final = 0.01  # share of ‖d‖ + λ‖w‖ below which ‖d+λw‖ may be off by 1e-3 or more
_ROUNDING: Final = 1e-4  # by which gradients clipped to a bound may exceed it
_FIRST: Final = 0.99  # share of 1/(1−β₁), the debias factor of a first step


def trust_ratio(
    run: RunTables, variant: str, steps: StepSelection, given: Mapping[str, Any]
) -> pd.DataFrame:
    """Return the trust ratio as steps × layers; see :meth:`Run.trust_ratio`."""
    options = _options(variant, given)
    rows = run.layers(_COLUMNS, steps=steps)
    of = {name: rows[name].to_numpy(np.float64) for name in _COLUMNS}
    layers = rows["layer"].cat.codes.to_numpy()
    inside = _debiased_inside(run, of, layers)
    if options["debias"] is True:
        _check_debias_known(run, ~inside)
    if options["max_grad_norm"] is not None and len(rows):
        last = int(rows["step"].to_numpy().max())
        _check_never_clipped(run, float(options["max_grad_norm"]), last, inside)
    decay = of["weight_decay"]
    if "weight_decay" in options:  # float32 as the recorded one, so that the two can be equal
        decay = np.full(len(rows), np.float32(options["weight_decay"]), np.float64)
    scale = _scale(of, inside[layers], debias=options["debias"] is True)
    values = lamb_ratio(
        options,
        weight_norm=of["weight_norm"],
        undecayed_norm=scale * of["undecayed_norm"],
        direction_norm=scale * _direction_norm(of, decay / scale),
        learning_rate=of["learning_rate"],
        weight_decay=decay,
    )
    return steps_by_layers(rows["step"].to_numpy(), layers, values, run.layer_names)


def _options(variant: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return every option of the variant; those given replace its own."""
    if variant not in LAMB_VARIANTS:
        raise UsageError(
            f"trust_ratio got variant={variant!r}; choose one of: {', '.join(LAMB_VARIANTS)}"
        )
    choices = (*LAMB_DEFAULTS, "weight_decay")
    for name, value in given.items():
        if name not in choices:
            raise UsageError(f"trust_ratio got {name}={value!r}; choose of: {', '.join(choices)}")
        check_option("trust_ratio", name, value)
    return {**LAMB_DEFAULTS, **LAMB_VARIANTS[variant], **given}


def _debiased_inside(
    run: RunTables, of: Columns, layers: NDArray[np.integer[Any]]
) -> NDArray[np.bool_]:
    """Return for each layer whether its d is m̂/(√v̂+ε); if not, it is m/(√v+ε).

    Raises
    ------
    UsageError
        A layer's d is neither.
    """
    infos = run.info.layers
    decoupled = np.zeros(len(infos), bool)
    decoupled[layers[np.nan_to_num(of["weight_decay"]) != 0]] = True
    inside = np.zeros(len(infos), bool)
    for number, place in sorted({(info.optimizer, info.group) for info in infos}):
        own = np.array([(info.optimizer, info.group) == (number, place) for info in infos])
        optimizer = run.info.optimizers[number]
        if place >= len(optimizer.groups):
            why = f"and its {run.path.name}/run.json does not hold the options of group {place}"
            raise UsageError(_refusal(run, optimizer, why))
        moved = own[layers] & (of["update_norm"] > 0)
        if moved.any() and np.isnan(of["undecayed_norm"][moved]).all():
            why = "whose direction was not known when it was recorded"
            raise UsageError(_refusal(run, optimizer, why))
        group = optimizer.groups[place]
        why = _why_another_direction(optimizer, group, decoupled=bool(decoupled[own].any()))
        if why is not None:
            raise UsageError(_refusal(run, optimizer, why))
        inside[own] = _applies_debias_inside(optimizer, group)
    return inside


def _why_another_direction(
    optimizer: OptimizerInfo, group: Mapping[str, Any], *, decoupled: bool
) -> str | None:
    """Return why d is not that of Adam, and the remedy; None if it is.

    ``decoupled`` says whether a decoupled weight decay was recorded.
    """
    family = family_of(optimizer)
    if family not in _ADAM:
        return "whose direction is not m̂/(√v̂+ε); record a run of Adam without decay, AdamW or LAMB"
    for name, (wanted, why) in _OTHER_DIRECTION.items():
        if bool(group.get(name, wanted)) is not wanted:
            return f"with {name}={group[name]}: {why}; record one with {name}={wanted}"
    decay = group.get("weight_decay")
    coupled = not group.get("decoupled_weight_decay", decoupled or family != families.ADAM)
    if coupled and isinstance(decay, Real) and decay != 0:
        return (
            f"whose weight_decay={decay} goes into the gradient, and with it into m and v; "
            "record one with AdamW or without decay"
        )
    return None


def _applies_debias_inside(optimizer: OptimizerInfo, group: Mapping[str, Any]) -> bool:
    usual = LAMB_VARIANTS.get(optimizer.variant or "article", {}).get("debias", True)
    # `debias` is an option of trustlens.optim.Lamb, `bias_correction` of apex's and timm's.
    return group.get("debias", usual) is True and bool(group.get("bias_correction", True))


def _check_debias_known(run: RunTables, outside: NDArray[np.bool_]) -> None:
    """Raise if the debias factors of layers whose d is m/(√v+ε) are not known."""
    if not outside.any():
        return
    rows = run.layers(["debias2"])
    largest = np.full(len(outside), np.nan)  # stays NaN for a layer that never stepped: no error
    factors = rows["debias2"].to_numpy(np.float64)
    np.fmax.at(largest, rows["layer"].cat.codes.to_numpy(), factors)
    unknown = np.flatnonzero(outside & (largest == 1))
    if len(unknown):
        optimizer = run.info.optimizers[run.info.layers[unknown[0]].optimizer]
        why = (
            "which does not debias m and v, and their step counts are not stored; "
            "pass debias=False, or record a run of AdamW"
        )
        raise UsageError(_refusal(run, optimizer, why))


@np.errstate(all="ignore")
def _scale(of: Columns, inside: NDArray[np.bool_], *, debias: bool) -> NDArray[np.float64]:
    """Return the factor by which to multiply the stored d for it to be debiased or not."""
    factor = of["debias1"] / np.sqrt(of["debias2"])
    if debias:
        return np.where(inside, 1.0, factor)
    return np.where(inside, 1 / factor, 1.0)


@np.errstate(all="ignore")
def _direction_norm(of: Columns, decay: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ‖d+λw‖ for any λ; NaN where cancellation leaves too few digits."""
    d, w = of["undecayed_norm"], of["weight_norm"]
    square = d**2 + 2 * decay * of["undecayed_dot_weight"] + (decay * w) ** 2
    norm = np.sqrt(np.maximum(square, 0))
    norm = np.where(norm < _CANCELLED * (d + decay * w), np.nan, norm)
    return np.where(decay == of["weight_decay"], of["direction_norm"], norm)


def _check_never_clipped(
    run: RunTables, bound: float, last: int, inside: NDArray[np.bool_]
) -> None:
    """Raise if the total gradient norm of an optimizer exceeded `bound` up to step `last`."""
    optimizers = run.info.optimizers
    asked = [number for number, info in enumerate(optimizers) if not _clips_itself(info, bound)]
    rows = run.layers(["grad_norm", "nonfinite", "debias1"], steps=slice(None, last + 1))
    layers = rows["layer"].cat.codes.to_numpy()
    of_layers = np.array([info.optimizer for info in run.info.layers])
    squares = rows["grad_norm"].to_numpy(np.float64) ** 2
    squares[np.isnan(squares) & (rows["nonfinite"].to_numpy() == 0)] = 0  # no gradient
    for number in asked:
        own = of_layers[layers] == number
        steps, place = np.unique(rows["step"].to_numpy()[own], return_inverse=True)
        why = _why_not_from_the_start(run, rows.loc[own], last, inside)
        if why is not None:
            remedy = "so it is unknown whether max_grad_norm would have clipped; max_grad_norm=None"
            raise UsageError(
                _refusal(run, optimizers[number], f"{why}, {remedy} leaves the clip out")
            )
        totals = np.sqrt(np.bincount(place, squares[own], len(steps)))
        # Written so that NaN counts as above the bound.
        above = np.flatnonzero(~(totals <= bound * (1 + _ROUNDING)))
        if len(above):
            step, total = steps[above[0]], totals[above[0]]
            why = (
                f"whose gradients together have the norm {total:.4g} at step {step}: "
                f"max_grad_norm={bound:g} would have changed m and v from there on; "
                f"ask for steps=slice(None, {step}), or leave the clip out by max_grad_norm=None"
            )
            raise UsageError(_refusal(run, optimizers[number], why))


def _clips_itself(optimizer: OptimizerInfo, bound: float) -> bool:
    """Return whether the optimizer clipped to the bound itself, as some LAMBs do."""
    variant = LAMB_VARIANTS.get(optimizer.variant or "", {})
    can = "max_grad_norm" in variant or optimizer.name.startswith("trustlens.")
    return can and all(group.get("max_grad_norm") == bound for group in optimizer.groups)


def _why_not_from_the_start(
    run: RunTables, rows: pd.DataFrame, last: int, inside: NDArray[np.bool_]
) -> str | None:
    """Return why the gradients of one optimizer's steps up to `last` are not all known, or None."""
    steps = rows["step"].to_numpy()
    known = set(steps.tolist())
    if run.info.recording.every == 1:  # otherwise a step without rows may not have been recorded
        known |= set(run.steps()["step"])
    missing = set(range(1, last + 1)) - known
    if missing:
        return f"and the gradients of step {min(missing)} were not recorded"
    layers = rows["layer"].cat.codes.to_numpy()[steps == 1]
    factors = rows["debias1"].to_numpy(np.float64)[steps == 1]
    for layer, factor in zip(layers, factors, strict=True):
        info = run.info.layers[layer]
        group = run.info.optimizers[info.optimizer].groups[info.group]
        beta1 = group.get("betas", (0.0,))[0]  # unknown: any factor could be that of a first step
        debiased = inside[layer] or factor > 1
        if debiased and factor < _FIRST / (1 - beta1):
            return "and it had done steps before it was recorded"
    return None


def _refusal(run: RunTables, optimizer: OptimizerInfo, why: str) -> str:
    return f"trust_ratio of run '{run.name}' cannot be computed: it recorded {optimizer.name} {why}"
