"""Options and states with which directions or recovered weights were once wrong."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import trustlens

LARGE = (160, 128)  # more elements than a layer that is always copied


def recorded(tmp_path, optimizer, parameter, change=None, *, seed=0):
    """Do five steps; return the recorded rows, and ‖w‖, ‖Δw‖ and ‖g‖ of each step."""
    torch.manual_seed(seed)
    seen = []
    with trustlens.record(optimizer, tmp_path / "run"):
        for step in range(5):
            if change is not None:
                change(step)
            grad = parameter.grad.clone()
            before = parameter.detach().double().clone()
            optimizer.step()
            moved = parameter.detach().double() - before
            seen.append([norm.norm().item() for norm in (before, moved, grad.double())])
    rows = trustlens.open_run(tmp_path / "run").layers()
    return rows, np.array(seen)


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("foreach", [None, False, True])
def test_the_gradient_of_nesterov_sgd_is_the_one_before_the_step(tmp_path, foreach, closure):
    # torch's foreach step adds the momentum to p.grad in place.
    parameter = torch.nn.Parameter(torch.randn(LARGE))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9, nesterov=True, foreach=foreach)
    grads, updates = [], []

    def backward():
        parameter.grad = torch.randn(LARGE)
        grads.append(parameter.grad.norm().item())

    with trustlens.record(optimizer, tmp_path / "run"):
        for _ in range(4):
            before = parameter.detach().double().clone()
            if closure:
                optimizer.step(backward)
            else:
                backward()
                optimizer.step()
            updates.append((parameter.detach().double() - before).norm().item())
    rows = trustlens.open_run(tmp_path / "run").layers()
    assert rows["grad_norm"].tolist() == pytest.approx(grads, rel=1e-5)
    assert rows["update_norm"].tolist() == pytest.approx(updates, rel=1e-5)
    assert rows["direction_norm"].tolist() == pytest.approx([u / 0.1 for u in updates], rel=1e-5)


def test_the_buffer_is_not_used_after_momentum_is_set_to_zero(tmp_path):
    parameter = torch.nn.Parameter(torch.randn(LARGE))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)

    def change(step):
        optimizer.param_groups[0]["momentum"] = 0.9 if step < 2 else 0.0
        parameter.grad = torch.randn(LARGE)

    rows, seen = recorded(tmp_path, optimizer, parameter, change)
    np.testing.assert_allclose(rows[["weight_norm", "update_norm"]], seen[:, :2], rtol=2e-5)
    np.testing.assert_allclose(rows["direction_norm"][2:], seen[2:, 2], rtol=2e-5)


def test_adafactor_steps_longer_than_the_weights(tmp_path):
    parameter = torch.nn.Parameter(torch.randn(LARGE))
    optimizer = torch.optim.Adafactor([parameter], lr=5.0, d=10.0, beta2_decay=-0.1)

    def change(step):
        parameter.grad = parameter.detach() * 10.0 ** (step - 6)

    rows, seen = recorded(tmp_path, optimizer, parameter, change)
    np.testing.assert_allclose(rows[["weight_norm", "update_norm"]], seen[:, :2], rtol=2e-5)


def test_adadelta_with_rho_zero(tmp_path):
    parameter = torch.nn.Parameter(torch.randn(LARGE))
    optimizer = torch.optim.Adadelta([parameter], lr=0.1, rho=0.0)
    initial = copy.deepcopy(parameter.detach())

    def change(_):
        parameter.grad = initial * (torch.rand(LARGE) < 0.1)

    rows, seen = recorded(tmp_path, optimizer, parameter, change)
    np.testing.assert_allclose(rows[["weight_norm", "update_norm"]], seen[:, :2], rtol=2e-5)
    assert rows["nonfinite"].tolist() == [0] * 5
