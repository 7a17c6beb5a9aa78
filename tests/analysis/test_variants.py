"""`Run.trust_ratio`: ratios from stored norms, compared with ratios from the optimizer's state."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import tests.support.lamb_formulas as of
import trustlens
from tests.support.lamb_training import (
    DECAY,
    DECAYED,
    STEPS,
    Adam,
    assert_ratios,
    make_optimizer,
    train,
)
from tests.support.runs import make_run
from trustlens.errors import UsageError
from trustlens.optim import LAMB_VARIANTS as V

CASES = {
    "article": (of.article, {}),
    "pytorch-lamb": (of.pytorch_lamb, {}),
    "torch-optimizer": (of.pytorch_lamb, {}),
    "pytorch_optimizer": (of.pytorch_optimizer, {}),
    "apex": (of.apex, {}),
    "deepspeed": (of.deepspeed, {}),
    "timm": (of.apex, {}),
    "bitsandbytes": (of.bitsandbytes, {}),
    "optax": (of.optax, {}),
    "tensorflow-addons": (of.optax, {}),
    "torch-optimizer, debias": (of.torch_optimizer_debiased, {"debias": "rate"}),
    "apex, use_nvlamb": (of.apex_nvlamb, {"always_adapt": True}),
    "timm, trust_clip": (of.timm_trust_clip, {"clip_ratio": (0.0, 1.0)}),
    "timm, decoupled_decay": (of.timm_decoupled, {"decay": "first"}),
    "bitsandbytes, max_unorm": (of.bitsandbytes_half, {"trust_coefficient": 0.5}),
}
OWN = ("AdamW", *V)
NOT_DEBIASED = ("pytorch-lamb", "torch-optimizer", "pytorch_optimizer")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function that returns the run of an optimizer, and the states observed in its training."""
    folder, made = tmp_path_factory.mktemp("trained"), {}

    def get(own):
        if own not in made:
            seen = train(folder / own, lambda groups: make_optimizer(own, groups))
            made[own] = trustlens.open_run(folder / own), seen
        return made[own]

    return get


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("own", OWN)
def test_each_variants_ratio_agrees_with_its_formula(trained, own, case):
    run, seen = trained(own)
    formula, options = CASES[case]
    variant = case.partition(",")[0]
    if own in NOT_DEBIASED and {**V[variant], **options}.get("debias", True) is True:
        with pytest.raises(
            UsageError, match=r"does not debias .* their step counts are not stored"
        ):
            run.trust_ratio(variant, **options)
        return
    frame = run.trust_ratio(variant, **options)
    assert_ratios(frame, seen, formula)
    assert frame.index.equals(run.matrix("weight_norm").index)
    assert frame.columns.equals(run.matrix("weight_norm").columns)
    assert (frame.dtypes == np.float64).all()


def test_the_training_includes_the_special_cases(trained):
    run, _ = trained("AdamW")
    article, optax = (run.trust_ratio(name, weight_decay=0) for name in ("article", "optax"))
    assert article["unused"].isna().all()  # it never stepped
    assert article.loc[1, "zero"] == 1  # r₁ = 0
    assert (article[["idle", "still"]] == 1).all(axis=None)  # r₂ = 0
    assert article.loc[1, "large"] == 10
    assert optax.loc[1, "large"] > 10
    assert optax.loc[1, "small"] < 0.01
    assert (run.trust_ratio("timm")["bias"] == 1).all()  # λ = 0
    # In the first step, m and v are smaller than m̂ and v̂ by 1 − β₁ and 1 − β₂, so ‖m/(√v+ε)‖ is
    # smaller by 0.1/√0.01.
    plain = run.trust_ratio("optax", weight_decay=0, debias=False)
    assert plain.loc[1, "bias"] == pytest.approx(optax.loc[1, "bias"] / (0.1 / 0.01**0.5))
    assert plain.loc[2, "bias"] < 0.9 * optax.loc[2, "bias"]


def test_every_variant_is_tested():
    assert set(CASES) >= set(V)


