"""Compare ratios from norms with those that the optimizers applied, and with fixed numbers."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tests.support.lamb_formulas as formulas
from trustlens.errors import UsageError
from trustlens.optim import LAMB_VARIANTS, LARS_VARIANTS, Lamb, Lars
from trustlens.trust_ratio import (
    LAMB_DEFAULTS,
    LARS_DEFAULTS,
    RatioRule,
    article_trust_ratio,
    check_option,
    lamb_ratio,
    lars_ratio,
    pytorch_optimizer_lars_ratio,
)

LAMB_CASES = {
    **LAMB_VARIANTS,
    "no clip": {"clip_ratio": None},
    "narrow clip": {"clip_ratio": (0.5, 2.0)},
    "bounded weights": {"clip_weight_norm": 0.1},
    "coefficient": {"trust_coefficient": 0.3},
    "eps": {"ratio_eps": 0.5},
    "decay first": {"decay": "first"},
    "decay beside": {"decay": "beside"},
    "1 without decay": {"always_adapt": False},
    "0 at zero weights": {"unit_at_zero": False},
    "0 at zero weights, with a lower bound": {"unit_at_zero": False, "clip_ratio": (0.2, 1.0)},
    "timm, decoupled_decay": {**LAMB_VARIANTS["timm"], "decay": "first"},
}
LARS_CASES = {
    **LARS_VARIANTS,
    "eps": {"eps": 0.5},
    "combined, 1 without decay": {"norm": "combined", "always_adapt": False},
}


def columns(**values):
    return {name: np.array(column, np.float64) for name, column in values.items()}


def defaults_of(kind, names):
    parameters = inspect.signature(kind).parameters
    return {name: parameters[name].default for name in names}


def test_the_defaults_are_those_of_the_optimizers():
    keyword_only = {
        name
        for name, parameter in inspect.signature(Lamb).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    assert set(LAMB_DEFAULTS) == keyword_only - {"fused"}  # `fused` does not affect the ratio
    assert defaults_of(Lamb, LAMB_DEFAULTS) == LAMB_DEFAULTS
    of_lars = {name: value for name, value in LARS_DEFAULTS.items() if name != "trust_clip"}
    assert defaults_of(Lars, of_lars) == of_lars
    assert all(set(options) <= set(LAMB_DEFAULTS) for options in LAMB_VARIANTS.values())
    assert all(set(options) <= set(LARS_DEFAULTS) for options in LARS_VARIANTS.values())


def stepped(optimizer, params, step_grads):
    """Do a step; return the weights before it and the applied ratios, by name."""
    before = {name: p.detach().numpy().copy() for name, p in params.items()}
    for name, p in params.items():
        p.grad = torch.tensor(step_grads[name])
    optimizer.step()
    return before, {name: optimizer.state[p]["trust_ratio"].item() for name, p in params.items()}


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("case", LAMB_CASES)
def test_lamb_ratio_agrees_with_the_ratio_that_lamb_applied(case, decay):
    options = LAMB_CASES[case]
    weights, grads = formulas.problem()
    params = {n: torch.nn.Parameter(torch.tensor(w)) for n, w in weights.items()}
    optimizer = Lamb(
        params.values(),
        formulas.LR,
        (formulas.BETA1, formulas.BETA2),
        eps=formulas.EPS,
        weight_decay=decay,
        **options,
    )
    seen = set()
    for step_grads in grads:
        before, applied = stepped(optimizer, params, step_grads)
        rows = []
        for name, w in before.items():
            state = optimizer.state[params[name]]
            m, v, t = (state[key].numpy() for key in ("exp_avg", "exp_avg_sq", "step"))
            adam = formulas.Adam(m, v, int(t), formulas.LR, decay)
            d = adam.debiased if options.get("debias", True) is True else adam.plain
            rows.append(
                (
                    formulas.norm(w),
                    formulas.norm(d),
                    formulas.norm(d + decay * w),
                    formulas.LR,
                    decay,
                )
            )
        names = ("weight_norm", "undecayed_norm", "direction_norm", "learning_rate", "weight_decay")
        ratio = lamb_ratio(
            options, **columns(**dict(zip(names, zip(*rows, strict=True), strict=True)))
        )
        np.testing.assert_allclose(
            ratio, list(applied.values()), rtol=2e-7, err_msg=str(step_grads)
        )
        seen |= set(applied.values())
    assert len(seen) > 1 or (decay == 0 and not options.get("always_adapt", True))


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("case", LARS_CASES)
def test_lars_ratio_agrees_with_the_ratio_that_lars_applied(case, decay):
    options = LARS_CASES[case]
    weights, grads = formulas.problem()
    params = {n: torch.nn.Parameter(torch.tensor(w)) for n, w in weights.items()}
    optimizer = Lars(params.values(), formulas.LR, weight_decay=decay, **options)
    for step_grads in grads:
        before, applied = stepped(optimizer, params, step_grads)
        ratio = lars_ratio(
            options,
            weight_norm=np.array([formulas.norm(w) for w in before.values()]),
            undecayed_norm=np.array([formulas.norm(step_grads[n]) for n in before]),
            direction_norm=np.array(
                [formulas.norm(step_grads[n] + decay * w) for n, w in before.items()]
            ),
            **columns(
                learning_rate=[formulas.LR] * len(before), weight_decay=[decay] * len(before)
            ),
        )
        np.testing.assert_allclose(ratio, list(applied.values()), rtol=2e-7)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # c·r₁/(‖g‖ + λr₁) = 0.5·4/(1 + 1) = 1, divided by η = 2; 1 where a norm or λ is 0.
        ({"trust_clip": True}, [0.5, 0.5, 0.5, 1.0]),
        ({"trust_clip": True, "always_adapt": False}, [0.5, 0.5, 0.5, 1.0]),
        ({"always_adapt": False}, [1.0, 1.0, 1.0, 1.0]),
        ({}, [1.0, 1.0, 1.0, 4.0]),
    ],
)
def test_trust_clip_gives_the_ratio_of_larc(options, expected):
    ratio = lars_ratio(
        {"trust_coefficient": 0.5, **options},
        **columns(
            weight_norm=[4, 0, 4, 4],
            undecayed_norm=[1, 1, 0, 0.5],
            direction_norm=[9, 9, 9, 9],
            learning_rate=[2, 2, 2, 0.5],
            weight_decay=[0.25, 0.25, 0.25, 0],
        ),
    )
    np.testing.assert_array_equal(ratio, expected)


norms = st.sampled_from([0.0, 1e-30, 0.3, 1.0, 70.0, 1e30, np.inf, np.nan])


def article(r1, r2):
    """Return the article's ratio, computed with Python floats."""
    if math.isnan(r1) or math.isnan(r2) or (math.isinf(r1) and math.isinf(r2)):
        return math.nan
    return 1.0 if r1 == 0 or r2 == 0 else min(r1 / r2, 10.0)


