"""Every optimizer of torch.optim with its options, and the precision promised for each.

The tests run these cases and check what they promise. The page docs/optimizers.md is generated from
them: python tests/support/supported.py
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trustlens.recording.measuring.snapshots import SMALL

PAGE = Path(__file__).parents[2] / "docs" / "optimizers.md"

FORMULA = "closed form"
MEASURED = "measured"

EXACT = 2e-5
"""Largest relative error of a column if d is computed from a float32 state."""

LAST_PLACES = 1.2e-7
"""Largest error of a norm of Δw relative to ‖w‖, if w is computed from the state after the step."""

NO_MOMENTUM = ("grad_dot_momentum", "momentum_norm", "debias1")
NO_VARIANCE = ("variance_sum", "surprise", "debias2")
NEITHER = NO_MOMENTUM + NO_VARIANCE


@dataclass(frozen=True)
class Case:
    """An optimizer with some options.

    `when` describes how the case differs from others of its class, `copies` says whether the
    weights of large layers are copied in each step, and `null` lists the columns that are null.
    """

    kind: type[torch.optim.Optimizer]
    options: dict[str, Any]
    when: str = ""
    copies: bool = False
    null: tuple[str, ...] = ()
    direction: str = FORMULA

    def __str__(self) -> str:
        given = ", ".join(f"{name}={_shown(value)}" for name, value in self.options.items())
        return f"{self.kind.__name__}({given})"

    def make(self, groups: Any) -> torch.optim.Optimizer:
        # Clone tensors: a schedule would change a shared tensor in all optimizers that use it.
        return self.kind(groups, **{k: _fresh(v) for k, v in self.options.items()})


def _fresh(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_fresh(each) for each in value)
    return value.clone() if isinstance(value, torch.Tensor) else value


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(_shown(each) for each in value)})"
    return f"tensor({value.item():g})" if isinstance(value, torch.Tensor) else str(value)


def _cases(kind: str, *options: dict[str, Any], **promised: Any) -> list[Case]:
    return [Case(getattr(torch.optim, kind), each, **promised) for each in options]


RATE = {"lr": torch.tensor(0.01)}
BETAS = {"betas": (torch.tensor(0.9), torch.tensor(0.99))}
DECAY, UP, FOREACH, FUSED = (
    {"weight_decay": 0.1},
    {"maximize": True},
    {"foreach": True},
    {"fused": True},
)
LOOSE, KEPT_GRAPH = {"decoupled_weight_decay": True}, {"differentiable": True}
AMS, NESTEROV, CENTERED = {"amsgrad": True}, {"momentum": 0.9, "nesterov": True}, {"centered": True}

# A decay of 0.375 of the weights, at the largest rate in the tests.
STRONG = {"lr": 0.06, "weight_decay": 1.25}

# They include the options that torch tests (torch.testing._internal.common_optimizers).
CASES = [
    *_cases("SGD", {}, {"lr": 0.01}, RATE, DECAY | UP, FOREACH | DECAY, FUSED | DECAY,
            FUSED | UP | RATE, KEPT_GRAPH | DECAY, {"weight_decay": 0.5}, STRONG,
            when="without momentum", null=NEITHER),
    *_cases("SGD", {"momentum": 0.9}, {"momentum": 0.9, "dampening": 0.5}, NESTEROV,
            {"momentum": 0.9} | DECAY | UP, NESTEROV | DECAY, NESTEROV | DECAY | UP | FOREACH,
            NESTEROV | DECAY | UP | FUSED, {"momentum": 0.9} | RATE | FOREACH,
            {"momentum": 0.9, "dampening": 0.5} | DECAY | FUSED,
            when="with momentum", null=(*NO_VARIANCE,)),
    *_cases("Adam", {}, {"lr": 0.01}, DECAY, DECAY | UP, DECAY | AMS, RATE, RATE | BETAS,
            FOREACH | DECAY | AMS, FUSED | DECAY | AMS, FUSED | UP | RATE, KEPT_GRAPH | DECAY,
            {"betas": (0.0, 0.5), "eps": 1e-3}, LOOSE | DECAY | UP),
    *_cases("AdamW", {}, {"lr": 0.01}, {"weight_decay": 0.0}, DECAY | UP, AMS, RATE, RATE | BETAS,
            FOREACH | AMS | UP, FUSED | AMS | UP, FUSED | RATE, KEPT_GRAPH | DECAY,
            {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 1.0}, STRONG),
    *_cases("NAdam", {}, {"momentum_decay": 0.006}, LOOSE | DECAY, LOOSE | DECAY | UP | FOREACH,
            RATE | UP, {"betas": (0.5, 0.9), "eps": 1e-3}, KEPT_GRAPH),
    *_cases("NAdam", DECAY, DECAY | {"momentum_decay": 0.006}, DECAY | UP, DECAY | FOREACH,
            when="coupled decay", copies=True),
    *_cases("RAdam", {}, {"eps": 1e-6}, DECAY, DECAY | LOOSE, DECAY | UP, FOREACH | DECAY | LOOSE,
            FOREACH | UP, RATE, {"betas": (0.5, 0.5), "eps": 1e-3}, {"betas": (0.9, 0.9)} | RATE,
            KEPT_GRAPH | DECAY),
    *_cases("Adamax", {}, {"lr": 0.1}, DECAY, DECAY | UP, FOREACH | DECAY, RATE,
            {"betas": (0.5, 0.9), "eps": 1e-3}, KEPT_GRAPH, null=NO_VARIANCE),
    *_cases("Adagrad", {}, {"lr": 0.1}, RATE, {"lr_decay": 0.5} | UP, FOREACH, FUSED | UP,
            {"initial_accumulator_value": 0.1, "eps": 1e-3}, KEPT_GRAPH, null=NO_MOMENTUM),
    *_cases("Adagrad", DECAY, DECAY | UP | FOREACH, DECAY | FUSED,
            {"lr": 0.1, "lr_decay": 0.5, "initial_accumulator_value": 0.1} | DECAY,
            when="coupled decay", copies=True, null=NO_MOMENTUM),
    *_cases("RMSprop", {}, UP, CENTERED, {"alpha": 0.5, "eps": 1e-3}, RATE, FOREACH | CENTERED,
            KEPT_GRAPH, when="without momentum", null=NO_MOMENTUM),
    *_cases("RMSprop", DECAY, DECAY | CENTERED, DECAY | UP | FOREACH,
            when="without momentum, coupled decay", copies=True, null=NO_MOMENTUM),
    *_cases("RMSprop", {"momentum": 0.9}, DECAY | CENTERED | {"momentum": 0.1},
            DECAY | CENTERED | UP | FOREACH | {"momentum": 0.9}, when="with momentum"),
    *_cases("Adadelta", {}, {"lr": 0.01}, UP, RATE, FOREACH, {"rho": 0.5, "eps": 1e-3}, KEPT_GRAPH,
            null=NO_MOMENTUM),
    *_cases("Adadelta", DECAY, DECAY | UP | FOREACH, {"rho": 0.95, "weight_decay": 0.9},
            when="coupled decay", copies=True, null=NO_MOMENTUM),
    *_cases("Rprop", {}, {"lr": 2e-4}, {"etas": (0.5, 1.5)}, {"step_sizes": (2e-6, 100)}, UP, RATE,
            FOREACH, KEPT_GRAPH, null=NEITHER),
    *_cases("ASGD", {}, {"lambd": 0.1}, {"t0": 2}, UP, DECAY, DECAY | UP | FOREACH, RATE,
            {"lambd": 0.5, "lr": 0.1, "alpha": 0.9} | DECAY, KEPT_GRAPH, null=NEITHER),
    *_cases("Adafactor", {}, {"lr": 0.05}, DECAY, DECAY | UP, {"beta2_decay": -1.0}, {"d": 1.5},
            FOREACH | DECAY, RATE, {"eps": (1e-3, 0.5)}, STRONG, null=NO_MOMENTUM),
    *_cases("SparseAdam", {}, {"lr": 0.01}, RATE, UP, {"betas": (0.5, 0.9), "eps": 1e-3}),
    *_cases("Muon", {}, {"lr": 0.01}, RATE, {"weight_decay": 0.0}, {"momentum": 0.8},
            {"nesterov": False}, {"ns_steps": 6, "eps": 1e-5},
            {"ns_coefficients": (3.4, -4.7, 2.0)}, {"adjust_lr_fn": "match_rms_adamw"},
            copies=True, null=(*NO_VARIANCE, "swallowed"), direction=MEASURED),
    *_cases("LBFGS", {}, {"lr": 0.01}, RATE, {"tolerance_grad": 1e-6}, {"max_iter": 3},
            {"line_search_fn": "strong_wolfe", "history_size": 3},
            {"max_eval": 2, "tolerance_change": 1e-7},
            copies=True, null=(*NEITHER, "swallowed"), direction=MEASURED),
]  # fmt: skip

CAPTURED = {"capturable": True}
ACCELERATOR = [
    *_cases("Adam", CAPTURED | RATE | AMS, CAPTURED | FOREACH | DECAY),
    *_cases("AdamW", CAPTURED | RATE | BETAS, CAPTURED | FUSED, CAPTURED | FOREACH | RATE),
    *_cases("NAdam", CAPTURED | RATE | LOOSE | DECAY, CAPTURED | FOREACH),
    *_cases("RAdam", CAPTURED | LOOSE | DECAY, CAPTURED | FOREACH | RATE),
    *_cases("Adamax", CAPTURED | RATE, CAPTURED | FOREACH, null=NO_VARIANCE),
    *_cases("RMSprop", CAPTURED | RATE, CAPTURED | FOREACH, null=NO_MOMENTUM,
            when="without momentum"),
    *_cases("Adadelta", CAPTURED | RATE, CAPTURED | FOREACH, null=NO_MOMENTUM),
    *_cases("Rprop", CAPTURED, CAPTURED | FOREACH | RATE, null=NEITHER),
    *_cases("ASGD", CAPTURED | DECAY, CAPTURED | FOREACH | RATE, null=NEITHER),
]  # fmt: skip
"""Cases that run only on an accelerator."""


# The documentation page.


@dataclass(frozen=True)
class Row:
    """A row of the table of torch.optim."""

    optimizer: str
    options: str
    direction: str
    copy: str
    exact: str
    null: str = ""


@dataclass(frozen=True)
class LayerwiseRow:
    """A row of the table of LAMB and LARS."""

    optimizer: str
    options: str
    direction: str
    ratio: str
    tested: str


def torch_rows() -> Iterator[Row]:
    """Yield a row for each set of cases that promise the same."""
    by_promise: dict[tuple[Any, ...], list[Case]] = {}
    for case in [*CASES, *ACCELERATOR]:
        key = (case.kind, case.when, case.direction, case.copies, case.null)
        by_promise.setdefault(key, []).append(case)
    for (kind, when, direction, copies, null), cases in by_promise.items():
        options = dict.fromkeys(_option(*each) for case in cases for each in case.options.items())
        yield Row(
            f"`{kind.__name__}`" + (f", {when}" if when else ""),
            ", ".join(options),
            direction,
            "always" if copies else "no",
            f"{EXACT:g}" if direction == FORMULA else "the rounding of the weights",
            ", ".join(f"`{name}`" for name in null),
        )


def _option(name: str, value: Any) -> str:
    first = value[0] if isinstance(value, tuple) else value
    return f"`{name}`" + (" as a tensor" if isinstance(first, torch.Tensor) else "")


INTRODUCTION = f"""# Supported optimizers and their precision

