"""The fixture over all tests: it fails a test that leaks, of each kind, and no other."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ET
from pathlib import Path

TESTS = """
    import threading
    import time

    import torch
    import trustlens
    from torch.amp.grad_scaler import GradScaler
    from torch.optim.optimizer import register_optimizer_step_post_hook
    from torch.nn.modules.module import register_module_forward_hook

    left = []

    def optimizer():
        left.append(torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1))
        return left[-1]

    def test_clean(tmp_path, monkeypatch):
        monkeypatch.setattr(GradScaler, "update", lambda self: None)
        monkeypatch.setattr(torch, "equal", None)
        threading.Thread(target=time.sleep, args=[0.3], name="trustlens-short").start()
        with trustlens.record(optimizer(), tmp_path / "run"):
            left[-1].step()

    def test_recorder(tmp_path):
        left.append(trustlens.record(optimizer(), tmp_path / "run"))

    def test_hook_of_all_optimizers():
        register_optimizer_step_post_hook(lambda *_: None)

    def test_hook_of_all_modules():
        register_module_forward_hook(lambda *_: None)

    def test_thread():
        threading.Thread(target=time.sleep, args=[60], name="trustlens-x", daemon=True).start()

    def test_patched_scaler():
        GradScaler.update = lambda self: None

    def test_patched_function():
        torch.nn.utils.clip_grad_norm_ = lambda *_: None

    def test_clean_after_leaks():
        pass
"""

EXPECTED = {
    "test_clean": "",
    "test_recorder": "an open recorder of SGD, hooks of an optimizer, the thread trustlens-writer, "
    "GradScaler.step is patched",
    "test_hook_of_all_optimizers": "a hook in torch.optim.optimizer._global_optimizer_post_hooks",
    "test_hook_of_all_modules": "a hook in torch.nn.modules.module._global_forward_hooks",
    "test_thread": "the thread trustlens-x",
    "test_patched_scaler": "GradScaler.update is patched",
    "test_patched_function": "torch.nn.utils.clip_grad_norm_ is patched",
    "test_clean_after_leaks": "",
}


def test_a_test_that_leaks_fails(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(textwrap.dedent(TESTS))
    report = tmp_path / "report.xml"
    subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "tests.support.leaks", "-p", "no:dash"),
            *("-p", "no:cacheprovider", "--junit-xml", report, "--rootdir", tmp_path, tmp_path),
        ],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    found: dict[str, str] = {}
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 — pytest wrote it
        assert case.find("failure") is None, "only the fixture fails"
        error = case.find("error")
        text = "" if error is None else error.attrib["message"]
        found[case.attrib["name"]] = text.partition("left behind: ")[2].partition("\n")[0]
    assert found == EXPECTED
