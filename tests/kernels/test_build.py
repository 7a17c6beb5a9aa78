"""Compiled loops, prebuilt in a wheel or compiled at first use, compute the same numbers."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
import torch

from tests.support.compiled import needs_compiler
from trustlens.kernels import build

REPOSITORY = Path(__file__).parents[2]

X86_64 = pytest.mark.skipif(
    os.uname().machine != "x86_64", reason="only x86-64 has several variants"
)

# Prints the loaded libraries, and every number that they compute: AdamW's sums, and LAMB's step.
RECORD = """
    import sys
    from pathlib import Path
    import torch
    import trustlens

    for make in (torch.optim.AdamW, trustlens.optim.Lamb):
        numbers = torch.Generator().manual_seed(0)
        parameters = [
            torch.nn.Parameter(torch.randn(size, generator=numbers)) for size in (7, 3001, 70_000)
        ]
        optimizer = make(parameters, lr=0.01, weight_decay=0.1)
        with trustlens.record(optimizer, Path(sys.argv[1], make.__name__)):
            for step in range(3):
                for parameter in parameters:
                    parameter.grad = torch.randn(parameter.shape, generator=numbers)
                optimizer.step()
        run = trustlens.open_run(Path(sys.argv[1], make.__name__))
        print(run.layers().select_dtypes("number").to_numpy().tobytes().hex())
        print([parameter.sum().item().hex() for parameter in parameters])
    maps = Path("/proc/self/maps").read_text().split()
    loops = {path for path in maps if Path(path).name.startswith(("cpu-", "fused-"))}
    print(*sorted(loops), file=sys.stderr)
"""


def record(out: Path, **environment: str) -> tuple[str, list[Path]]:
    """Return the numbers that a process recorded, and the libraries that it loaded."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RECORD), out],
        env={**os.environ, "XDG_CACHE_HOME": str(out / "cache"), **environment},
        cwd=out.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, [Path(path) for path in done.stderr.split()]


@X86_64
@needs_compiler
def test_prebuilt_loops_need_no_compiler_and_give_the_same_numbers(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, "."],
        cwd=REPOSITORY,
        env={**os.environ, "TRUSTLENS_COMPILE": "1"},
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("trustlens_optim-*-py3-none-linux_x86_64.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    widest = torch.backends.cpu.get_cpu_capability()
    narrower = {"AVX512": "", "AVX2": " -mno-avx512f", "DEFAULT": " -mno-avx"}
    for variant, name in (("AVX512", "avx512"), ("AVX2", "avx2"), ("DEFAULT", "baseline")):
        if list(narrower).index(variant) < list(narrower).index(widest):
            continue  # this processor cannot run it
        capability = {"ATEN_CPU_CAPABILITY": variant.lower()}  # selects PyTorch's kernels too
        bare = {"PYTHONPATH": str(site), "PATH": "", "CC": ""}
        ready, loops = record(tmp_path / f"ready-{name}", **capability, **bare)
        folder = site / "trustlens" / "kernels" / "ready_built"
        assert loops == [folder / f"cpu-{name}.so", folder / f"fused-{name}.so"]
        here, loops = record(tmp_path / f"here-{name}", **capability, CC="cc" + narrower[variant])
        assert {path.parent for path in loops} == {tmp_path / f"here-{name}/cache/trustlens"}
        assert ready == here, variant


@pytest.fixture
def ready_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "ready_built"
    folder.mkdir()
    monkeypatch.setattr(build, "READY_BUILT", folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "loop.c"
    path.write_text("int answer(void) { return 42; }")
    return path


@needs_compiler
@pytest.mark.usefixtures("ready_built")
def test_without_a_prebuilt_library_the_source_is_compiled(source: Path) -> None:
    assert build.load(source).answer() == 42


@needs_compiler
def test_a_source_is_compiled_if_the_prebuilt_library_cannot_be_loaded(
    ready_built: Path, source: Path
) -> None:
    (ready_built / "loop-baseline.so").write_text("this is no library")
    assert build.load(source).answer() == 42


@pytest.mark.parametrize(
    ("capability", "present", "chosen"),
    [
        ("AVX512", ("avx512", "avx2", "baseline"), "avx512"),
        ("AVX2", ("avx512", "avx2", "baseline"), "avx2"),
        ("DEFAULT", ("avx512", "avx2", "baseline"), "baseline"),
        ("SVE256", ("baseline",), "baseline"),
        ("AVX512", ("baseline",), "baseline"),
        ("DEFAULT", ("avx512",), None),
    ],
)
def test_the_widest_variant_that_the_processor_can_run_is_chosen(  # noqa: PLR0917
    ready_built: Path,
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capability: str,
    present: tuple[str, ...],
    chosen: str | None,
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for variant in present:
        (ready_built / f"loop-{variant}.so").touch()
    expected = None if chosen is None else ready_built / f"loop-{chosen}.so"
    assert build.ready_built(source) == expected


@needs_compiler
def test_a_prebuilt_library_is_preferred_over_compiling(
    ready_built: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ready_built / "loop-baseline.so").write_bytes(build.compiled_here(source).read_bytes())
    monkeypatch.setenv("CC", "no-such-compiler")
    assert build.load(source).answer() == 42
    (ready_built / "loop-baseline.so").unlink()
    with pytest.raises(OSError, match="no-such-compiler"):
        build.load(source)


@needs_compiler
def test_the_error_contains_the_compilers_message(ready_built: Path, tmp_path: Path) -> None:
    assert ready_built.is_dir()
    wrong = tmp_path / "wrong.c"
    wrong.write_text("this is not C")
    with pytest.raises(OSError, match=r"(?s)failed: .*wrong\.c.*error"):
        build.load(wrong)