<!-- Generated by tests/support/supported.py from the cases that the tests run. Do not edit. -->

One definition underlies all columns. A step changes a layer's weights w by **Δw = −η(d + λw)**,
where η is the learning rate of the layer's group, λ its decoupled weight decay, and d the
optimizer's own direction. A weight decay that the optimizer adds to its gradient is part of d, and
so are further factors of its learning rate (Adagrad's `lr_decay`, Adafactor's scale). Only LAMB and
LARS have a factor outside d: their trust ratio.

*Closed form*: d is computed from the optimizer's state after the step, by the optimizer's formula.
*Measured*: d is computed from the change of the weights and has their rounding error; `swallowed`
is then null, since an update that was rounded away leaves no trace. Unknown optimizers are measured
too; their λ is not known, so the recorded direction is d + λw.

*Exact to* is the largest relative error that the tests allow in any column. They compare each
column with the same step computed in float64 by torch's own code, for each of the listed options,
with float32, float64 and complex weights. For inner products the error is relative to the product
of the two norms. The tests also check that weights and optimizer state are bit-identical to those
of the same training without the recorder. `capturable` is tested with CPU tensors in place of
device tensors, and on a GPU if there is one (`pytest -m gpu`).
For float64 weights the bound is 1e-6. For bfloat16 and float16 weights, quantities of weights,
gradients and updates are as exact and counts are exact; quantities of the optimizer's state have
the precision of that state.

