"""All of torch.optim, with every option: correct rows, and bit-identical training."""

from __future__ import annotations

import inspect
import math
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import oracle, supported
from tests.support.oracle import Layer, compare, train
from tests.support.simulation import rows_of
from tests.support.supported import ACCELERATOR, CASES, EXACT
from tests.support.third_party import layerwise_rows
from trustlens import record
from trustlens.recording.measuring import cached_plan, measurement, snapshots
from trustlens.recording.measuring.probe import OptimizerProbe
from trustlens.recording.measuring.snapshots import WeightSnapshots
from trustlens.recording.optimizers import direction as form

RATES = (1, 5, 1)  # factor of the case's learning rate, by group
DOUBLE = 1e-6  # bound for float64 parameters: files and tensor rates are float32
SPARSE = {"SparseAdam"}
REAL_ONLY = {"Muon", "Adafactor", "SparseAdam"}
LBFGS = [case for case in CASES if case.kind.__name__ == "LBFGS"]
PAIRS = [case for case in CASES if case.kind.__name__ != "LBFGS"]


def draw(generator, shape, dtype, scale=1.0):
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    if dtype.is_complex:
        other = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
        values = torch.complex(values, other)
    return values.to(dtype)


def a_layer(generator, name, shape, *, dtype=torch.float32, scale=1.0, group=0, steps=4, late=0,
            faint=1.0, sparse=False):  # fmt: skip
    """Return a layer without gradients in the first `late` steps; each has elements 0 and −0."""
    weights = draw(generator, shape, dtype, scale)
    grads = []
    for t in range(steps):
        grad = draw(generator, shape, dtype, faint * 10.0 ** (t - 2))
        if grad.numel() > 10:
            grad.view(-1)[:2] = torch.tensor([0.0, -0.0])
        if sparse:
            grad[::3] = 0
            grad = grad.to_sparse(1)
        grads.append(None if t < late else grad)
    return Layer(name, weights, grads, group)


def layers_of(case, seed=0):
    """Return layers of all kinds that this optimizer accepts."""
    make = torch.Generator().manual_seed(seed)
    kind, f64, c64 = case.kind.__name__, torch.float64, torch.complex64
    sparse = kind in SPARSE
    steps = 8 if kind == "RAdam" else 4  # RAdam divides from its sixth step on
    layer = partial(a_layer, make, sparse=sparse, steps=steps)
    found = [
        layer("matrix", (30, 25)),
        layer("wide", (20, 10), dtype=f64, group=1),
        # Alone in its group: torch's fused SGD must start all momentum buffers of a group at once.
        layer("late", (8, 5), late=2, group=2),
        layer("zero", (5, 40), scale=0.0, group=1),
        layer("tiny", (12, 3), scale=1e-5),
        layer("unused", (4, 2), late=steps),
    ]
    if not (kind == "Adafactor" and case.options.get("foreach")):
        # The foreach Adafactor uses one ε for all layers, of a dtype in unspecified order.
        found.append(layer("faint", (6, 5), faint=1e-5, group=1))
    if kind == "Muon":
        return found
    found += [
        layer("vector", (300,), scale=10.0, group=1),
        layer("filter", (4, 3, 2, 2), scale=0.1),
    ]
    if sparse:
        return found
    found.append(layer("scalar", (), scale=3.0))
    if kind != "Adafactor":  # it divides by the number of elements
        found.append(layer("empty", (0,)))
    if kind != "Adafactor" and not case.options.get("fused"):
        found.append(layer("complex", (6, 5), dtype=c64))
    return found


def choose_copies(way, monkeypatch):
    """Copy all weights before each step ('copied'), or only those that must be ('undone')."""
    monkeypatch.setattr(snapshots, "SMALL", -1 if way == "undone" else 1 << 30)


