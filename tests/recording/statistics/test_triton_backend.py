"""The Triton kernels for the sums, in the interpreter, on a GPU, and compiled without a GPU.

The checks are in the files of `CHECKS`, which are run in separate processes.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

CHECKS = [
    Path(__file__).parents[2] / "support" / name
    for name in ("triton_checks.py", "cached_plan_checks.py")
]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="there is no Triton here"
)


def check(checks: Path, **environment: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks)]
    # The interpreter computes with numpy, which warns about infinities.
    command += ["-W", "ignore::RuntimeWarning"]
    done = subprocess.run(
        command,
        cwd=checks.parents[2],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("checks", CHECKS, ids=lambda path: path.stem)
def test_interpreted_kernels_agree_with_the_reference(checks):
    check(checks, TRITON_INTERPRET="1", TRUSTLENS_CHECKED_DEVICE="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("checks", CHECKS, ids=lambda path: path.stem)
def test_kernels_on_a_gpu_agree_with_the_reference_and_do_not_synchronize(checks):
    check(checks, TRITON_INTERPRET="0", TRUSTLENS_CHECKED_DEVICE="cuda")


COMPILE = """
    import sys, triton
    from triton import language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from trustlens.recording.statistics import triton_launch as launch, triton_kernels as kernels

    POINTERS = {"layers": "*i64", "changing": "*i64", "forms": "*fp64", "chunks": "*i64",
                "scratch": "*fp64", "counts": "*i64", "sums": "*fp64", "places": "*i64",
                "numbers": "*fp32"}

    def built(kernel, constants, options):
        types = {name: POINTERS.get(name, "i32") for name in kernel.arg_names}
        types |= dict.fromkeys(constants, "constexpr")
        target = GPUTarget("cuda", int(sys.argv[1]), 32)
        return triton.compile(ASTSource(kernel, types, constants), target=target, options=options)

    double, single, half = tl.float64, tl.float32, tl.bfloat16
    for dtypes, count in [
        ((single, 0, single, single, single, single, True), True),
        ((half, single, half, single, 0, single, False), False),
        ((double, double, double, 0, double, 0, False), True),
    ]:
        constants = {"KINDS": (*dtypes, True, True), "WIDE": dtypes[0] == double, "COUNT": count,
                     "CHUNK": launch.CHUNK, "BLOCK": launch.BLOCK}
        ptx = built(kernels.measure_chunks, constants, launch.OPTIONS).asm["ptx"]
        # Denormals are kept, products are rounded before additions, and loads are vectorized.
        assert "ftz" not in ptx and "fma.rn.f32" not in ptx
        assert dtypes[0] != single or ptx.count("ld.global.v4.b32") >= 4
    assert built(kernels.add_chunks, {"ROWS": 64, "PADDED": 16}, launch.OPTIONS).asm["cubin"]
    assert built(kernels.gather, {"BLOCK": launch.BLOCK}, {}).asm["cubin"]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler is for Linux")
@pytest.mark.parametrize("capability", ["80", "90"])
def test_kernels_compile_without_a_gpu(tmp_path: Path, capability: str):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(COMPILE), capability],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-4000:]


def test_without_triton_there_is_no_triton_backend():
    code = """
        import sys, torch
        sys.modules["triton"] = None
        from trustlens.recording.statistics.triton_backend import TritonBackend
        print(TritonBackend.if_possible(torch.device("cpu")))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "None"
