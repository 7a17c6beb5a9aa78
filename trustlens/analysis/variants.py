"""Compute from stored norms the trust ratio that another variant of LAMB would have applied."""

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
"""Optimizer families whose direction d is m̂/(√v̂+ε) or m/(√v+ε), where m̂ and v̂ are debiased."""

_DIRECTION_OPTIONS: Final = {
    "amsgrad": (False, "its v̂ is the maximum of all steps so far"),
    "caution": (False, "it zeroes the elements of d whose sign differs from the gradient's"),
    "rectify": (False, "its first steps are not divided by √v̂"),
    "grad_averaging": (True, "its m is a sum of gradients, not an average"),
}
"""Options of Adam and LAMB that change d, by name. Each entry has the setting for which d has a
formula of `_ADAM`, and a text that says why d differs for the other setting."""

_CANCELLATION: Final = 0.01  # ‖d+λw‖ / (‖d‖+λ‖w‖) below which the error may exceed 1e-3
_ROUNDING: Final = 1e-4  # a clipped norm may exceed its bound by this fraction
_FIRST_STEP: Final = 0.99  # the debias factor of a first step is at least this fraction of 1/(1−β₁)


def trust_ratio(
    run: RunTables, variant: str, steps: StepSelection, given: Mapping[str, Any]
) -> pd.DataFrame:
    """Return the trust ratio as steps × layers; see :meth:`Run.trust_ratio`."""
    options = _options(variant, given)
    rows = run.layers(_COLUMNS, steps=steps)
    columns = {name: rows[name].to_numpy(np.float64) for name in _COLUMNS}
    layers = rows["layer"].cat.codes.to_numpy()
    debiased = _layers_with_debiased_direction(run, columns, layers)
    if options["debias"] is True:
        _check_debias_known(run, ~debiased)
    if options["max_grad_norm"] is not None and len(rows):
        last = int(rows["step"].to_numpy().max())
        _check_never_clipped(run, float(options["max_grad_norm"]), last, debiased)
    decay = columns["weight_decay"]
    if "weight_decay" in options:  # rounded like the recorded decay: equal decays compare equal
        decay = np.full(len(rows), np.float32(options["weight_decay"]), np.float64)
    scale = _scale(columns, debiased[layers], debias=options["debias"] is True)
    values = lamb_ratio(
        options,
        weight_norm=columns["weight_norm"],
        undecayed_norm=scale * columns["undecayed_norm"],
        direction_norm=scale * _direction_norm(columns, decay / scale),
        learning_rate=columns["learning_rate"],
        weight_decay=decay,
    )
    return steps_by_layers(rows["step"].to_numpy(), layers, values, run.layer_names)