@contextmanager
def observed_copies():
    """Yield the set of (step, place) of the copied weights, which grows with each step."""
    taken = set()
    step = 0
    take = WeightSnapshots.take

    def taking(self, *args, **kwargs):
        nonlocal step
        step += 1
        take(self, *args, **kwargs)
        places = range(len(self._weights))
        taken.update((step, place) for place in places if self.weights(place) is not None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WeightSnapshots, "take", taking)
        yield taken


@pytest.fixture
def copies():
    with observed_copies() as taken:
        yield taken


def runs():
    """Yield each case, and one case of each kind also with all weights copied."""
    met = set()
    for case in PAIRS:
        yield pytest.param(case, "undone", id=f"{case}")
        if (case.kind, case.when) not in met:
            met.add((case.kind, case.when))
            yield pytest.param(case, "copied", id=f"{case}, copied")


@pytest.mark.parametrize(("case", "way"), list(runs()))
def test_every_column_is_its_definition(case, way, copies, tmp_path, monkeypatch):
    choose_copies(way, monkeypatch)
    layers, random = layers_of(case), torch.get_rng_state()
    optimizer, parameters, seen = train(case, layers, tmp_path / "run", rates=RATES)
    assert torch.equal(torch.get_rng_state(), random)
    check(case, rows_of(tmp_path / "run"), seen, copies=copies, layers=layers, way=way)
    plain_optimizer, plain, _ = train(case, layers, rates=RATES)
    check_identical(plain_optimizer, plain, optimizer, parameters)


def check(case, rows, seen, *, copies, layers, way=None):
    """Compare all rows with the oracle, and if `way` is given the copies with those documented."""
    names = [la.name for group in range(3) for la in layers if la.group == group]
    begun = set()
    assert rows.keys() == seen.keys()
    for (t, name), step in seen.items():
        copied = (t, names.index(name)) in copies
        if step.g is not None and way is not None:
            always = case.copies or step.dtype.is_complex or name not in begun
            assert copied == (way == "copied" or always), (t, name)
        if step.g is not None:
            begun.add(name)
        step.undone = not copied and step.g is not None
        bound = DOUBLE if step.dtype == torch.float64 and case in CASES else EXACT
        compare(
            case.kind.__name__, rows[t, name], step, null=case.null, bound=bound, where=(t, name)
        )


def check_identical(plain_optimizer, plain, optimizer, parameters):
    """Check that parameters and states are bit-identical."""
    for name, p in parameters.items():
        assert equal(p.detach(), plain[name].detach()), name
        ours, theirs = optimizer.state.get(p, {}), plain_optimizer.state.get(plain[name], {})
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert equal(value, theirs[key]), (name, key)


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def as_if_on_a_device(monkeypatch):
    """Treat all tensors as if they were on an accelerator, and fail if a number is read."""
    for module in (form, snapshots, measurement, cached_plan):
        monkeypatch.setattr(module, "is_on_accelerator", torch.is_tensor)

    def fail(*_):
        raise AssertionError("a number on a device was read")

    def without_reads(work):
        def wrapped(*args, **kwargs):
            with pytest.MonkeyPatch.context() as patch:
                for name in ("item", "tolist", "__float__", "__int__", "__bool__"):
                    patch.setattr(torch.Tensor, name, fail)
                return work(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(OptimizerProbe, "before", without_reads(OptimizerProbe.before))
    monkeypatch.setattr(OptimizerProbe, "after", without_reads(OptimizerProbe.after))


COUNT_ON_THE_HOST = {"SGD", "Adafactor", "RMSprop", "Adadelta", "Rprop", "Muon"}
RATES_ON_A_DEVICE = [
    replace(case, copies=case.copies or case.kind is torch.optim.Adafactor)
    for case in PAIRS
    if isinstance(case.options.get("lr"), torch.Tensor)
    and (case.kind.__name__ in COUNT_ON_THE_HOST or "fused" in case.options)
]


@pytest.mark.parametrize("case", [*ACCELERATOR, *RATES_ON_A_DEVICE], ids=str)
def test_rates_and_counts_on_a_device(case, copies, tmp_path, monkeypatch):
    choose_copies("undone", monkeypatch)
    as_if_on_a_device(monkeypatch)
    if "capturable" in case.options:
        module = inspect.getmodule(inspect.unwrap(case.kind.step))
        monkeypatch.setattr(module, "_get_capturable_supported_devices", lambda **_: ["cpu"])
    layers = layers_of(case)
    optimizer, parameters, seen = train(case, layers, tmp_path / "run", rates=RATES)
    check(case, rows_of(tmp_path / "run"), seen, copies=copies, layers=layers, way="undone")
    plain_optimizer, plain, _ = train(case, layers, rates=RATES)
    check_identical(plain_optimizer, plain, optimizer, parameters)


@given(
    case=st.sampled_from(PAIRS),
    way=st.sampled_from(["copied", "undone"]),
    shapes=st.lists(st.lists(st.integers(1, 12), max_size=4).map(tuple), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float64, torch.complex64]),
    steps=st.integers(1, 8),
    rate=st.floats(-3, 2),
    sizes=st.tuples(st.floats(-4, 3), st.floats(-6, 6)),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=100, deadline=None)
