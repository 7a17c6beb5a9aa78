"""The declaration of the recorded sums; a sum added to it is computed by every backend."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.compiled import COMPILED
from trustlens import schema
from trustlens.element_bins import ELEMENT_BUCKETS, ELEMENT_SHIFT
from trustlens.kernels import sums

PACKAGE = Path(sums.__file__).parents[1]

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="there is no Triton here"
)


def test_the_header_in_the_repository_is_the_generated_one():
    assert sums.HEADER.read_text(encoding="utf-8") == sums.c_header()


def test_kinds_are_in_order_and_quantities_are_in_the_schema():
    kinds = [each.kind for each in sums.DECLARED]
    assert kinds == sorted(kinds, key=["sum", "count", "maximum"].index)
    assert kinds.index("count") == sums.FIRST_COUNT
    assert kinds.index("maximum") == sums.FIRST_MAXIMUM
    assert len(set(sums.SUMS)) == len(sums.SUMS)
    assert {each.quantity for each in sums.DECLARED} <= set(schema.RECORDED)
    counts = {each.quantity for each in sums.DECLARED if each.kind == "count"}
    assert counts == set(schema.COUNTS)


def test_backends_do_not_repeat_the_bucket_constants():
    for path in (PACKAGE / "recording" / "statistics").iterdir():
        if path.suffix in {".py", ".c"}:
            text = path.read_text(encoding="utf-8")
            assert str(ELEMENT_BUCKETS) not in text, path
            assert f">> {ELEMENT_SHIFT}" not in text, path


# The edits of a developer who adds Σ g·w: for each file, pairs of an existing text and the text to
# insert after it. First the declaration, then the arithmetic of each backend.
GRAD_DOT_WEIGHT = {
    "kernels/sums.py": [
        (
            '"sum", "momentum"),  # Σ m²\n',
            '    Sum("grad_dot_weight", "grad_dot_weight", "sum", "gradient"),\n',
        )
    ],
    "recording/statistics/reference.py": [
        ('sums["grad_max"] = _largest(g)\n', '        sums["grad_dot_weight"] = (g * w).sum()\n')
    ],
    "recording/statistics/torch_backend.py": [
        (
            'sums["grad_max"] = _largest(g, spare)\n',
            '        sums["grad_dot_weight"] = _dot(g, w, spare)\n',
        )
    ],
    "recording/statistics/cpu.c": [
        ("out[GRAD_SQUARES] += g * g;\n", "            out[GRAD_DOT_WEIGHT] += g * w;\n"),
        (
            "s->sum[GRAD_SQUARES] += g * g;\n",
            "    s->sum[GRAD_DOT_WEIGHT] += g * w;\n",
        ),
    ],
    "recording/statistics/triton_kernels.py": [("g * m, m * m,", " g * w,")],
    "optim/fused.c": [
        (
            "add(s, mode, GRAD_SQUARES, g, g);\n",
            "    add(s, mode, GRAD_DOT_WEIGHT, g, w);\n",
        )
    ],
    "optim/triton_step.py": [
        ("u2, g2, d2, dw, gm, m2, v1, s2,", " gw,"),
        ("    dw += d * w\n", "    gw += g * w\n"),
        (
            "    sums = (zero, zero, zero, zero, zero, zero, zero, zero,",
            " zero,",
        ),
        (
            "    tl.store(row + GRAD_SQUARES, g2)\n",
            "    tl.store(row + GRAD_DOT_WEIGHT, total(gw))\n",
        ),
        ("    GRAD_DOT_MOMENTUM,\n", "    GRAD_DOT_WEIGHT,\n"),
    ],
}

# Run in a fresh process with the package in the current folder: the sums of every backend.
MEASURE = """
    import sys
    import torch
    from trustlens.kernels.sums import SUMS
    from trustlens.optim import Lamb, Lars
    from trustlens.recording.optimizers import Direction
    from trustlens.recording.statistics import LayerStep, reference
    from trustlens.recording.statistics.cpu_backend import CpuBackend
    from trustlens.recording.statistics.torch_backend import TorchBackend

    def normal(seed, size=3000):
        return torch.randn(size, generator=torch.Generator().manual_seed(seed))

    w, g, m, wide = normal(1), normal(2), normal(3), normal(4).double()
    adam = Direction(base=m, momentum=m, variance=m.square(), base_share=1.5, epsilon=1e-8,
                     decay=0.1, rate=0.01)
    steps = [
        LayerStep(w, w - 0.01 * m, g, adam), LayerStep(None, w, g, adam),
        LayerStep(w, w - g, g, Direction(grad_share=1.0)), LayerStep(w, w, None, None),
        LayerStep(wide, 0.5 * wide, wide, Direction(grad_share=1.0)),
        LayerStep(normal(1, 70_000), normal(2, 70_000), normal(3, 70_000), None),
    ]
    backends = {"torch": TorchBackend(), "cpu": CpuBackend.if_possible()}
    if "triton" in sys.argv:
        from trustlens.recording.statistics.triton_backend import TritonBackend
        backends["triton"] = TritonBackend.if_possible(torch.device("cpu"))
    results = {name: each.measure(steps) for name, each in backends.items() if each}
    results["reference"] = reference.measure(steps)

    def fused(optimizer, scale):
        p = torch.nn.Parameter(normal(5))
        stepped = optimizer([p], lr=0.1, weight_decay=0.01, fused=True)
        stepped.measures = True
        p.grad = scale * normal(6)
        before = p.detach().double()
        stepped.step()
        return stepped.measured[0][1], (p.grad.double() * before).sum()

    if "triton" in sys.argv or backends["cpu"]:
        for optimizer in (Lamb, Lars):
            for scale in (1.0, 1e-25):  # the second is summed again in float64
                name = f"{optimizer.__name__} {scale}"
                results[name], results["truth of " + name] = fused(optimizer, scale)
    torch.save((SUMS, results), sys.argv[1])
