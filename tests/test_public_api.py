"""The public names of `trustlens`: complete, importable, and visible to type checkers."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import trustlens

PUBLIC = {
    "Listener", "Recorder", "Run", "TrustlensError", "__version__", "dataset", "export", "figures",
    "find_runs", "open_run", "optim", "record",
}  # fmt: skip


def test_the_public_names_are_complete_and_importable() -> None:
    assert set(trustlens.__all__) == PUBLIC
    assert len(trustlens.__all__) == len(PUBLIC)
    assert set(dir(trustlens)) >= PUBLIC
    for name in PUBLIC:
        assert getattr(trustlens, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'quantity'"):
        trustlens.quantity  # noqa: B018


def test_type_checkers_see_every_name_in_its_module() -> None:
    source = Path(trustlens.__file__).read_text(encoding="utf-8")
    seen = {
        alias.asname: node.module
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert set(seen) == PUBLIC
    for name, module in seen.items():
        found = getattr(trustlens, name)
        assert module is not None
        assert getattr(found, "__module__", module) == module, name