def test_any_optimizer(*, case, way, shapes, dtype, steps, rate, sizes, seed, tmp_path_factory):
    kind, make = case.kind.__name__, torch.Generator().manual_seed(seed)
    if dtype.is_complex and (kind in REAL_ONLY or case.options.get("fused")):
        dtype = torch.float32
    if min(map(math.prod, shapes)) < 30 and dtype == torch.float32:
        dtype = torch.float64  # few elements may all cancel, leaving float32's rounding
    if kind == "Muon":
        shapes = [(*shape, 3, 2)[:2] for shape in shapes]
    weight, grad = (10.0**size for size in sizes)
    layers = [
        Layer(
            f"layer{i}",
            draw(make, shape or (1,) * (kind == "SparseAdam"), dtype, weight),
            [draw(make, shape or (1,) * (kind == "SparseAdam"), dtype, grad) for _ in range(steps)],
        )
        for i, shape in enumerate(shapes)
    ]
    if kind == "SparseAdam":
        layers = [Layer(la.name, la.weights, [g.to_sparse(1) for g in la.grads]) for la in layers]
    directory = tmp_path_factory.mktemp("any") / "run"
    with observed_copies() as copies, pytest.MonkeyPatch.context() as patch:
        choose_copies(way, patch)
        _, _, seen = train(case, layers, directory, rates=(10.0**rate,))
    check(case, rows_of(directory), seen, copies=copies, layers=layers)