@given(weight=norms, direction=norms)
def test_the_default_options_give_the_articles_ratio(weight, direction):
    r1, r2 = np.array([weight]), np.array([direction])
    rest = columns(undecayed_norm=[np.nan], learning_rate=[np.nan], weight_decay=[np.nan])
    expected = [article(weight, direction)]
    np.testing.assert_array_equal(article_trust_ratio(r1, r2), expected)
    np.testing.assert_array_equal(
        lamb_ratio({}, weight_norm=r1, direction_norm=r2, **rest), expected
    )


@pytest.mark.parametrize(
    ("weight_norm", "direction_norm", "expected"),
    [
        (3.0, 2.0, 1.5),
        (30.0, 2.0, 10.0),
        (0.0, 2.0, 1.0),
        (2.0, 0.0, 1.0),
        (0.0, 0.0, 1.0),
        (0.0, np.nan, np.nan),
        (np.nan, 0.0, np.nan),
        (np.nan, 1.0, np.nan),
        (np.inf, np.inf, np.nan),
        (np.inf, 1.0, 10.0),
        (1.0, np.inf, 0.0),
    ],
)
def test_the_articles_ratio_of_zero_infinite_and_nan_norms(weight_norm, direction_norm, expected):
    ratio = article_trust_ratio(np.array([weight_norm]), np.array([direction_norm]))
    np.testing.assert_array_equal(ratio, [expected])


