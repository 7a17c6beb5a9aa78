"""Triton kernels for the steps of LAMB and LARS: interpreted, on a GPU, and compiled only.

The tests are in `support/fused_cuda_checks.py`; each way to run them needs a new process.
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

CHECKS = Path(__file__).parents[1] / "support" / "fused_cuda_checks.py"

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=CHECKS.parents[2],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-4000:]
    return done.stdout


def check(**environment: str) -> None:
    # The interpreter computes with numpy, which warns about infinities.
    options = ("-q", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning")
    run("-m", "pytest", *options, str(CHECKS), **environment)


@needs_triton
def test_interpreted_kernels():
    check(TRITON_INTERPRET="1", TRUSTLENS_CHECKED_DEVICE="cpu")


@needs_triton
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_kernels_on_a_gpu_without_synchronizing():
    check(TRITON_INTERPRET="0", TRUSTLENS_CHECKED_DEVICE="cuda:0")


COMPILE = """
    import sys, triton
    from triton import language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from trustlens.optim import fused_cuda as cuda, triton_numbers, triton_step as kernels

    POINTERS = {"layers": "*i64", "grads": "*i64", "chunks": "*i64", "given": "*fp64",
                "numbers": "*fp32", "squares": "*fp64", "sums": "*fp64", "scratch": "*fp64",
                "ratios": "*fp64"}

    def built(kernel, **constants):
        types = {name: POINTERS.get(name, "i32") for name in kernel.arg_names}
        types |= dict.fromkeys(constants, "constexpr")
        target = GPUTarget("cuda", int(sys.argv[1]), 32)
        source = ASTSource(kernel, types, constants)
        return triton.compile(source, target=target, options=cuda.OPTIONS).asm

    sizes = {"ALIGNED": (True, True), "CHUNK": cuda.CHUNK, "BLOCK": cuda.BLOCK}
    for rule, dtype, measure in [
        (kernels.LAMB, tl.float32, False), (kernels.LAMB, tl.float32, True),
        (kernels.LAMB, tl.bfloat16, True), (kernels.LARS, tl.float16, True),
        (kernels.LARS, tl.float32, False), (kernels.LARS_WITHOUT, tl.float32, True),
    ]:
        for kernel in (kernels.first_pass, kernels.second_pass):
            ptx = built(kernel, RULE=rule, DTYPE=dtype, MEASURE=measure, **sizes)["ptx"]
            # Denormals are not flushed to 0, no multiplication is fused, and reads are vectorized.
            assert "ftz" not in ptx and "fma.rn.f32" not in ptx
            assert dtype != tl.float32 or ptx.count("ld.global.v4.b32") >= 2
            assert dtype != tl.bfloat16 or "cvt.rn.bf16" in ptx
    assert built(kernels.square_gradients, DTYPE=tl.float16, **sizes)["cubin"]
    for columns in (2, 16):
        assert built(kernels.add_chunks, COLUMNS=columns, PADDED=columns, ROWS=64)["cubin"]
    for debias in range(4):
        assert built(triton_numbers.make_numbers, DEBIAS=debias, DECAYS_INSIDE=debias > 1,
                     RATIO_BEFORE_DECAY=True, RATIO_OF_SUM=False, BLOCK=128)["cubin"]
"""


@needs_triton
@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler is for Linux")
@pytest.mark.parametrize("capability", ["80", "90"])
def test_kernels_compile_without_a_gpu(tmp_path: Path, capability: str):
    environment = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run("-c", textwrap.dedent(COMPILE), capability, **environment)


def test_without_triton_foreach_is_used():
    program = """
        import sys, types, torch
        sys.modules["triton"] = None
        from trustlens.errors import UsageError
        from trustlens.optim import Lamb, Lars, fused
        p = torch.nn.Parameter(torch.ones(3))
        for kind in (Lamb, Lars):
            p.grad = torch.ones(3)
            optimizer = kind([p], lr=0.1)
            optimizer.measures = True
            optimizer.step()
            assert optimizer.measured == []
        on_a_gpu = types.SimpleNamespace(device=torch.device("cuda:0"))
        for p in (on_a_gpu, torch.ones(3, device="meta")):
            try:
                fused.check_devices("Lamb", {"fused": True, "params": [p]})
            except UsageError as error:
                print(error)
    """
    output = run("-c", textwrap.dedent(program), TRITON_INTERPRET="1")
    assert output.splitlines() == [
        f"Lamb got fused=True, and there is {missing} leave fused out"
        for missing in (
            "no Triton here that can build the fused step: install triton, or",
            "no fused step for meta:",
        )
    ]