**Copies of the weights.** For most optimizers, the weights before a step can be computed from the
weights after it and d, so they are not copied. These are copied, for the duration of the step:

- layers of up to {SMALL:,} elements, and all layers in their first step;
- weights in bfloat16, float16 or complex dtypes;
- all layers of an optimizer marked “always” in the table, or with η = 0, or with η·λ above ½
  (Adafactor: η·(d + λ) above 0.9, or η on a device);
- all layers in a step with element histograms.

Without a copy, Δw and its norms are exact to {EXACT:g} plus {LAST_PLACES:g} of ‖w‖ (two units in
the last place of float32): most weights are recovered bit for bit, others lost digits in a larger
update. `swallowed` is null, since an update that was rounded away leaves no trace. If ‖Δw‖ is more
than 64 times ‖w‖, or not finite, the weights before the step cannot be recovered: `weight_norm`,
`trust_ratio`, `undecayed_dot_weight` and `update_dot_weight` are null in that step. A weight that
an update makes infinite or NaN is counted in `nonfinite` in that step; with a copy, in the next.

As in torch.optim, complex weights are treated as real ones: every element counts as two. Sparse
gradients count as dense, including their zeros. A layer without a gradient (frozen or unused) has a
weight norm and nulls. The `surprise` of a layer without elements is null.
"""


LAYERWISE = f"""## LAMB and LARS