def _options(variant: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of the variant, updated by ``given``."""
    if variant not in LAMB_VARIANTS:
        raise UsageError(
            f"trust_ratio got variant={variant!r}; choose one of: {', '.join(LAMB_VARIANTS)}"
        )
    choices = (*LAMB_DEFAULTS, "weight_decay")
    for name, value in given.items():
        if name not in choices:
            raise UsageError(f"trust_ratio got {name}={value!r}; choose from: {', '.join(choices)}")
        check_option("trust_ratio", name, value)
    return {**LAMB_DEFAULTS, **LAMB_VARIANTS[variant], **given}


def _layers_with_debiased_direction(
    run: RunTables, columns: Columns, layers: NDArray[np.integer[Any]]
) -> NDArray[np.bool_]:
    """Return for each layer whether its direction d is debiased, bool (layers,).

    True means that d is m̂/(√v̂+ε), False that it is m/(√v+ε).

    Raises
    ------
    UsageError
        If a layer's d has neither of these formulas.
    """
    infos = run.info.layers
    decoupled = np.zeros(len(infos), bool)
    decoupled[layers[np.nan_to_num(columns["weight_decay"]) != 0]] = True
    debiased = np.zeros(len(infos), bool)
    for number, index in sorted({(info.optimizer, info.group) for info in infos}):
        in_group = np.array([(info.optimizer, info.group) == (number, index) for info in infos])
        optimizer = run.info.optimizers[number]
        if index >= len(optimizer.groups):
            why = f"and its {run.path.name}/run.json does not hold the options of group {index}"
            raise UsageError(_cannot_compute(run, optimizer, why))
        moved = in_group[layers] & (columns["update_norm"] > 0)
        if moved.any() and np.isnan(columns["undecayed_norm"][moved]).all():
            why = "whose direction was unknown when it was recorded"
            raise UsageError(_cannot_compute(run, optimizer, why))
        group = optimizer.groups[index]
        why = _why_direction_differs(optimizer, group, decoupled=bool(decoupled[in_group].any()))
        if why is not None:
            raise UsageError(_cannot_compute(run, optimizer, why))
        debiased[in_group] = _debiases_direction(optimizer, group)
    return debiased


def _why_direction_differs(
    optimizer: OptimizerInfo, group: Mapping[str, Any], *, decoupled: bool
) -> str | None:
    """Return the end of an error message if d differs from Adam's, else None.

    The text says why it differs, and with which optimizer or option to record a run instead.
    ``decoupled`` says whether a decoupled weight decay was recorded.
    """
    family = family_of(optimizer)
    if family not in _ADAM:
        return "whose direction is not m̂/(√v̂+ε); record a run of Adam without decay, AdamW or LAMB"
    for name, (wanted, why) in _DIRECTION_OPTIONS.items():
        if bool(group.get(name, wanted)) is not wanted:
            return f"with {name}={group[name]}: {why}; record a run with {name}={wanted}"
    decay = group.get("weight_decay")
    coupled = not group.get("decoupled_weight_decay", decoupled or family != families.ADAM)
    if coupled and isinstance(decay, Real) and decay != 0:
        return (
            f"whose weight_decay={decay} is added to the gradient, and so enters m and v; "
            "record a run with AdamW or without decay"
        )
    return None


def _debiases_direction(optimizer: OptimizerInfo, group: Mapping[str, Any]) -> bool:
    """Return whether the optimizer debiases m and v before it computes d."""
    default = LAMB_VARIANTS.get(optimizer.variant or "article", {}).get("debias", True)
    # trustlens.optim.Lamb has the option `debias`; apex's and timm's have `bias_correction`.
    return group.get("debias", default) is True and bool(group.get("bias_correction", True))


def _check_debias_known(run: RunTables, not_debiased: NDArray[np.bool_]) -> None:
    """Raise UsageError if the debias factors of a layer in ``not_debiased`` are unknown.

    ``not_debiased``, bool (layers,), selects the layers whose direction is not debiased. The
    factors of a layer are unknown if its largest recorded ``debias2`` is 1.
    """
    if not not_debiased.any():
        return
    rows = run.layers(["debias2"])
    largest = np.full(len(not_debiased), np.nan)  # stays NaN for layers without steps: no error
    factors = rows["debias2"].to_numpy(np.float64)
    np.fmax.at(largest, rows["layer"].cat.codes.to_numpy(), factors)
    unknown = np.flatnonzero(not_debiased & (largest == 1))
    if len(unknown):
        optimizer = run.info.optimizers[run.info.layers[unknown[0]].optimizer]
        why = (
            "which does not debias m and v, and their step counts are not stored; "
            "pass debias=False, or record a run of AdamW"
        )
        raise UsageError(_cannot_compute(run, optimizer, why))


@np.errstate(all="ignore")
def _scale(columns: Columns, debiased: NDArray[np.bool_], *, debias: bool) -> NDArray[np.float64]:
    """Return for each row the factor that converts the stored d to the d that is wanted.

    ``debiased`` says whether the stored d is debiased, ``debias`` whether the wanted one is.
    """
    factor = columns["debias1"] / np.sqrt(columns["debias2"])
    if debias:
        return np.where(debiased, 1.0, factor)
    return np.where(debiased, 1 / factor, 1.0)


@np.errstate(all="ignore")
def _direction_norm(columns: Columns, decay: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ‖d+λw‖ with λ = ``decay``; NaN where cancellation leaves too few digits."""
    d, w = columns["undecayed_norm"], columns["weight_norm"]
    square = d**2 + 2 * decay * columns["undecayed_dot_weight"] + (decay * w) ** 2
    norm = np.sqrt(np.maximum(square, 0))
    norm = np.where(norm < _CANCELLATION * (d + decay * w), np.nan, norm)
    return np.where(decay == columns["weight_decay"], columns["direction_norm"], norm)


def _check_never_clipped(
    run: RunTables, bound: float, last: int, debiased: NDArray[np.bool_]
) -> None:
    """Raise UsageError if a total gradient norm up to step `last` exceeds `bound`, or is unknown.

    A total norm is over all layers of one optimizer at one step. Optimizers that clip to `bound`
    themselves are not checked.
    """
    optimizers = run.info.optimizers
    to_check = [number for number, info in enumerate(optimizers) if not _clips_itself(info, bound)]
    rows = run.layers(["grad_norm", "nonfinite", "debias1"], steps=slice(None, last + 1))
    layers = rows["layer"].cat.codes.to_numpy()
    of_layers = np.array([info.optimizer for info in run.info.layers])
    squares = rows["grad_norm"].to_numpy(np.float64) ** 2
    # If all elements are finite, the norm is NaN because the layer had no gradient.
    squares[np.isnan(squares) & (rows["nonfinite"].to_numpy() == 0)] = 0
    for number in to_check:
        of_optimizer = of_layers[layers] == number
        steps, index = np.unique(rows["step"].to_numpy()[of_optimizer], return_inverse=True)
        why = _why_gradients_unknown(run, rows.loc[of_optimizer], last, debiased)
        if why is not None:
            why += ", so it is unknown whether max_grad_norm would have clipped"
            why += "; pass max_grad_norm=None to compute without clipping"
            raise UsageError(_cannot_compute(run, optimizers[number], why))
        totals = np.sqrt(np.bincount(index, squares[of_optimizer], len(steps)))
        # Negated, so that NaN counts as above the bound.
        above = np.flatnonzero(~(totals <= bound * (1 + _ROUNDING)))
        if len(above):
            step, total = steps[above[0]], totals[above[0]]
            why = (
                f"whose gradients together have the norm {total:.4g} at step {step}: "
                f"max_grad_norm={bound:g} would have changed m and v from that step on; "
                f"pass steps=slice(None, {step}), or max_grad_norm=None to compute without clipping"
            )
            raise UsageError(_cannot_compute(run, optimizers[number], why))


def _clips_itself(optimizer: OptimizerInfo, bound: float) -> bool:
    """Return whether the optimizer itself clipped to the norm ``bound``, as some LAMBs do."""
    variant = LAMB_VARIANTS.get(optimizer.variant or "", {})
    has_option = "max_grad_norm" in variant or optimizer.name.startswith("trustlens.")
    return has_option and all(group.get("max_grad_norm") == bound for group in optimizer.groups)


def _why_gradients_unknown(
    run: RunTables, rows: pd.DataFrame, last: int, debiased: NDArray[np.bool_]
) -> str | None:
    """Return why some gradients of an optimizer up to step `last` are unknown, or None."""
    steps = rows["step"].to_numpy()
    known = set(steps.tolist())
    # If every step is recorded, no layer had a gradient at a step without rows. Otherwise such a
    # step may just not have been recorded.
    if run.info.recording.every == 1:
        known |= set(run.steps()["step"])
    missing = set(range(1, last + 1)) - known
    if missing:
        return f"and the gradients of step {min(missing)} were not recorded"
    layers = rows["layer"].cat.codes.to_numpy()[steps == 1]
    factors = rows["debias1"].to_numpy(np.float64)[steps == 1]
    for layer, factor in zip(layers, factors, strict=True):
        info = run.info.layers[layer]
        group = run.info.optimizers[info.optimizer].groups[info.group]
        # If β₁ is unknown, it is taken as 0: then any factor can be that of a first step.
        beta1 = group.get("betas", (0.0,))[0]
        if (debiased[layer] or factor > 1) and factor < _FIRST_STEP / (1 - beta1):
            return "and it had taken steps before the recording began"
    return None


def _cannot_compute(run: RunTables, optimizer: OptimizerInfo, why: str) -> str:
    return f"trust_ratio of run '{run.name}' cannot be computed: it recorded {optimizer.name} {why}"
