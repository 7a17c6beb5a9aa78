"""Packages that each module imports in a fresh process, and the content of the wheel.

The order of imports between our modules is checked statically by ``make lint``: see
``tool.importlinter`` in pyproject.toml.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = {"trustlens": REPOSITORY, "trustlens_dashboard": REPOSITORY / "dashboard"}

FORBIDDEN = {
    # read side: no torch; write side: no plotly, dash or pandas
    "torch": ("trustlens.store", "trustlens.diagnosis", "trustlens.analysis", "trustlens.figures",
              "trustlens.export", "trustlens.cli", "trustlens.element_bins",
              "trustlens.trust_ratio", "trustlens_dashboard"),
    "plotly": ("trustlens.optim", "trustlens.store", "trustlens.recording", "trustlens.analysis"),
    "dash": ("trustlens",),
    "pandas": ("trustlens.optim", "trustlens.store", "trustlens.diagnosis", "trustlens.recording"),
    "pyarrow": ("trustlens.diagnosis",),
}  # fmt: skip


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted((folder / package).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_module_imports_a_forbidden_package(package: str) -> None:
    chosen = [
        module
        for module, _ in modules()
        if f"{module}.".startswith(tuple(f"{name}." for name in FORBIDDEN[package]))
        and module != "trustlens"
        and not module.endswith(".__main__")
        # Triton is installed only with PyTorch's GPU builds.
        and (".triton_" not in module or importlib.util.find_spec("triton"))
    ]
    code = f"""
        import importlib, json, sys
        offenders = []
        for module in {chosen}:
            importlib.import_module(module)
            if {package!r} in sys.modules:
                offenders.append(module)
                break
        print(json.dumps(offenders))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []


def test_importing_trustlens_imports_no_slow_package() -> None:
    heavy = {"torch", "pandas", "numpy", "pyarrow", "plotly", "dash"}
    code = f"import trustlens, sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("options", ["", "histograms_every=2", "precision=12", "resume=True"])
@pytest.mark.parametrize("logged", [False, True])
def test_a_recording_does_not_import_pandas(tmp_path: Path, options: str, logged: bool) -> None:
    """Some pyarrow functions import pandas, which would delay the training by about 0.2 s."""
    code = f"""
        import sys, torch, trustlens
        import trustlens.store.writer
        trustlens.store.writer.SEGMENT_ROWS = 4  # so that overview files are merged
        parameter = torch.nn.Parameter(torch.ones(300))
        optimizer = torch.optim.AdamW([parameter])
        for more in range(1 + ("resume" in {options!r})):
            with trustlens.record(optimizer, sys.argv[1], {options}) as recorder:
                for step in range(80):
                    parameter.grad = torch.ones(300) if step != 1 else None
                    optimizer.step()
                    if {logged}:
                        recorder.log(loss=1.0)
        assert "pandas" not in sys.modules
        assert len(trustlens.open_run(sys.argv[1]).layers()) >= 80
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), tmp_path / "run"], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, "."],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("trustlens_optim-*.whl")
    return path


def test_the_wheel_contains_exactly_what_users_need(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "trustlens/py.typed" in names
    assert any(name.startswith("trustlens/recorded/") for name in names)
    assert "trustlens/figures/ridgelines/canvas/ridgelines.js" in names
    assert any(
        name.startswith("trustlens_dashboard/assets/") and name.endswith(".js") for name in names
    )
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    assert wheel.name.endswith("-py3-none-any.whl"), "compiled loops only on request"
    assert not any(name.endswith(".so") for name in names)
    assert wheel.stat().st_size < 5 * 2**20


def test_the_wheel_works_without_optional_packages(wheel: Path, tmp_path: Path) -> None:
    """Reading and the command line work without torch, plotly, dash and tensorboard.

    The wheel is unpacked into a folder, and these packages are blocked in ``sys.modules``, so that
    the test needs no network.
    """
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = """
        import sys

        # Makes importing these packages fail:
        sys.modules |= dict.fromkeys({"torch", "plotly", "dash", "tensorboard"})
        import trustlens
        from trustlens.cli import main
        from trustlens.cli.demo import recorded_runs
        assert trustlens.__file__.startswith(sys.argv[1]), trustlens.__file__
        runs = trustlens.find_runs(recorded_runs())
        assert str(runs[0]).startswith(sys.argv[1]), runs
        assert len(trustlens.open_run(runs[0]).layers()) > 0
        assert main(["list", str(recorded_runs())]) == 0
        assert main(["show", str(runs[0])]) == 0
        assert main(["doctor", sys.argv[1]]) == 0
        assert main(["demo", "--no-browser"]) == 2
        assert main(["export", "tensorboard", str(runs[0]), sys.argv[1] + "/tb"]) == 2
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(site)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 'trustlens-optim[dashboard]'" in done.stderr
    assert "pip install 'trustlens-optim[tensorboard]'" in done.stderr


def test_the_recorder_runs_without_the_packages_of_the_read_side(tmp_path: Path) -> None:
    code = """
        import sys

        # Makes importing these packages fail:
        sys.modules |= dict.fromkeys({"plotly", "dash", "pandas", "tensorboard"})
        import torch, trustlens
        model = torch.nn.Linear(2, 2)
        optimizer = trustlens.optim.Lamb(model.parameters())
        with trustlens.record(optimizer, sys.argv[1], model=model) as recorder:
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "run")], check=True)
    assert (tmp_path / "run" / "layers" / "000000.parquet").exists()
