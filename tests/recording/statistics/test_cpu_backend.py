"""The compiled sums: accuracy, threads, and the fallback if they cannot be used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings

from tests.support.compiled import COMPILED, measure_compiled, needs_compiler
from tests.support.layer_steps import (
    EXACT,
    FORMS,
    assert_agree,
    assert_agree_except_reconstructed,
    make_step,
    step_arguments,
)
from trustlens.recording.optimizers import Direction
from trustlens.recording.statistics import SUMS, LayerStep, reference
from trustlens.recording.statistics.elements import count_steps

NAN_BUCKETS = torch.tensor([1021, 1022, 1023, 2045, 2046, 2047])  # a NaN counts in any of these
SHAPES = [(), (0,), (1,), (3, 5), (64, 1, 5, 5), (2047,), (2049,), (70_000,)]


@needs_compiler
@example(  # an element whose g and 0.25·w cancel: its update is 0, not swallowed
    arguments={
        "seed": 0,
        "shape": (64, 1, 5, 5),
        "dtypes": (torch.bfloat16, torch.bfloat16, torch.float32, torch.float32),
        "scales": (0.0, 0.0, -2.0),
        "form": "sgd",
    }
)
@settings(max_examples=150, deadline=None)
@given(arguments=step_arguments(SHAPES, FORMS))
def test_sums_and_counts_agree_with_the_reference(arguments):
    step = make_step(**arguments)
    assert_agree_except_reconstructed(measure_compiled([step]), step)
    counts, true = COMPILED.measure_and_count([step])[1], count_steps([step])
    other = (counts != true).any(dim=1).any(dim=0).nonzero().flatten()
    assert torch.isin(other, NAN_BUCKETS).all()
    assert counts[..., NAN_BUCKETS].sum(-1).equal(true[..., NAN_BUCKETS].sum(-1))


@needs_compiler
def test_the_result_does_not_depend_on_the_number_of_threads():
    before = torch.get_num_threads()
    make = torch.Generator().manual_seed(0)
    w, g, m = (torch.randn(1_500_000, generator=make) for _ in range(3))
    form = Direction(
        base=m, momentum=m, variance=m.square(), base_share=1.5, decay=0.1, epsilon=1e-8
    )
    steps = [LayerStep(w, w - 0.01 * g, g, form)] * 2
    try:
        made = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made.append(measure_compiled(steps))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])
    assert_agree(made[0], steps)


@needs_compiler
@pytest.mark.parametrize("value", [0.3, 1e-3, 7.7])
def test_equal_elements_whose_rounding_errors_add_up(value):
    w = torch.full((100_003,), value)
    step = LayerStep(w, w * 1.25, w, Direction(grad_share=1.0))
    (got,), (truth,) = measure_compiled([step]).numpy(), reference.measure([step]).numpy()
    there = ~np.isnan(truth)
    assert got[there] == pytest.approx(truth[there], rel=2e-6)


@needs_compiler
@pytest.mark.parametrize("left", [1.0, 0.3, 0.1, 0.01, 0.001])
def test_a_decay_that_nearly_cancels_the_direction(left):
    """Σ (d + λw)² is then small compared with Σ d², ⟨d, w⟩ and Σ w², from which it is derived."""
    chance = torch.Generator().manual_seed(0)
    w = torch.randn(50_000, generator=chance)
    v = torch.rand(50_000, generator=chance) + 0.5
    decay, share = 0.125, 1.25
    m = -(1 - left) * decay * w * v.sqrt() / share
    form = Direction(rate=1e-3, base=m, base_share=share, variance=v, epsilon=1e-8, momentum=m,
                     decay=decay)  # fmt: skip
    step = LayerStep(None, w, w, form)
    which = SUMS.index("direction_squares")
    got, truth = (float(m([step])[0, which]) for m in (measure_compiled, reference.measure))
    assert got == pytest.approx(truth, rel=EXACT)


@needs_compiler
@pytest.mark.parametrize("grad_share", [0.0, 1.0])
@pytest.mark.parametrize("odd", [-1.0, -1e-42, -np.inf, -0.0, np.nan, -np.nan])
def test_a_second_moment_without_a_real_square_root(odd, grad_share):
    chance = torch.Generator().manual_seed(0)
    w, g, m, v = torch.randn((4, 3000), generator=chance)
    v = v.square()
    v[5] = odd
    form = Direction(base=m, momentum=m, variance=v, base_share=1.25, grad_share=grad_share,
                     epsilon=1e-8, decay=0.125)  # fmt: skip
    step = LayerStep(w, w - 0.01 * m, g, form)
    sums = measure_compiled([step])
    assert sums[0, SUMS.index("direction_squares")].isnan() == (odd != 0)
    assert_agree(sums, [step])


@needs_compiler
@pytest.mark.parametrize(
    ("g", "w", "form", "expected"),
    [
        (1.0, -4.0, Direction(grad_share=1.0, weight_share=0.25), 0),  # cancel exactly
        (1.0, -4.0, Direction(grad_share=1.0, decay=0.25), 0),
        (1.0, 1.0, Direction(update_share=-8.0, weight_share=-0.125, decay=0.125), 0),
        (1e-45, 0.0, Direction(grad_share=0.01), 2000),  # underflow in float32
        (0.0, 1e-45, Direction(grad_share=1.0, decay=0.01), 2000),
        (1.0 + 2.0**-23, -1.0, Direction(grad_share=1.0 - 2.0**-23, decay=1.0), 2000),
    ],
)
def test_swallowed_updates_are_counted_exactly(g, w, form, expected):
    """If d + λw is 0 in float32, float64 decides whether it is 0, in a block of large numbers."""
    grads, weights = torch.full((5000,), 3.0), torch.full((5000,), 5.0)
    grads[1000:3000], weights[1000:3000] = g, w
    step, which = LayerStep(weights, weights, grads, form), SUMS.index("swallowed")
    others = 0 if form.weight_share == -0.125 else 3000
    for measure in (measure_compiled, reference.measure):
        assert measure([step])[0, which] == expected + others


@needs_compiler
def test_each_layer_has_its_own_row():
    sizes = [0, 3, 70_000, 0, 131_072, 1]
    steps = [LayerStep(torch.zeros(n), torch.full((n,), 2.0), None, None) for n in sizes]
    sums = measure_compiled(steps)
    assert sums[:, SUMS.index("update_squares")].tolist() == [4.0 * n for n in sizes]
    assert sums[:, SUMS.index("update_max")].tolist() == [2.0 * (n > 0) for n in sizes]
    assert sums[:, SUMS.index("grad_max")].isnan().all()  # no gradient


def in_a_process(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return done.stdout.strip()


RECORD = """
    import sys, torch, trustlens
    p = torch.nn.Parameter(torch.arange(1.0, 5.0))
    optimizer = torch.optim.SGD([p], lr=0.5)
    with trustlens.record(optimizer, sys.argv[1] if len(sys.argv) > 1 else {run!r}):
        p.grad = torch.ones(4)
        optimizer.step()
    run = trustlens.open_run({run!r})
    print(run.info.recording.statistics, float(run.matrix("update_norm").iloc[0, 0]))
