"""Every optimizer of torch.optim with its options, and what is promised of each.

The tests run these cases and hold them to it; the page docs/optimizers.md is made of them:
python tests/support/supported.py
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
"""What a column may differ from its definition where d comes from a float32 state."""

LAST_PLACES = 1.2e-7
"""Of ‖w‖: what a norm of Δw may be off where w is had from what is there after the step."""

NO_MOMENTUM = ("grad_dot_momentum", "momentum_norm", "debias1")
NO_VARIANCE = ("variance_sum", "surprise", "debias2")
NEITHER = NO_MOMENTUM + NO_VARIANCE


@dataclass(frozen=True)
class Case:
    """An optimizer with some options.

    `when` says in words what sets it apart from the other cases of its class, `copies` whether
    the weights of a large layer are copied at each step, `null` what is null.
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
        # A tensor given twice would be one object that a schedule changes in both.
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

STRONG = {
    "lr": 0.06,
    "weight_decay": 1.25,
}  # 0.375 of the weights, at the largest rate in the tests

# They hold what torch tests itself (torch.testing._internal.common_optimizers), and more.
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
"""What runs on an accelerator only."""


# The page.


@dataclass(frozen=True)
class Row:
    """A line of the table of torch.optim."""

    optimizer: str
    options: str
    direction: str
    copy: str
    exact: str
    null: str = ""


@dataclass(frozen=True)
class LayerwiseRow:
    """A line of the table of LAMB and LARS."""

    optimizer: str
    options: str
    direction: str
    ratio: str
    tested: str


def torch_rows() -> Iterator[Row]:
    """Return a line for each set of cases that the same is promised of."""
    alike: dict[tuple[Any, ...], list[Case]] = {}
    for case in [*CASES, *ACCELERATOR]:
        key = (case.kind, case.when, case.direction, case.copies, case.null)
        alike.setdefault(key, []).append(case)
    for (kind, when, direction, copies, null), cases in alike.items():
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


INTRODUCTION = f"""# Which optimizers, and how exactly

<!-- Made by tests/support/supported.py from the cases that the tests run: do not edit. -->

Everything is about one definition. A step changes a layer's weights w by **Δw = −η(d + λw)**: η is
the learning rate of the layer's group, λ its decoupled weight decay, and d what is left, the
optimizer's own direction. A decay that the optimizer adds to its gradient is part of d, and so is
whatever it multiplies its rate by (Adagrad's `lr_decay`, Adafactor's scale). LAMB and LARS alone
have a factor outside d: their trust ratio.

*Closed form*: d follows from the optimizer's state after the step, by the optimizer's own formula.
*Measured*: d is read off the weights, and has their rounding; `swallowed` is null then, since an
update that was rounded away cannot be seen. An optimizer that nobody has heard of is measured, too,
with d + λw in the place of d, as its λ is not known.

*Exact to* is what the tests hold every column to, relative to its size: each is compared with the
same step done in float64 by torch's own code, over each of the options named, in float32, float64
and complex weights. Inner products are held to that share of the product of the two norms. The
tests also hold that weights and state are bit for bit those of the same training unrecorded.
`capturable` runs with tensors on the CPU that stand in for those on a device, and on a GPU where
there is one (`pytest -m gpu`).
Columns of float64 weights are held to 1e-6. With weights in bfloat16 or float16 what is of weights,
gradients and updates is as exact, counts are true, and what comes from the optimizer's state has
the few digits of that state.

**Copies of the weights.** What a step changed can be told from the weights after it and d, so for
most optimizers no copy is kept. One is kept, for the time of the step, of

- layers of up to {SMALL:,} elements, and all layers in their first step;
- weights in bfloat16, float16 or complex numbers;
- all layers of an optimizer for which the table says «always», or whose η is 0 or η·λ above ½
  (Adafactor: η·(d + λ) above 0.9, or η on a device);
- all layers in a step with element histograms.

Without a copy, Δw and its norms are held to {EXACT:g}, give or take {LAST_PLACES:g} of ‖w‖ (two
units in the last place of float32): most weights come back to the bit, others have lost theirs in a
larger update. What was rounded away cannot be seen then: `swallowed` is null. Where Δw is more
than 64 times the weights, or not finite, the weights before the step cannot be told: `weight_norm`,
`trust_ratio`, `undecayed_dot_weight` and `update_dot_weight` are null in that step. A weight that
its update made infinite or NaN is counted in `nonfinite` at that very step, where with a copy it is
at the next.

Complex weights are seen as real ones, as torch.optim sees them: every element counts as two. Sparse
gradients count as dense, with their zeros. A layer without gradient, frozen or unused, has its norm
and nulls. The `surprise` of a layer without elements is null.
"""


LAYERWISE = f"""## LAMB and LARS

Their weights are copied, but those of this package: what `trustlens.optim.Lamb` multiplied its
steps by is in its state (they are copied where η·λ times the largest r is above ½), and a fused
`Lars` hands over the sums that it made as it stepped. `trust_ratio` is the ratio that they applied:
{EXACT:g} off at most what the weights moved by in proportion to the direction, which is how the
tests find it. What they have no average for is null. `run.json` names the variant. A copy of
pytorch-lamb's file under another name is told by its state; other LAMBs under other names are
measured like any optimizer that nobody has heard of.
"""


def page(rows: Iterable[Row], layerwise: Iterable[LayerwiseRow]) -> str:
    """Return the page in Markdown."""
    shared = ("optimizer", "options in the tests", "d")
    first = _table((*shared, "weights copied", "exact to", "null"), rows)
    second = _table((*shared, "the ratio is had from", "tested with"), layerwise)
    return f"{INTRODUCTION}\n## torch.optim\n\n{first}\n{LAYERWISE}\n{second}"


def _table(head: tuple[str, ...], rows: Iterable[Any]) -> str:
    lines = [head, ("---",) * len(head), *(dataclasses.astuple(row) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from support.third_party import layerwise_rows

    PAGE.write_text(page(torch_rows(), layerwise_rows()), encoding="utf-8")
