"""Where what is built and what is not uploaded yet is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from trustlens.cache_folder import cache_folder


def nobody() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_it_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "trustlens"


def test_a_user_without_a_home_has_one_for_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", nobody)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    found = cache_folder()
    assert found.is_dir()
    assert cache_folder() == found
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # nothing can be made below it
    assert cache_folder() == found