"""


@needs_compiler
def test_the_library_is_built_once(tmp_path: Path):
    cache = tmp_path / "cache"
    for name in ("one", "two"):
        shown = in_a_process(RECORD.format(run=str(tmp_path / name)), XDG_CACHE_HOME=str(cache))
        assert shown == "cpu 1.0"
        if name == "one":
            (built,) = (cache / "trustlens").iterdir()
            made = built.stat().st_mtime_ns
    assert [path.stat().st_mtime_ns for path in (cache / "trustlens").iterdir()] == [made]
    info = json.loads((tmp_path / "two" / "run.json").read_text())
    assert info["recorder"]["statistics"] == "cpu"


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler", "echo"])
def test_without_a_working_compiler_the_torch_backend_is_used(tmp_path: Path, compiler: str):
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "CC": compiler}
    shown = in_a_process(RECORD.format(run=str(tmp_path / "run")), **environment)
    assert shown == "portable 1.0"


@needs_compiler
def test_a_library_with_wrong_results_is_not_used(tmp_path: Path):
    source = tmp_path / "wrong.c"
    source.write_text(
        "int trustlens_measure(const void *layers, long n, int threads, double *out)"
        "{ for (long i = 0; i < 16 * n; i++) out[i] = 1; return 1; }"
    )
    code = f"""
        from pathlib import Path
        from trustlens.recording.statistics import cpu_backend as cpu
        cpu._SOURCE = Path({str(source)!r})
        print(cpu.CpuBackend.if_possible())
    """
    assert in_a_process(code, XDG_CACHE_HOME=str(tmp_path / "cache")) == "None"


@needs_compiler
def test_an_unwritable_cache_folder(tmp_path: Path):
    (tmp_path / "cache").write_text("a file")
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert in_a_process(RECORD.format(run=str(tmp_path / "run")), **environment) == "cpu 1.0"


@needs_compiler
def test_layers_that_the_loop_cannot_read_use_the_torch_backend():
    w, g = torch.linspace(-1, 2, 5), torch.linspace(1, 3, 5)
    share = torch.tensor(0.5)  # a tensor, which the loop does not read
    steps = [
        LayerStep(w, w - 1, g, Direction(grad_share=share)),
        LayerStep(w, w - 1, g, Direction(grad_share=0.5)),
    ]
    sums = measure_compiled(steps)
    torch.testing.assert_close(sums[0], sums[1], equal_nan=True, rtol=1e-6, atol=0)