@pytest.mark.parametrize("own", V)
def test_a_lambs_own_variant_gives_the_ratio_that_it_applied(trained, own):
    run, _ = trained(own)
    recorded = run.matrix("trust_ratio")
    np.testing.assert_allclose(run.trust_ratio(own), recorded, rtol=5e-7)


def test_another_weight_decay(trained):
    run, seen = trained("AdamW")
    other = {at: (w, replace(adam, lam=0.7)) for at, (w, adam) in seen.items()}
    for variant in ("article", "pytorch_optimizer", "bitsandbytes", "timm", "deepspeed"):
        assert_ratios(run.trust_ratio(variant, weight_decay=0.7), other, CASES[variant][0])
    recorded = run.trust_ratio()
    same = run.trust_ratio(weight_decay=DECAY)
    assert same[list(DECAYED)].equals(recorded[list(DECAYED)])
    without = run.trust_ratio("timm", weight_decay=0)
    assert (without.drop(columns="unused") == 1).all(axis=None)


def test_selections_of_steps(trained):
    run, _ = trained("AdamW")
    for steps in (slice(2, 4), [1, 5], []):
        frame = run.trust_ratio("apex", steps=steps)
        assert frame.equals(run.trust_ratio("apex").loc[frame.index])
        assert frame.index.equals(run.matrix("weight_norm", steps).index)


@pytest.mark.parametrize(("own", "asked"), [("AdamW", "pytorch-lamb"), ("deepspeed", "optax")])
def test_the_error_of_epsilon_is_within_the_documented_bound(tmp_path, monkeypatch, own, asked):
    monkeypatch.setattr(Adam, "eps", 1e-3)
    options = {"eps": 1e-3}
    seen = train(tmp_path / own, lambda groups: make_optimizer(own, groups, **options), decay=0)
    frame = trustlens.open_run(tmp_path / own).trust_ratio(asked, clip_weight_norm=None)
    for step in range(1, STEPS + 1):
        w, adam = seen[step, "matrix"]
        true = of.norm(w) / of.norm(adam.plain if own == "AdamW" else adam.debiased)
        share = (adam.eps / np.sqrt(adam.v)).max()
        error = frame.loc[step, "matrix"] / true - 1
        assert 1e-3 < abs(error) < share
        assert (error < 0) == (own == "AdamW")


@pytest.mark.parametrize(
    ("variant", "options", "message"),
    [
        ("nvlamb", {}, r"variant='nvlamb'; choose one of: article, .*tensorflow-addons$"),
        ("apex", {"trust_clip": True}, r"trust_clip=True; choose from: debias, .*weight_decay$"),
        ("apex", {"clip_ratio": 1}, r"clip_ratio=1: give a lower and an upper bound"),
        ("apex", {"weight_decay": -1}, r"weight_decay=-1: give a number of at least 0"),
        ("apex", {"steps": slice(0, 9, 2)}, "skips steps"),
    ],
)
def test_invalid_arguments_are_rejected(trained, variant, options, message):
    with pytest.raises(UsageError, match=message):
        trained("AdamW")[0].trust_ratio(variant, **options)


def test_a_direction_that_the_decay_cancels_is_nan(tmp_path):
    values = {
        "weight_norm": np.full(1, 2.0),
        "undecayed_norm": np.ones(1),
        "undecayed_dot_weight": np.full(1, -2.0),
        "direction_norm": np.full(1, 1e-5),
        "weight_decay": np.full(1, 0.49999),
    }
    run = trustlens.open_run(make_run(tmp_path / "run", values=values, steps=3, layers=2))
    assert run.trust_ratio("optax", weight_decay=0.25).to_numpy() == pytest.approx(4.0)
    assert run.trust_ratio("optax", weight_decay=0.5).isna().all(axis=None)
    assert run.trust_ratio("optax").to_numpy() == pytest.approx(2e5)  # as recorded


def test_columns_that_were_not_recorded_give_nan(tmp_path):
    run = trustlens.open_run(make_run(tmp_path / "run", values={"weight_norm": None}))
    assert run.trust_ratio().isna().all(axis=None)
    empty = trustlens.open_run(make_run(tmp_path / "empty", steps=0, layers=3))
    assert empty.trust_ratio("apex").shape == (0, 3)
