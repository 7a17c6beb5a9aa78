"""Stand-ins for LAMB and LARS of packages that cannot be installed without a GPU, or at all.

Each has the arithmetic of its package in the same order, the same options, state and treatment of
``.grad``, and the package's module and class name. Written in November 2026 from apex's
``fused_lamb.py`` and ``multi_tensor_lamb.cu``, DeepSpeed 0.19.8 and the version after it, timm
1.0.31 and older versions that overwrite ``.grad``, and cybertronai's pytorch-lamb 1.0.
"""

from __future__ import annotations

import functools
import inspect
import math
from typing import ClassVar

import torch


def of_package(module, name):
    """Return a decorator that gives a class and its step the module and name of another package."""

    def rename(kind):
        step = inspect.unwrap(kind.step)
        kind.__module__ = step.__module__ = module
        kind.__qualname__, step.__qualname__ = name, f"{name}.step"
        return kind

    return rename


def with_closure(step):
    """Add a closure to a step, called first as in all these packages."""

    @functools.wraps(step)
    def called(self, closure=None):
        if closure is not None:
            with torch.enable_grad():
                closure()
        with torch.no_grad():
            return step(self)

    return called


class StandIn(torch.optim.Optimizer):
    """Base class: options with defaults, and averages that start at 0."""

    def __init__(self, params, **options):
        super().__init__(params, {**self.default_options, **options})

    def averages(self, p):
        state = self.state[p]
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        return state["exp_avg"], state["exp_avg_sq"]

    def parameters_with_grad(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    yield group, p

    def total_norm(self):
        return torch.stack([p.grad.norm() for _, p in self.parameters_with_grad()]).norm()


def over(above, below):
    return above / below if above != 0 and below != 0 else torch.ones(())


LAMB = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01}


@of_package("apex.optimizers.fused_lamb", "FusedLAMB")
class FusedLAMB(StandIn):
    default_options: ClassVar = {
        **LAMB,
        "bias_correction": True,
        "grad_averaging": True,
        "max_grad_norm": 1.0,
    }

    def __init__(self, params, *, adam_w_mode=True, use_nvlamb=False, **options):
        super().__init__(params, **options)
        self.adam_w_mode = 1 if adam_w_mode else 0
        self.use_nvlamb = use_nvlamb

    @with_closure
    def step(self):
        clip = max(self.total_norm() / self.defaults["max_grad_norm"], torch.ones(()))
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
        for group, p in self.parameters_with_grad():
            (beta1, beta2), t, decay = group["betas"], group["step"], group["weight_decay"]
            m, v = self.averages(p)
            g = p.grad / clip
            if not self.adam_w_mode:
                g = g + decay * p
            m.mul_(beta1).add_(g, alpha=1 - beta1 if group["grad_averaging"] else 1.0)
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            c1, c2 = (1 - beta1**t, 1 - beta2**t) if group["bias_correction"] else (1.0, 1.0)
            update = p.grad  # the step overwrites the gradient
            update.copy_(m / c1 / ((v / c2).sqrt() + group["eps"]))
            if self.adam_w_mode:
                update.add_(decay * p)
            adapts = self.use_nvlamb or decay != 0
            p.sub_(group["lr"] * (over(p.norm(), update.norm()) if adapts else 1.0) * update)


@of_package("deepspeed.ops.lamb.fused_lamb", "FusedLamb")
class FusedLamb(StandIn):
    default_options: ClassVar = {
        **LAMB,
        "bias_correction": True,
        "max_grad_norm": 0.0,
        "max_coeff": 10.0,
        "min_coeff": 0.01,
    }
    version = "0.19.8"

    def __init__(self, params, *, eps_inside_sqrt=False, **options):
        super().__init__(params, **options)
        self.eps_mode = 0 if eps_inside_sqrt else 1
        self.lamb_coeffs = []

    @with_closure
    def step(self):
        del self.lamb_coeffs[:]
        for group, p in self.parameters_with_grad():
            (beta1, beta2), eps = group["betas"], group["eps"]
            m, v = self.averages(p)
            t = self.state[p]["step"] = self.state[p].get("step", 0) + 1
            m.mul_(beta1).add_(p.grad, alpha=1 - beta1)
            v.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            c1, c2 = (1 - beta1**t, 1 - beta2**t) if group["bias_correction"] else (1.0, 1.0)
            rate = group["lr"]
            if self.version == "0.19.8":
                rate, c1, c2 = rate * math.sqrt(c2) / c1, 1.0, 1.0
            below = (v / c2 + eps).sqrt() if self.eps_mode == 0 else (v / c2).sqrt() + eps
            update = m / c1 / below + group["weight_decay"] * p
            r = torch.ones(())
            if p.norm() != 0 and update.norm() != 0:
                r = (p.norm() / update.norm()).clamp(group["min_coeff"], group["max_coeff"])
            p.sub_(rate * r * update)
            self.lamb_coeffs.append(r.reshape(1))


def timm_ratio(w, u):
    return torch.where(w > 0, torch.where(u > 0, w / u, 1.0), 1.0)


