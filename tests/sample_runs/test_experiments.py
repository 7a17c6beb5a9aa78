"""The experiments' script, on a few digits and steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trustlens

SAMPLE_RUNS = Path(__file__).parents[2] / "sample_runs"
SCRIPT = SAMPLE_RUNS / "experiments.py"
LAYERS = [
    f"{part}.{kind}" for part in ("conv1", "conv2", "fc1", "fc2") for kind in ("weight", "bias")
]


@pytest.fixture
def experiments(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SAMPLE_RUNS)
    import experiments

    monkeypatch.setattr(experiments, "BATCH", 32)
    monkeypatch.setattr(experiments, "TEST_EVERY", 2)
    return experiments


@pytest.fixture
def few(experiments: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Eighty digits: two batches of 32 and a short one of 16 an epoch."""
    digits = experiments.digits
    whole = digits.embedded()
    part = digits.Digits(
        whole.train_images[:80], whole.train_labels[:80],
        whole.test_images[:30], whole.test_labels[:30],
    )  # fmt: skip
    monkeypatch.setattr(digits, "embedded", lambda: part)
    return part


def test_the_network_is_the_articles(experiments: Any) -> None:
    model = experiments.Network()
    assert [tuple(p.shape) for p in model.parameters()] == [
        (20, 1, 5, 5), (20,), (50, 20, 5, 5), (50,), (500, 800), (500,), (10, 500), (10,),
    ]  # fmt: skip
    output = model(torch.zeros(3, 1, 28, 28))
    np.testing.assert_allclose(output.exp().sum(1).detach(), np.ones(3), rtol=1e-5)


def test_images_are_normalised(experiments: Any, few: Any) -> None:
    data = experiments.prepare(few)
    assert data.train_images.shape == (80, 1, 28, 28)
    expected = (few.train_images.astype(float) / 255 - 0.1307) / 0.3081
    np.testing.assert_allclose(data.train_images[:, 0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("together", [False, True])
def test_a_run_is_recorded(experiments: Any, few: Any, tmp_path: Path, together: bool) -> None:
    names = ["--pair"] if together else list(experiments.PAIR)
    assert experiments.main([*names, "--out", str(tmp_path), "--epochs", "1"]) == 0
    for name in experiments.PAIR:
        run = trustlens.open_run(tmp_path / name)
        assert run.status == "closed"
        assert run.layer_names == LAYERS
        assert run.matrix("nonfinite").index.tolist() == [1, 2, 3]
        logged = {key: part["step"].tolist() for key, part in run.metrics().groupby("name")}
        assert logged == {"loss": [1, 2, 3], "test_loss": [2, 3], "test_accuracy": [2, 3]}
        assert run.info.config == {
            "data": "80 digits to train on, 30 to test",
            "batch": 32, "epochs": 1, "seed": 1, "l2": 0.0,
        }  # fmt: skip
        assert run.histograms()["step"].unique().tolist() == [1]
    adam, lamb = (trustlens.open_run(tmp_path / name) for name in experiments.PAIR)
    assert (adam.family, lamb.family) == ("Adam", "LAMB")
    # the same initial weights and the same first batch, in turns or not
    for name in ("weight_norm", "grad_norm"):
        first = [run.matrix(name).loc[1].to_numpy() for run in (adam, lamb)]
        np.testing.assert_array_equal(*first)
    assert adam.metrics()["value"][0] == lamb.metrics()["value"][0]


def test_training_in_turns_gives_the_same_results(
    experiments: Any, few: Any, tmp_path: Path
) -> None:
    experiments.main([*experiments.PAIR, "--out", str(tmp_path / "a"), "--epochs", "2"])
    experiments.main(["--pair", "--out", str(tmp_path / "b"), "--epochs", "2"])
    for name in experiments.PAIR:
        one, other = (trustlens.open_run(tmp_path / part / name) for part in "ab")
        np.testing.assert_array_equal(
            one.matrix("update_norm").to_numpy(), other.matrix("update_norm").to_numpy()
        )


def test_training_continues_if_the_loss_is_not_finite(
    experiments: Any, few: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = experiments.Experiment("wild", torch.optim.SGD, {"lr": 1e30}, "")
    monkeypatch.setattr(experiments, "BY_NAME", {"wild": wild})
    assert experiments.main(["wild", "--out", str(tmp_path), "--epochs", "3"]) == 0
    run = trustlens.open_run(tmp_path / "wild")
    assert run.last_step == 9
    metrics = run.metrics()
    assert not np.isfinite(metrics.loc[metrics["name"] == "loss", "value"].iloc[-1])
    assert set(run.diagnose()["kind"]) == {"not finite"}


def test_decay_is_added_to_the_gradient(experiments: Any) -> None:
    model = experiments.Network()
    model(torch.rand(2, 1, 28, 28)).sum().backward()
    before = [(p.detach().clone(), p.grad.clone()) for p in model.parameters()]
    experiments.add_decay(model, 0.25)
    for p, (weight, grad) in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.grad, grad + 0.25 * weight)


@pytest.mark.parametrize(
    ("names", "pair", "rounds"),
    [
        ([], True, [["adam-lr0.01", "lamb-lr0.01"]]),
        (["lamb-lr0.1"], True, [["adam-lr0.01", "lamb-lr0.01"], ["lamb-lr0.1"]]),
        (["lamb-lr0.1", "adam-lr0.1"], False, [["lamb-lr0.1"], ["adam-lr0.1"]]),
        (["adam-lr0.1", "adam-lr0.1"], False, [["adam-lr0.1"]]),
        (["lamb-lr0.01"], True, [["adam-lr0.01", "lamb-lr0.01"]]),
    ],
)
def test_choice(experiments: Any, names: list[str], pair: bool, rounds: list[list[str]]) -> None:
    assert [[e.name for e in r] for r in experiments.choose(names, pair=pair)] == rounds
    assert len(experiments.choose([], pair=False)) == len(experiments.EXPERIMENTS)


def test_an_existing_folder_is_refused(
    experiments: Any, few: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lamb-lr0.1").mkdir()
    assert experiments.main(["adam-lr0.1", "lamb-lr0.1", "--out", str(tmp_path)]) == 2
    message = capsys.readouterr().err.strip()
    assert "lamb-lr0.1' already exists" in message
    assert "\n" not in message
    assert not (tmp_path / "adam-lr0.1").exists()  # no training was started


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["adam"], "'adam' is not an experiment; choose from: adam-lr0.01,"),
        (["--epochs", "0"], "'0' is not a number of epochs"),
        (["--data", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_wrong_arguments_are_refused(
    experiments: Any, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    try:
        status = experiments.main(arguments)
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_the_script_lists_experiments_and_has_help() -> None:
    command = [sys.executable, str(SCRIPT)]
    listed = subprocess.run([*command, "--list"], capture_output=True, text=True, check=True)
    assert len(listed.stdout.splitlines()) == 9
    helped = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "python sample_runs/experiments.py --pair" in helped.stdout


def test_recorded_runs_are_small_closed_and_have_their_config(experiments: Any) -> None:
    recorded = SAMPLE_RUNS / "recorded"
    assert {path.name for path in recorded.iterdir()} == set(experiments.BY_NAME)
    for name, experiment in experiments.BY_NAME.items():
        folder = recorded / name
        assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 400_000
        run = trustlens.open_run(folder)
        assert run.status == "closed"
        assert run.last_step == 590
        assert run.info.config["data"] == "60,000 digits to train on, 10,000 to test"
        (group,) = json.loads((folder / "run.json").read_text())["optimizers"][0]["groups"]
        assert group["lr"] == experiment.options["lr"]