"""


def measured(folder: Path, *options: str):
    import torch

    interpreted = {"TRITON_INTERPRET": "1"} if "triton" in options else {}
    saved = folder / "sums.pt"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(MEASURE), str(saved), *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "XDG_CACHE_HOME": str(folder), **interpreted},
        check=True,
    )
    return torch.load(saved)


def add_sum_to_copy(folder: Path) -> None:
    for name, additions in GRAD_DOT_WEIGHT.items():
        path = folder / "trustlens" / name
        text = path.read_text(encoding="utf-8")
        for after, added in additions:
            assert after in text, (name, after)
            text = text.replace(after, after + added)
        path.write_text(text, encoding="utf-8")
    subprocess.run([sys.executable, "-m", "trustlens.kernels.sums"], cwd=folder, check=True)


@pytest.mark.parametrize("options", [(), pytest.param(("triton",), marks=needs_triton)], ids=str)
def test_an_added_sum_is_computed_by_every_backend_and_changes_no_other(tmp_path: Path, options):
    """The 17th sum exceeds the power of two to which Triton pads the columns."""
    import torch

    results = []
    for name in ("as it is", "with one more"):
        folder = tmp_path / name
        shutil.copytree(
            PACKAGE, folder / "trustlens", ignore=shutil.ignore_patterns("ready_built", "*.pyc")
        )
        if results:
            add_sum_to_copy(folder)
        results.append(measured(folder, *options))
    (names, before), (more_names, after) = results
    column = more_names.index("grad_dot_weight")
    others = [i for i in range(len(more_names)) if i != column]
    assert [more_names[i] for i in others] == list(names)
    assert before.keys() == after.keys()
    assert ("triton" in after) == bool(options)
    assert ("cpu" in after) == (COMPILED is not None)
    for name, got in after.items():
        if name.startswith("truth"):
            continue
        assert got.shape[1] == len(names) + 1
        assert torch.equal(got[:, others].nan_to_num(7.0), before[name].nan_to_num(7.0)), name
        truth = after.get(f"truth of {name}", after["reference"][:, column])
        torch.testing.assert_close(
            got[:, column], truth.expand(len(got)), rtol=1e-5, atol=1e-30, equal_nan=True
        )
    assert after["reference"][:, column].isnan().tolist() == [
        False,
        False,
        False,
        True,
        False,
        False,
    ]