The weights of other packages' LAMB and LARS are copied. Those of `trustlens.optim.Lamb` are not,
since its state holds the trust ratio (unless η·λ times the largest r is above ½), nor those of a
fused `Lars`, which computes the recorded sums during its step. `trust_ratio` is the ratio that the
optimizer applied, exact to {EXACT:g}; the tests compute it from the change of the weights relative
to the direction. Columns of averages that an optimizer does not keep are null. `run.json` names the
variant. A copy of pytorch-lamb's code under another class name is recognized by its state; any
other LAMB of unknown class is measured.
"""


def page(rows: Iterable[Row], layerwise: Iterable[LayerwiseRow]) -> str:
    """Return the documentation page in Markdown."""
    shared = ("optimizer", "options in the tests", "d")
    first = _table((*shared, "weights copied", "exact to", "null"), rows)
    second = _table((*shared, "source of the ratio", "tested with"), layerwise)
    return f"{INTRODUCTION}\n## torch.optim\n\n{first}\n{LAYERWISE}\n{second}"


def _table(head: tuple[str, ...], rows: Iterable[Any]) -> str:
    lines = [head, ("---",) * len(head), *(dataclasses.astuple(row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.support.third_party import layerwise_rows

    PAGE.write_text(page(torch_rows(), layerwise_rows()), encoding="utf-8")