def test_the_ratio_of_pytorch_optimizers_lars_is_not_1_for_a_zero_gradient():
    rule = RatioRule.of(pytorch_optimizer_lars_ratio, {"trust_coefficient": 0.5})
    ratio = rule(
        **columns(
            weight_norm=[4, 0, 4, 4],
            undecayed_norm=[1, 1, 0, 0],
            direction_norm=[9, 9, 9, 9],
            learning_rate=[2, 2, 2, 2],
            weight_decay=[0.25, 0.25, 0.25, 0],
        )
    )
    np.testing.assert_array_equal(ratio, [1.0, 1.0, 2.0, 1.0])


def test_equal_rules_have_the_same_hash():
    options = {**LAMB_VARIANTS["timm"], "clip_ratio": (0.0, 1.0)}
    first, again = RatioRule.of(lamb_ratio, options), RatioRule.of(lamb_ratio, dict(options))
    other = RatioRule.of(lamb_ratio, LAMB_VARIANTS["timm"])
    assert len({first, again, other, RatioRule.of(lars_ratio, options)}) == 3


@pytest.mark.parametrize("case", LAMB_CASES)
@pytest.mark.parametrize("missing", ["weight_norm", "undecayed_norm", "direction_norm"])
def test_the_ratio_is_nan_if_a_norm_that_it_needs_is_nan(case, missing):
    given = columns(
        weight_norm=[1, 0],
        undecayed_norm=[1, 0],
        direction_norm=[1, 0],
        learning_rate=[0.1, 0.1],
        weight_decay=[0.1, 0.1],
    )
    given[missing] = np.full(2, np.nan)
    unused = "direction_norm" if "decay" in LAMB_CASES[case] else "undecayed_norm"
    assert np.isnan(lamb_ratio(LAMB_CASES[case], **given)).all() == (missing != unused)


def test_other_options_are_ignored():
    given = columns(
        weight_norm=[3.0],
        undecayed_norm=[2.0],
        direction_norm=[2.0],
        learning_rate=[0.1],
        weight_decay=[0.0],
    )
    assert lamb_ratio({"lr": 1, "betas": (0, 0), "debias": "rate"}, **given) == 1.5


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("debias", "yes", "x got debias='yes': choose one of True, False, 'rate', 'first'"),
        ("always_adapt", 1, "x got always_adapt=1: choose one of True, False"),
        ("weight_decay", -1, "x got weight_decay=-1: give a number of at least 0"),
        ("weight_decay", "0", "x got weight_decay='0': give a number of at least 0"),
        ("ratio_eps", np.inf, "x got ratio_eps=inf: give a number of at least 0"),
        ("max_grad_norm", 0, "x got max_grad_norm=0: give a number above 0, or None"),
        ("clip_ratio", (2, 1), "a lower and an upper bound, such as (0, 10), or None"),
        ("clip_ratio", ("0", "1"), "a lower and an upper bound, such as (0, 10), or None"),
    ],
)
def test_an_option_out_of_range_is_refused(name, value, message):
    with pytest.raises(UsageError) as caught:
        check_option("x", name, value)
    assert str(caught.value).endswith(message)


@pytest.mark.parametrize("options", LAMB_CASES.values())
def test_the_options_of_all_variants_are_in_range(options):
    for name, value in options.items():
        check_option("x", name, value)
    check_option("x", "weight_decay", np.float32(0.1))
