"""`record` as a user calls it: layer names, which steps are recorded, wrong arguments, failures."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import trustlens
from trustlens.element_bins import element_counts
from trustlens.errors import UsageError
from trustlens.recording.writing.writer_thread import WriterThread


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    after: Callable[[torch.Tensor], None] = lambda loss: None,
) -> None:
    make = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 6, generator=make)).square().mean()
        loss.backward()
        optimizer.step()
        after(loss)


def test_every_part_of_a_run_is_recorded(tmp_path: Path) -> None:
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with trustlens.record(
        optimizer, tmp_path / "run", model=model, config={"batch": 4, "path": Path("x")}
    ) as recorder:
        train(model, optimizer, 30, lambda loss: recorder.log(loss=loss, constant=1))
    run = trustlens.open_run(tmp_path / "run")
    assert run.layer_names == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert run.matrix("nonfinite").index.tolist() == list(range(1, 31))
    assert run.last_step == recorder.step == 30
    assert run.steps()["time"].is_monotonic_increasing
    assert not run.steps()["skipped"].any()
    metrics = run.metrics()
    assert metrics[metrics["name"] == "loss"]["step"].tolist() == list(range(1, 31))
    assert (metrics[metrics["name"] == "constant"]["value"] == 1).all()
    assert run.info.config == {"batch": 4, "path": "x"}
    assert run.info.optimizers[0].name == "torch.optim.adamw.AdamW"
    assert run.info.optimizers[0].groups[0]["lr"] == 0.01
    assert run.status == "closed"
    assert run.family == "AdamW"


def test_names_come_from_the_model_through_its_wrappers(tmp_path: Path) -> None:
    model = small_model()
    wrapped = nn.Module()
    wrapped.module = model  # as in DistributedDataParallel
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    with trustlens.record(optimizer, tmp_path, model=wrapped):
        pass
    assert trustlens.open_run(tmp_path).layer_names[0] == "0.weight"


def test_names_without_a_model(tmp_path: Path) -> None:
    model = small_model()
    named = torch.optim.SGD(model.named_parameters(), lr=0.1)
    plain = torch.optim.SGD(
        [{"params": list(model[0].parameters())}, {"params": list(model[2].parameters())}], lr=0.1
    )
    with trustlens.record(named, tmp_path / "named"), trustlens.record(plain, tmp_path / "plain"):
        pass
    assert trustlens.open_run(tmp_path / "named").layer_names[2] == "2.weight"
    assert trustlens.open_run(tmp_path / "plain").layer_names == [
        "group0.param0",
        "group0.param1",
        "group1.param0",
        "group1.param1",
    ]


def test_layers_are_in_the_order_of_the_model_not_of_the_groups(tmp_path: Path) -> None:
    model = small_model()
    optimizer = torch.optim.Adam(
        [{"params": [model[2].weight, model[0].weight]}, {"params": [model[0].bias], "lr": 0.5}]
    )
    with trustlens.record(optimizer, tmp_path, model=model):
        train(model, optimizer, 2)
    run = trustlens.open_run(tmp_path)
    assert run.layer_names == ["0.weight", "0.bias", "2.weight"]
    np.testing.assert_allclose(run.matrix("learning_rate").loc[2], [0.001, 0.5, 0.001], rtol=1e-6)
    np.testing.assert_allclose(
        run.matrix("weight_norm").loc[1, "0.bias"], small_model()[0].bias.norm().item(), rtol=1e-6
    )


def test_every_and_histograms_every(tmp_path: Path) -> None:
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters())
    weights: dict[int, torch.Tensor] = {}
    with trustlens.record(optimizer, tmp_path, model=model, every=4, histograms_every=8) as rec:
        train(model, optimizer, 10)
        weights[11] = model[0].weight.detach().clone()
        train(model, optimizer, 7)
    assert rec.step == 17
    run = trustlens.open_run(tmp_path)
    assert run.matrix("nonfinite").index.tolist() == [1, 5, 9, 13, 17]
    assert run.steps()["step"].tolist() == list(range(1, 18))
    histograms = run.histograms(layer="0.weight", element="weight")
    assert histograms["step"].tolist() == [1, 9, 17]
    assert histograms["counts"][0] == element_counts(small_model()[0].weight.detach().numpy())
    assert len(run.histograms()) == 3 * 4 * 3


def test_two_optimizers_of_one_model(tmp_path: Path) -> None:
    model = small_model()
    first = torch.optim.Adam(model[0].parameters())
    second = trustlens.optim.Lamb(model[2].parameters())
    with trustlens.record([first, second], tmp_path, model=model):
        for _ in range(3):
            model(torch.ones(1, 6)).sum().backward()
            first.step()
            second.step()
    run = trustlens.open_run(tmp_path)
    assert len(run.layers()) == 3 * 4
    assert run.steps()["step"].tolist() == [1, 2, 3]
    assert [layer.optimizer for layer in run.info.layers] == [0, 0, 1, 1]


def test_a_group_added_during_training_is_recorded_from_its_first_step(tmp_path: Path) -> None:
    model = small_model()
    optimizer = torch.optim.Adam(model[0].parameters())
    with trustlens.record(optimizer, tmp_path, model=model):
        train(model, optimizer, 2)
        optimizer.add_param_group({"params": list(model[2].parameters())})
        train(model, optimizer, 2)
    run = trustlens.open_run(tmp_path)
    assert run.layer_names == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert run.layers(layers=["2.bias"])["step"].tolist() == [3, 4]
    assert run.matrix("debias1").loc[3].tolist() == pytest.approx(
        [1 / (1 - 0.9**3)] * 2 + [10.0] * 2, rel=1e-6
    )


def test_an_unknown_optimizer_is_recorded_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Unknown(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            super().step(closure)

    model = small_model()
    with trustlens.record(Unknown(model.parameters(), lr=0.1), tmp_path, model=model):
        pass
    (warning,) = caplog.records
    assert "Unknown" in warning.getMessage()
    assert "copy" in warning.getMessage()


def test_a_subclass_is_known_unless_it_overrides_step() -> None:
    # In a new process, since torch wraps the `step` of a class when its first instance is created.
    code = """
        import torch, trustlens
        from trustlens.recording.optimizers import family_of

        class Same(trustlens.optim.Lamb): pass
        class SameAdam(torch.optim.Adam): pass
        class Other(torch.optim.AdamW):
            def step(self, closure=None): pass

        parameters = [torch.nn.Parameter(torch.ones(2))]
        print([family_of(kind(parameters)).name for kind in (Same, SameAdam, Other)])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['LAMB', 'Adam', '']"