@pytest.mark.parametrize("case", LBFGS, ids=str)
def test_lbfgs_is_measured(case, tmp_path):
    """The recorded gradient is that of the first closure call, at w; d is −Δw/η."""
    make = torch.Generator().manual_seed(0)
    target, matrix = draw(make, (6, 4), torch.float32), draw(make, (6, 6), torch.float32)

    def training(directory):
        weights, idle = (torch.nn.Parameter(torch.ones(6, 4)) for _ in range(2))
        optimizer = case.make([weights, idle])
        seen = []

        def closure():
            optimizer.zero_grad()
            loss = (matrix @ (weights - target)).square().sum()
            loss.backward()
            return loss

        with record(optimizer, directory) if directory else nullcontext():
            for t in range(3):
                group = {"lr": float(optimizer.param_groups[0]["lr"])}
                closure()
                step = oracle.Step(group, oracle.real(weights), oracle.real(weights.grad), t=t + 1)
                optimizer.step(closure)
                step.after = oracle.real(weights)
                seen.append(step)
        return optimizer, {"weights": weights}, seen

    optimizer, parameters, seen = training(tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    for t, step in enumerate(seen, start=1):
        compare("LBFGS", rows[t, "group0.param0"], step, null=case.null, bound=EXACT, where=t)
        assert rows[t, "group0.param1"]["update_norm"] == 0
        assert rows[t, "group0.param1"]["grad_norm"] is None
    plain_optimizer, plain, _ = training(None)
    check_identical(plain_optimizer, plain, optimizer, parameters)


def test_parameters_that_are_added_later_frozen_or_shared(tmp_path):
    make = torch.Generator().manual_seed(0)
    model = torch.nn.ModuleDict({"one": torch.nn.Linear(3, 3), "two": torch.nn.Linear(3, 3)})
    model["two"].weight = model["one"].weight
    model["two"].bias.requires_grad_(False)
    case = next(c for c in CASES if str(c) == "AdamW()")
    optimizer = case.make([model["one"].weight, model["two"].bias])
    named = dict(model.named_parameters())
    seen = {}
    with record(optimizer, tmp_path / "run", model=model):
        for t in range(4):
            if t == 2:
                optimizer.add_param_group({"params": [model["one"].bias], "lr": 0.1})
            for p in named.values():
                p.grad = draw(make, p.shape, p.dtype) if p.requires_grad else None
            followed = {n: p for n, p in named.items() if n != "one.bias" or t > 1}
            seen |= oracle.before_step_of(t + 1, optimizer, followed)
            optimizer.step()
            oracle.add_result(t + 1, optimizer, followed, seen)
    rows = rows_of(tmp_path / "run")
    assert {name for _, name in rows} == {"one.weight", "one.bias", "two.bias"}
    assert rows.keys() == seen.keys()
    for place, step in seen.items():
        compare("AdamW", rows[place], step, null=case.null, bound=EXACT, where=place)
    assert rows[4, "one.bias"]["debias1"] == pytest.approx(1 / (1 - 0.9**2))


def test_a_differentiable_step(tmp_path):
    """Gradients of the rate and betas through the steps do not depend on recording."""

    def learned(directory):
        make = torch.Generator().manual_seed(0)
        rate, *betas = (torch.tensor(v, requires_grad=True) for v in (0.1, 0.9, 0.99))
        weights = torch.nn.Parameter(draw(make, (4, 3), torch.float32)).clone()
        weights.retain_grad()
        optimizer = torch.optim.AdamW([weights], lr=rate, betas=tuple(betas), differentiable=True)
        with record(optimizer, directory) if directory else nullcontext():
            for _ in range(3):
                weights.grad = draw(make, (4, 3), torch.float32)
                optimizer.step()
        weights.sum().backward()
        return [weights.detach(), rate.grad, *(beta.grad for beta in betas)]

    assert equal(learned(tmp_path / "run"), learned(None))
    assert rows_of(tmp_path / "run").keys() == {(t, "group0.param0") for t in (1, 2, 3)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_an_accelerator(tmp_path, monkeypatch):
    choose_copies("undone", monkeypatch)
    for i, case in enumerate(ACCELERATOR):
        layers = [on_cuda(la) for la in layers_of(case)]
        with observed_copies() as copies:
            _, _, seen = train(case, layers, tmp_path / f"run{i}", rates=RATES)
        check(case, rows_of(tmp_path / f"run{i}"), seen, copies=copies, layers=layers)


def on_cuda(la):
    grads = [None if g is None else g.cuda() for g in la.grads]
    return Layer(la.name, la.weights.cuda(), grads, la.group)


def test_every_option_is_among_the_cases():
    known = [*CASES, *ACCELERATOR]
    for kind in {case.kind for case in known}:
        options = set(inspect.signature(kind).parameters) - {"params"}
        tried = {name for case in known if case.kind is kind for name in case.options}
        assert options <= tried, kind


def test_no_optimizer_of_torch_is_missing():
    there = {
        each for each in vars(torch.optim).values()
        if isinstance(each, type) and issubclass(each, torch.optim.Optimizer)
    } - {torch.optim.Optimizer}  # fmt: skip
    assert there == {case.kind for case in CASES}


def test_the_documentation_page_is_generated_from_these_cases():
    made = supported.page(supported.torch_rows(), layerwise_rows())
    written = supported.PAGE.read_text(encoding="utf-8")
    assert written == made, "regenerate it: python tests/support/supported.py"
