"""Where compiled loops, and files that are not uploaded yet, are stored."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

import pytest
from platformdirs.windows import Windows

from trustlens import cache_folder as module
from trustlens.cache_folder import cache_folder


def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a user without a home, as some containers do."""

    def unknown(_: int) -> Any:
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_it_is_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_home(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "trustlens"


def test_it_is_in_the_home_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "trustlens"


def test_a_user_without_a_home_has_one_for_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_home(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    found = cache_folder()
    assert found.is_dir()
    assert cache_folder() == found
    assert not list(tmp_path.iterdir())  # such as a folder "~"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # nothing can be made below it
    assert cache_folder() == found


def test_a_folder_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    assert tmp_path not in cache_folder().parents


def test_on_windows_it_is_in_the_local_application_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platformdirs.windows.get_win_folder", lambda _: str(tmp_path))
    monkeypatch.setattr(
        module,
        "user_cache_path",
        lambda *given, **options: Windows(*given, **options).user_cache_path,
    )
    monkeypatch.setattr("sys.platform", "win32")
    assert cache_folder() == tmp_path / "trustlens" / "Cache"
