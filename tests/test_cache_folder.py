"""The user's cache folder."""

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
    """Simulate a user without a home directory, as in some containers."""

    def unknown(_: int) -> Any:
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_xdg_cache_home_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_home(monkeypatch)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "trustlens"


def test_the_default_is_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "trustlens"


def test_a_user_without_a_home_gets_a_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_home(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    found = cache_folder()
    assert found.is_dir()
    assert cache_folder() == found
    assert not list(tmp_path.iterdir())  # not even a folder "~"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(
        "XDG_CACHE_HOME", str(tmp_path / "file")
    )  # no folder can be created in a file
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
        lambda *arguments, **options: Windows(*arguments, **options).user_cache_path,
    )
    monkeypatch.setattr("sys.platform", "win32")
    assert cache_folder() == tmp_path / "trustlens" / "Cache"