@pytest.mark.parametrize(
    "mistake",
    [
        (lambda o, d: trustlens.record("adam", d), "got 'str' for an optimizer"),
        (lambda o, d: trustlens.record([], d), "empty list"),
        (lambda o, d: trustlens.record(o, d, every=0), "every=0"),
        (lambda o, d: trustlens.record(o, d, histograms_every=-1), "histograms_every=-1"),
    ],
)
def test_invalid_arguments_raise_an_error_that_names_them(tmp_path: Path, mistake: Any) -> None:
    call, message = mistake
    optimizer = torch.optim.Adam(small_model().parameters())
    with pytest.raises(UsageError, match=message):
        call(optimizer, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_optimizer_without_parameters_or_already_recorded_is_refused(tmp_path: Path) -> None:
    optimizer = torch.optim.Adam(small_model().parameters())
    with trustlens.record(optimizer, tmp_path / "a"):
        with pytest.raises(UsageError, match="recorded already"):
            trustlens.record(optimizer, tmp_path / "b")
        with pytest.raises(UsageError, match="already holds a run"):
            trustlens.record(torch.optim.Adam(small_model().parameters()), tmp_path / "a")
    with trustlens.record(optimizer, tmp_path / "b"):
        pass
    optimizer.param_groups[0]["params"].clear()
    with pytest.raises(UsageError, match="no parameters"):
        trustlens.record(optimizer, tmp_path / "c")


def test_a_run_without_steps_and_closing_twice(tmp_path: Path) -> None:
    optimizer = torch.optim.Adam(small_model().parameters())
    recorder = trustlens.record(optimizer, tmp_path)
    recorder.log(before=1.0)
    recorder.close()
    recorder.close()
    recorder.log(after=2.0)
    run = trustlens.open_run(tmp_path)
    assert run.last_step == 0
    assert run.metrics()["name"].tolist() == ["before"]
    assert run.layers().empty


def test_close_removes_the_hooks_and_the_optimizer_can_be_copied_and_pickled(
    tmp_path: Path,
) -> None:
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters())
    with trustlens.record(optimizer, tmp_path / "run", model=model):
        train(model, optimizer, 2)
        copied = copy.deepcopy(optimizer)
        unpickled = pickle.loads(pickle.dumps(optimizer))
        for other in (copied, unpickled):
            assert other.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys()
    with (
        pytest.raises(RuntimeError, match="the user's own"),
        trustlens.record(optimizer, tmp_path / "second", model=model),
    ):
        raise RuntimeError("the user's own")
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_log_accepts_numbers_of_any_kind_and_ignores_other_values(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    optimizer = torch.optim.Adam(small_model().parameters())
    with trustlens.record(optimizer, tmp_path) as recorder:
        recorder.log(
            a=1,
            b=np.float32(2),
            c=torch.tensor([3.0], requires_grad=True),
            d=torch.tensor(4),
            e=float("nan"),
        )
        for _ in range(3):
            recorder.log(vector=torch.ones(2), text="x", f=5.0)
    metrics = trustlens.open_run(tmp_path).metrics()
    values = dict(zip(metrics["name"], metrics["value"], strict=True))
    assert {key: values[key] for key in "abcdf"} == {"a": 1, "b": 2, "c": 3, "d": 4, "f": 5}
    assert np.isnan(values["e"])
    assert set(values) == set("abcdef")
    assert len(caplog.records) == 2  # one warning for each name


def _fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError("injected")


def test_a_failing_listener_does_not_stop_the_recording(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        on_layers = on_metrics = on_histograms = staticmethod(_fail)

        def close(self) -> None:
            raise AssertionError("a listener that failed must not be called again")

    class Counting:
        rows = 0
        closed = False

        def on_layers(self, table: Any) -> None:
            self.rows += table.num_rows

        def on_metrics(self, table: Any) -> None: ...
        def on_histograms(self, table: Any) -> None: ...

        def close(self) -> None:
            self.closed = True

    model, counting = small_model(), Counting()
    optimizer = torch.optim.Adam(model.parameters())
    with trustlens.record(optimizer, tmp_path, listeners=[Broken(), counting]):
        train(model, optimizer, 5)
    assert counting.rows == 20
    assert counting.closed
    assert trustlens.open_run(tmp_path).last_step == 5
    assert len(caplog.records) == 1


def test_a_writer_thread_that_is_too_slow_drops_items_and_counts_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    taken: list[int] = []

    def slow(items: list[int]) -> None:
        time.sleep(0.05)
        taken.extend(items)

    thread: WriterThread[int] = WriterThread(slow, capacity=10)
    started = time.monotonic()
    accepted = [i for i in range(5000) if thread.put(i)]
    assert time.monotonic() - started < 2
    thread.close()
    assert taken == accepted
    assert thread.dropped == 5000 - len(accepted) > 0