@of_package("timm.optim.lamb", "Lamb")
class TimmLamb(StandIn):
    default_options: ClassVar = {
        **LAMB,
        "bias_correction": True,
        "grad_averaging": True,
        "max_grad_norm": 1.0,
        "trust_clip": False,
        "always_adapt": False,
        "caution": False,
        "decoupled_decay": False,
        "corrected_weight_decay": False,
    }
    clips_in_place = False  # True in older versions

    def __init__(self, params, **options):
        super().__init__(params, **options)
        for group in self.param_groups:
            group["max_lr_snapshot"] = self.defaults["lr"]

    @with_closure
    def step(self):
        bound = self.defaults["max_grad_norm"]
        clip = None if bound is None else (self.total_norm() / bound).clamp(min=1.0)
        for group in self.param_groups:
            group["step"] = group.get("step", torch.zeros(())) + 1
        for group, p in self.parameters_with_grad():
            g = p.grad
            if clip is not None:
                g = g.div_(clip) if self.clips_in_place else g / clip
            self.step_one(group, p, g)

    def step_one(self, group, p, g):
        (beta1, beta2), t = group["betas"], group["step"].item()
        lr, decay = group["lr"], group["weight_decay"]
        m, v = self.averages(p)
        m.mul_(beta1).add_(g, alpha=1 - beta1 if group["grad_averaging"] else 1.0)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        c1, c2 = (1 - beta1**t, 1 - beta2**t) if group["bias_correction"] else (1.0, 1.0)
        update = (m / c1) / ((v.sqrt() / c2**0.5) + group["eps"])
        if group["caution"]:
            mask = (update * g > 0).to(g.dtype)
            update.mul_(mask.div_(mask.mean().clamp_(min=1e-3)))
        if decay and group["decoupled_decay"]:
            corrected = lr**2 / group["max_lr_snapshot"]
            p.add_(p, alpha=-decay * (corrected if group["corrected_weight_decay"] else lr))
        elif decay:
            update.add_(p, alpha=decay)
        if decay or group["always_adapt"]:
            ratio = timm_ratio(p.norm(2.0), update.norm(2.0))
            update.mul_(ratio.clamp(max=1.0) if group["trust_clip"] else ratio)
        p.add_(update, alpha=-lr)


@of_package("timm.optim.lars", "Lars")
class Lars(StandIn):
    default_options: ClassVar = {
        "lr": 1.0,
        "momentum": 0.0,
        "dampening": 0.0,
        "weight_decay": 0.0,
        "nesterov": False,
        "trust_coeff": 0.001,
        "eps": 1e-8,
        "trust_clip": False,
        "always_adapt": False,
    }
    in_place = False  # True in older versions

    @with_closure
    def step(self):
        for group, p in self.parameters_with_grad():
            g, decay, momentum = p.grad, group["weight_decay"], group["momentum"]
            if decay or group["always_adapt"]:
                w_norm, g_norm = p.norm(2.0), g.norm(2.0)
                r = group["trust_coeff"] * w_norm / (g_norm + w_norm * decay + group["eps"])
                r = torch.where(w_norm > 0, torch.where(g_norm > 0, r, 1.0), 1.0)
                if group["trust_clip"]:
                    r = (r / group["lr"]).clamp(max=1.0)
                g = g if self.in_place else g.clone()
                g.add_(p, alpha=decay).mul_(r)
            if momentum and "momentum_buffer" not in self.state[p]:
                buffer = self.state[p]["momentum_buffer"] = g.clone()
                g = g.add(buffer, alpha=momentum) if group["nesterov"] else buffer
            elif momentum:
                buffer = self.state[p]["momentum_buffer"]
                buffer.mul_(momentum).add_(g, alpha=1 - group["dampening"])
                g = g.add(buffer, alpha=momentum) if group["nesterov"] else buffer
            p.add_(g, alpha=-group["lr"])


class Copied(StandIn):
    """pytorch-lamb's code, as users copy it into their project under another name."""

    default_options: ClassVar = {**LAMB, "weight_decay": 0.0}

    def __init__(self, params, *, adam=False, **options):
        super().__init__(params, **options)
        self.adam = adam

    @with_closure
    def step(self):
        self.step_all()

    def step_all(self):
        for group, p in self.parameters_with_grad():
            beta1, beta2 = group["betas"]
            m, v = self.averages(p)
            state = self.state[p]
            state["step"] = state.get("step", 0) + 1
            m.mul_(beta1).add_(p.grad, alpha=1 - beta1)
            v.mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
            update = m / (v.sqrt() + group["eps"]) + group["weight_decay"] * p
            state["weight_norm"] = p.pow(2).sum().sqrt().clamp(0, 10)
            state["adam_norm"] = update.pow(2).sum().sqrt()
            state["trust_ratio"] = r = state["weight_norm"] / state["adam_norm"]  # 0 if w is 0
            p.add_(-group["lr"] * (1.0 if self.adam else r) * update)


@of_package("pytorch_lamb.lamb", "Lamb")
class PytorchLamb(Copied):
    @with_closure
    def step(self):
        self.step_all()


class LARC:
    """apex's LARC, a wrapper that is not an Optimizer."""

    def __init__(self, optimizer, trust_coefficient=0.02, eps=1e-8):
        self.optim, self.trust_coefficient, self.eps = optimizer, trust_coefficient, eps

    @property
    def param_groups(self):
        return self.optim.param_groups

    @torch.no_grad()
    def step(self):
        decays = [group["weight_decay"] for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = 0
            for p in group["params"]:
                below = p.grad.norm() + p.norm() * decay + self.eps
                local = self.trust_coefficient * p.norm() / below
                p.grad.add_(decay * p).mul_(min(local / group["lr"], 1))
        self.optim.step()
        for group, decay in zip(self.param_groups, decays, strict=True):
            group["weight_decay"] = decay
