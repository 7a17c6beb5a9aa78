"""LAMB and LARS of other packages, and what their steps did according to weights and state.

The ratio is not computed by any package's rule: it is the length of the change of the weights
relative to that of u, without the decay if the ratio does not apply to it (Δw = −η(r·d + λw)).
The direction is the package's formula, in float64, of the averages in the optimizer's state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import bitsandbytes.optim
import numpy as np
import pytorch_optimizer
import torch
import torch_optimizer

from tests.support import simulation, stand_ins, supported
from tests.support.simulation import Stepped, norm, wide

SHAPES = ((30, 7), (7,), (5,), (3,), (4,))
BETAS = (0.9, 0.99)


@dataclass
class Seen:
    """The weights, gradient and state of a layer before and after a step; arrays are float64."""

    group: dict[str, Any]
    state: dict[str, Any]
    old: dict[str, Any]  # the state before
    w: np.ndarray
    after: np.ndarray
    g: np.ndarray
    step: int

    @property
    def factors(self):
        """1/(1 − β₁ᵗ) and 1/(1 − β₂ᵗ); every layer here has a gradient in each step."""
        return [1 / (1 - beta**self.step) for beta in self.group["betas"]]

    @property
    def change(self):
        return self.after - self.w

    @property
    def lr(self):
        return float(self.group["lr"])


def lamb(
    s: Seen, *, debias=True, decoupled=False, decay=None, keys=("exp_avg", "exp_avg_sq"), d=None
):
    """Return what a LAMB did; if ``decoupled``, its ratio does not apply to the decay."""
    m, v = (wide(s.state[key]) for key in keys)
    f1, f2 = s.factors
    inside = debias is True
    v_hat = f2 * v if inside else v
    d = (f1 if inside else 1.0) * m / (np.sqrt(v_hat) + s.group["eps"]) if d is None else d
    lam = s.group["weight_decay"] if decay is None else decay
    rate = s.lr * {"rate": f1 / f2**0.5, "first": f1}.get(debias, 1.0)
    if decoupled:
        ratio = norm(s.change + s.lr * lam * s.w) / (rate * norm(d)) if d.any() else None
    else:
        u = d + lam * s.w
        ratio = norm(s.change) / (rate * norm(u)) if u.any() else None
    shown = (f1 if debias else 1.0, f2 if debias in (True, "rate") else 1.0)
    return Stepped(d, lam, s.change, m, v_hat, *shown, ratio)


def lars(s: Seen, *, flat=False):
    """Return what a LARS did, with the ratio from its momentum, or from Δw without momentum."""
    lam = 0.0 if flat and s.w.ndim <= 1 else s.group["weight_decay"]
    u = s.g + lam * s.w
    momentum = s.group["momentum"]
    if not momentum:
        return Stepped(
            s.g, lam, s.change, ratio=norm(s.change) / s.lr / norm(u) if u.any() else None
        )
    b, old = wide(s.state["momentum_buffer"]), s.old.get("momentum_buffer")
    added = b - momentum * wide(old) if old is not None else b
    share = 1 - s.group["dampening"] if old is not None or flat else 1.0
    ratio = norm(added) / share / norm(u) if u.any() else None
    return Stepped(s.g, lam, s.change, b, debias1=1.0, ratio=ratio)


def cautious(s: Seen):
    m, v = wide(s.state["exp_avg"]), wide(s.state["exp_avg_sq"])
    f1, f2 = s.factors
    mask = (m * s.g > 0).astype(float)
    d = f1 * m / (np.sqrt(f2 * v) + s.group["eps"]) * mask / max(mask.mean(), 1e-3)
    return lamb(s, d=d)


def of_bitsandbytes(s: Seen):
    if s.state["state1"].dtype == torch.float32:
        return lamb(s, decoupled=True, keys=("state1", "state2"))
    return adam_of_8_bits(s)


def adam_of_8_bits(s: Seen):
    lam = s.group["weight_decay"]
    return Stepped(-s.change / s.lr - lam * s.w, lam, s.change, ratio=1.0)


def lars_of_bitsandbytes(s: Seen):
    if s.state["state1"].dtype != torch.float32:
        return Stepped(-s.change / s.lr, 0.0, s.change, ratio=1.0)
    b = wide(s.state["state1"])
    ratio = norm(s.change) / s.lr / norm(b) if b.any() else None
    return Stepped(b, 0.0, s.change, b, debias1=1.0, ratio=ratio)


@dataclass
class Case:
    kind: Callable[..., torch.optim.Optimizer]
    seen: Callable[[Seen], Stepped]
    options: dict[str, Any] = field(default_factory=dict)
    variant: str | None = None
    family: str = "LAMB"
    eps: float = 1e-6
    lr: float = 0.05
    shapes: tuple[tuple[int, ...], ...] = SHAPES
    used: Callable[[list[torch.Tensor]], list[torch.Tensor]] = lambda grads: grads
    patch: dict[str, Any] = field(default_factory=dict)


def case(kind, seen, variant=None, *, how=None, **more):
    settings = {name: more.pop(name) for name in tuple(more) if name in Case.__annotations__}
    return Case(kind, lambda s: seen(s, **(how or {})), more, variant, **settings)


def clipped(grads):
    total = torch.stack([g.norm() for g in grads]).norm()
    return [g / max(float(total), 1.0) for g in grads]


BIG = ((70, 60), *SHAPES[1:])  # bitsandbytes has 32-bit states for small layers
NO_CLIP = {"max_grad_norm": 1e9}
ADAM = {"betas": BETAS, "eps": 1e-6}
TO, KO, BNB = torch_optimizer, pytorch_optimizer, bitsandbytes.optim
TIMM, APEX, DEEP = stand_ins.TimmLamb, stand_ins.FusedLAMB, stand_ins.FusedLamb
KOZISTR = {"debias": "first", "decoupled": True}
OLD, NEW = {"version": "0.19.8"}, {"version": "0.19.9"}


def deepspeed_eps_inside(s):
    m, v = wide(s.state["exp_avg"]), wide(s.state["exp_avg_sq"])
    return lamb(s, debias="rate", d=m / np.sqrt(v + s.group["eps"]))


def timm_corrected(s):
    return lamb(s, decoupled=True, decay=s.group["weight_decay"] * s.lr / 0.05)


def kozistr_fixed(s):
    return lamb(s, decay=s.group["weight_decay"] / s.lr, **KOZISTR)


PLAIN, RATE = {"debias": False}, {"debias": "rate"}
CASES = {
    "pytorch-lamb": case(
        stand_ins.PytorchLamb, lamb, "pytorch-lamb", how=PLAIN, shapes=SHAPES[:4], **ADAM
    ),
    "pytorch-lamb, adam": case(
        stand_ins.PytorchLamb, lamb, "pytorch-lamb", how=PLAIN, adam=True, shapes=SHAPES[:4], **ADAM
    ),
    "torch-optimizer": case(TO.Lamb, lamb, "torch-optimizer", how=PLAIN, **ADAM),
    "torch-optimizer, debias": case(
        TO.Lamb, lamb, "torch-optimizer", how=RATE, debias=True, clamp_value=1e3, **ADAM
    ),
    "torch-optimizer, adam": case(TO.Lamb, lamb, "torch-optimizer", how=PLAIN, adam=True, **ADAM),
    "pytorch_optimizer": case(KO.Lamb, lamb, "pytorch_optimizer", how=KOZISTR, **ADAM),
    "pytorch_optimizer, one by one": case(
        KO.Lamb, lamb, "pytorch_optimizer", how=KOZISTR, foreach=False, **ADAM
    ),
    "pytorch_optimizer, decay inside": case(
        KO.Lamb, lamb, "pytorch_optimizer", how={"debias": "first"}, weight_decouple=False, **ADAM
    ),
    "pytorch_optimizer, fixed decay": case(
        KO.Lamb, kozistr_fixed, "pytorch_optimizer", fixed_decay=True, weight_decay=1e-3, **ADAM
    ),
    "pytorch_optimizer, no debias": case(
        KO.Lamb,
        lamb,
        "pytorch_optimizer",
        how={"debias": False, "decoupled": True},
        adam_debias=True,
        **ADAM,
    ),
    "pytorch_optimizer, adam": case(
        KO.Lamb, lamb, "pytorch_optimizer", how=KOZISTR, adam=True, **ADAM
    ),
    "pytorch_optimizer, clipped": case(
        KO.Lamb, lamb, "pytorch_optimizer", how=KOZISTR, pre_norm=True, used=clipped, **ADAM
    ),
    "pytorch_optimizer, maximize": case(
        KO.Lamb,
        lamb,
        "pytorch_optimizer",
        how=KOZISTR,
        maximize=True,
        used=lambda grads: [-g for g in grads],
        **ADAM,
    ),
    "timm": case(TIMM, lamb, "timm", **ADAM, **NO_CLIP),
    "timm, always": case(TIMM, lamb, "timm", always_adapt=True, **ADAM, **NO_CLIP),
    "timm, trust clip": case(TIMM, lamb, "timm", trust_clip=True, **ADAM, **NO_CLIP),
    "timm, decoupled": case(
        TIMM, lamb, "timm", how={"decoupled": True}, decoupled_decay=True, **ADAM, **NO_CLIP
    ),
    "timm, corrected": case(
        TIMM,
        timm_corrected,
        "timm",
        decoupled_decay=True,
        corrected_weight_decay=True,
        **ADAM,
        **NO_CLIP,
    ),
    "timm, caution": case(TIMM, cautious, "timm", caution=True, **ADAM, **NO_CLIP),
    "timm, sums": case(TIMM, lamb, "timm", grad_averaging=False, **ADAM, **NO_CLIP),
    "timm, no debias": case(
        TIMM, lamb, "timm", how=PLAIN, bias_correction=False, **ADAM, **NO_CLIP
    ),
    "timm, clipped": case(TIMM, lamb, "timm", used=clipped, **ADAM),
    "timm, old": case(TIMM, lamb, "timm", patch={"clips_in_place": True}, used=clipped, **ADAM),
    "apex": case(APEX, lamb, "apex", **ADAM, **NO_CLIP),
    "apex, nvlamb": case(APEX, lamb, "apex", use_nvlamb=True, **ADAM, **NO_CLIP),
    "apex, decay in the gradient": case(
        APEX, lamb, "apex", how={"decay": 0.0}, adam_w_mode=False, **ADAM, **NO_CLIP
    ),
    "apex, clipped": case(APEX, lamb, "apex", used=clipped, **ADAM),
    "apex, no debias": case(
        APEX, lamb, "apex", how=PLAIN, bias_correction=False, **ADAM, **NO_CLIP
    ),
    "DeepSpeed": case(DEEP, lamb, "deepspeed", how=RATE, patch=OLD, **ADAM),
    "DeepSpeed, newer": case(DEEP, lamb, patch=NEW, **ADAM),
    "DeepSpeed, no debias": case(
        DEEP, lamb, "deepspeed", how=PLAIN, patch=OLD, bias_correction=False, **ADAM
    ),
    "DeepSpeed, ε inside": case(
        DEEP,
        deepspeed_eps_inside,
        "deepspeed",
        patch=OLD,
        eps_inside_sqrt=True,
        betas=BETAS,
        eps=1.0,  # equal to its square, since `surprise` divides by at least ε²
    ),
    "bitsandbytes": case(BNB.LAMB, of_bitsandbytes, "bitsandbytes", **ADAM),
    "bitsandbytes, bound": case(
        BNB.LAMB32bit, of_bitsandbytes, "bitsandbytes", max_unorm=0.5, **ADAM
    ),
    "bitsandbytes, no bound": case(
        BNB.LAMB, of_bitsandbytes, "bitsandbytes", max_unorm=0.0, **ADAM
    ),
    "bitsandbytes, 8 bits": case(BNB.LAMB8bit, of_bitsandbytes, "bitsandbytes", shapes=BIG, **ADAM),
}
LARS = {"momentum": 0.9, "family": "LARS", "eps": 0.0, "lr": 0.5}
CASES |= {
    "LARS, torch-optimizer": case(TO.LARS, lars, "torch-optimizer", **LARS),
    "LARS, torch-optimizer, plain": case(
        TO.LARS, lars, "torch-optimizer", **LARS | {"momentum": 0}
    ),
    "LARS, pytorch_optimizer": case(KO.LARS, lars, how={"flat": True}, **LARS),
    "LARS, pytorch_optimizer, dampening": case(
        KO.LARS, lars, how={"flat": True}, dampening=0.4, foreach=False, **LARS
    ),
    "LARS, pytorch_optimizer, maximize": case(
        KO.LARS,
        lars,
        how={"flat": True},
        maximize=True,
        used=lambda grads: [-g for g in grads],
        **LARS,
    ),
    "LARS, timm": case(stand_ins.Lars, lars, "timm", **LARS),
    "LARS, timm, old": case(stand_ins.Lars, lars, "timm", patch={"in_place": True}, **LARS),
    "LARS, timm, clip": case(
        stand_ins.Lars, lars, "timm", trust_clip=True, trust_coeff=0.3, always_adapt=True, **LARS
    ),
    "LARS, timm, nesterov": case(stand_ins.Lars, lars, "timm", nesterov=True, **LARS),
    "LARS, bitsandbytes": case(BNB.LARS, lars_of_bitsandbytes, **LARS),
    "LARS, bitsandbytes, 8 bits": case(BNB.LARS8bit, lars_of_bitsandbytes, shapes=BIG, **LARS),
}


STATE, RULE, BOUND = "its state", "its rule, from the recorded norms", "its `unorm_vec` and ‖w‖"
EIGHT_BITS = "1: 8-bit states apply none"
PACKAGES = {  # by the beginning of a case's name
    "pytorch-lamb": ("pytorch-lamb `Lamb`", STATE),
    "torch-optimizer": ("torch-optimizer `Lamb`", STATE),
    "pytorch_optimizer": ("pytorch_optimizer `Lamb`", STATE),
    "timm": ("timm `Lamb`", RULE),
    "apex": ("apex `FusedLAMB`", RULE),
    "DeepSpeed": ("DeepSpeed `FusedLamb`", "its `lamb_coeffs`"),
    "bitsandbytes": ("bitsandbytes `LAMB`", BOUND),
    "bitsandbytes, 8 bits": ("bitsandbytes `LAMB8bit`", EIGHT_BITS),
    "LARS, torch-optimizer": ("torch-optimizer `LARS`", RULE),
    "LARS, pytorch_optimizer": ("pytorch_optimizer `LARS`", RULE),
    "LARS, timm": ("timm `Lars`", RULE),
    "LARS, bitsandbytes": ("bitsandbytes `LARS`", BOUND),
    "LARS, bitsandbytes, 8 bits": ("bitsandbytes `LARS8bit`", EIGHT_BITS),
}


def layerwise_rows():
    """Yield the rows of the documentation's table of LAMB and LARS, ours and other packages'."""
    for kind in ("Lamb", "Lars"):
        own = [name for name in simulation.CASES if name.partition(",")[0] == kind]
        options = [name.partition(", ")[2] or "article" for name in own]
        ours = f"`trustlens.optim.{kind}`"
        yield supported.LayerwiseRow(ours, ", ".join(options), supported.FORMULA, STATE, "itself")
    begins = {name: max(filter(name.startswith, PACKAGES), key=len) for name in CASES}
    for start, (title, ratio) in PACKAGES.items():
        of = {name: case for name, case in CASES.items() if begins[name] == start}
        options = dict.fromkeys(
            f"`{option}`" for each in of.values() for option in each.options if option != "betas"
        )
        direction = supported.MEASURED if ratio == EIGHT_BITS else supported.FORMULA
        copied = any(each.kind in vars(stand_ins).values() for each in of.values())
        tested = "a copy of its arithmetic" if copied else "the package"
        yield supported.LayerwiseRow(title, ", ".join(options), direction, ratio, tested)


def parameters_of(shapes):
    """Return large, zero and small layers; the gradient of the last one will be 0."""
    torch.manual_seed(1)
    sizes = (20.0, 0.0, 1e-3, 1.0, 1.0)
    return [torch.nn.Parameter(torch.randn(of) * by) for of, by in zip(shapes, sizes, strict=False)]


def made(case, parameters):
    """Return the case's optimizer, with two groups."""
    options = {"lr": case.lr, "weight_decay": 0.1, **case.options}
    if case.family == "LAMB":
        options["eps"] = case.eps
    groups = [{"params": parameters[:3]}, {"params": parameters[3:], "weight_decay": 0.0}]
    return case.kind(groups, **options)
