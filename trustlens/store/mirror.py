"""A run on an object store: written on this machine's disk, and copied there file by file.

Each object is put whole and under its own name; none is renamed. What is not there yet stays on the
disk, in a folder of the user's cache (the spool), so that a network that is gone loses nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final

from trustlens.cache import cache_folder
from trustlens.errors import UsageError
from trustlens.schema import TABLES
from trustlens.store.layout import JOURNAL, OVERVIEW, RUN_FILE, read_info, written_whole
from trustlens.store.places import Place, entries, exists, open_input
from trustlens.store.remote import RemotePlace
from trustlens.store.repair import Left, repair

_log: Final = logging.getLogger("trustlens")

INTERVAL: Final = 10.0
"""Seconds between two looks at what is new; what a reader of the store sees is as old at most."""

PATIENCE: Final = 60.0
"""Seconds without progress after which a close gives up: what is left stays in the spool."""

SESSION: Final = "session"
"""What ``RunInfo.recorder`` calls the recording that wrote last: of a run on an object store only.
A spool of another session is of an older state of the run."""

_UPLOADED: Final = ".uploaded.json"
"""The file of a spool that says what of it was uploaded: that is not uploaded again by who resumes
it."""

_CHUNK: Final = 1 << 22  # bytes


@dataclass(frozen=True, slots=True)
class _Local:
    """A file of the spool as it was when it was looked at."""

    size: int
    changed: int


def local_place(directory: Place, *, resume: bool) -> Path:
    """Return where on this machine's disk a run is written; it may be read from its store first.

    Raises
    ------
    UsageError
        There is a run at that address already, and it is not to be resumed.
    RunError
        The object store does not answer, or what is there is no run.
    """
    if isinstance(directory, Path):
        return directory
    return _prepare_spool(directory, resume=resume)


def session_of(directory: Place) -> dict[str, str]:
    """Return what ``RunInfo.recorder`` is to say of a recording that begins now."""
    return {} if isinstance(directory, Path) else {SESSION: uuid.uuid4().hex}


def spool_of(remote: RemotePlace) -> Path:
    """Return the folder on this machine in which a run is written that lies on an object store."""
    digest = hashlib.blake2b(remote.address.encode(), digest_size=6).hexdigest()
    return cache_folder() / "spool" / f"{remote.name}-{digest}"


def _prepare_spool(remote: RemotePlace, *, resume: bool) -> Path:
    """Return the spool of a run, with all that there is of the run if that is to be resumed."""
    spool = spool_of(remote)
    there = exists(remote / RUN_FILE)
    if not resume:
        if there or (spool / RUN_FILE).exists():
            raise UsageError(
                f"'{remote}' already holds a run; give resume=True to go on with it, or record to "
                "another address"
            )
        return spool
    if there and not _is_newest(spool, remote):
        if spool.exists():
            spool.rename(spool.with_name(f"{spool.name}-{time.time_ns()}"))
        _download(remote, spool)
    return spool


def _is_newest(spool: Path, remote: RemotePlace) -> bool:
    if not (spool / RUN_FILE).exists():
        return False
    here, there = (read_info(place).recorder.get(SESSION) for place in (spool, remote))
    return here == there


def _download(remote: RemotePlace, spool: Path) -> None:
    from tqdm.auto import tqdm  # noqa: PLC0415 — not at the start of every training

    files = [
        (f"{folder}/{entry.name}" if folder else entry.name, entry.size)
        for folder in _folders(remote)
        for entry in entries(remote / folder if folder else remote)
        if entry.is_plain
    ]
    with tqdm(
        total=sum(size for _, size in files),
        unit="B",
        unit_scale=True,
        delay=2,
        desc=f"fetching {remote.name}",
    ) as bar:
        for name, _ in sorted(files, key=lambda file: file[0] == RUN_FILE):  # that one last
            path = spool / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_input(remote / name) as source, path.open("wb") as target:
                while chunk := source.read(_CHUNK):
                    target.write(chunk)
                    bar.update(len(chunk))
    _note_uploaded(spool, _files_of(spool))


def _folders(place: Any) -> list[str]:
    levels = [entry.name for entry in entries(place / OVERVIEW) if not entry.is_plain]
    return ["", JOURNAL, *TABLES, *(f"{OVERVIEW}/{level}" for level in levels)]


class Mirror:
    """Copies a run from its spool to an object store, on a thread of its own, until it is closed.

    Parameters
    ----------
    spool : Path
        The run on this machine.
    remote : RemotePlace
        Where it is to be.
    """

    def __init__(self, spool: Path, remote: RemotePlace) -> None:
        self._spool = spool
        self._remote = remote
        self._interval = INTERVAL
        self._patience = PATIENCE
        # What lies there, as it was here; None: it is not known what, or not even whether.
        self._there: dict[str, _Local | None] | None = None
        self._warned = False
        self._progress = time.monotonic()
        self._rounds = 0
        self._wake = threading.Condition()
        self._asked = self._over = False
        self._whole = False
        self._thread = threading.Thread(target=self._run, name="trustlens-mirror", daemon=True)
        self._thread.start()

    def flush(self) -> None:
        """Wait until what is in the spool now is there, as long as an interval at the most."""
        with self._wake:
            target = self._rounds + 2  # one may be on its way
            end = time.monotonic() + self._interval
            while self._rounds < target and time.monotonic() < end:
                self._asked = True
                self._wake.notify_all()
                self._wake.wait(0.05)

    def close(self) -> None:
        """Wait until all is there and take the spool away; if it cannot be, say where it is."""
        with self._wake:
            self._over = True
            self._progress = time.monotonic()
            self._wake.notify_all()
        self._thread.join()
        if self._whole:
            shutil.rmtree(self._spool, ignore_errors=True)
        else:
            _log.warning(
                "trustlens: not all of '%s' could be uploaded; it is whole in '%s'. A recording "
                "that resumes it uploads it, or: trustlens repair '%s'",
                self._remote,
                self._spool,
                self._remote,
            )

    def _run(self) -> None:
        while True:
            with self._wake:
                self._asked, over = False, self._over
            whole = self._round()
            with self._wake:
                self._rounds += 1
                self._wake.notify_all()
                if over:
                    self._whole = whole
                    if whole or time.monotonic() - self._progress > self._patience:
                        return
                    self._wake.wait(min(1.0, self._interval))
                    continue
                self._wake.wait_for(lambda: self._asked or self._over, self._interval)

    def _round(self) -> bool:
        """Copy what is new; return whether all is there."""
        try:
            self._copy()
        except Exception as error:  # noqa: BLE001 — the network may fail in any way
            if not self._warned:
                self._warned = True
                _log.warning(
                    "trustlens: '%s' cannot be written (%s); the rows stay in '%s' and are "
                    "uploaded when it can",
                    self._remote,
                    str(error).splitlines()[0] if str(error) else type(error).__name__,
                    self._spool,
                )
            return False
        return True

    def _copy(self) -> None:
        if self._there is None:
            self._there = dict(self._known())
            _note_uploaded(self._spool, self._there)
        try:
            self._make_same(self._there, _files_of(self._spool))
        finally:
            _note_uploaded(self._spool, self._there)

    def _make_same(self, there: dict[str, _Local | None], here: dict[str, _Local]) -> None:
        # What was made of rows that are replaced goes first: nobody is to see it beside the new.
        changed = [name for name in there if there[name] != here.get(name)]
        replaced = [name for name in changed if name.startswith("layers/")]
        if replaced or None in there.values():
            self._delete(there, [name for name in changed if name.startswith(OVERVIEW)])
        # What is sealed before its journal: a reader that sees a journal gone then sees its rows.
        # What lost rows before what has these rows anew, whose number is higher. What is no longer
        # here goes last, when all that has its rows is there.
        for name in sorted(
            here, key=lambda name: (name == RUN_FILE, name.startswith(JOURNAL), name)
        ):
            if there.get(name) != here[name]:
                with suppress(FileNotFoundError):  # sealed meanwhile: it comes in the next round
                    self._put(name)
                    there[name] = here[name]
                    self._progress = time.monotonic()
        self._delete(there, [name for name in there if name not in here])

    def _known(self) -> Iterator[tuple[str, _Local | None]]:
        """Yield what lies there and need not be put again, and what perhaps is not to stay."""
        uploaded = _uploaded(self._spool)
        if uploaded is None and not exists(self._remote / RUN_FILE):
            return  # nobody began to upload it
        for folder in _folders(self._remote):
            for entry in entries(self._remote / folder if folder else self._remote):
                name = f"{folder}/{entry.name}" if folder else entry.name
                local = uploaded.get(name) if uploaded else None
                if local is not None and local.size == entry.size:
                    yield name, local
                elif folder.startswith((JOURNAL, OVERVIEW)) and entry.is_plain:
                    yield name, None

    def _delete(self, there: dict[str, _Local | None], names: list[str]) -> None:
        for name in names:
            with suppress(FileNotFoundError):
                self._remote.filesystem.delete_file((self._remote / name).path)
            del there[name]

    def _put(self, name: str) -> None:
        target = self._remote / name
        data = (self._spool / name).read_bytes()
        try:
            stream = self._remote.filesystem.open_output_stream(target.path)
        except FileNotFoundError:  # it has folders of its own, as object stores do not
            self._remote.filesystem.create_dir(target.path.rsplit("/", 1)[0], recursive=True)
            stream = self._remote.filesystem.open_output_stream(target.path)
        with stream:
            stream.write(data)


def _files_of(spool: Path) -> dict[str, _Local]:
    return {
        f"{folder}/{entry.name}" if folder else entry.name: _Local(entry.size, entry.changed)
        for folder in _folders(spool)
        for entry in entries(spool / folder if folder else spool)
        if entry.is_plain and not entry.name.startswith(".")
    }


def _uploaded(spool: Path) -> dict[str, _Local] | None:
    """Return what of a spool was uploaded already, as a process before this one noted it if any."""
    try:
        noted: Any = json.loads((spool / _UPLOADED).read_bytes())
        return {str(name): _Local(*map(int, local)) for name, local in noted.items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _note_uploaded(spool: Path, there: Mapping[str, _Local | None]) -> None:
    noted = {name: astuple(local) for name, local in there.items() if local is not None}
    with suppress(OSError), written_whole(spool / _UPLOADED) as temporary:
        temporary.write_text(json.dumps(noted), encoding="utf-8")


def repair_spool(remote: RemotePlace) -> list[Left]:
    """Seal what a dead process left in its spool, and upload what is not on the object store yet.

    Raises
    ------
    UsageError
        There is no spool of that run on this machine, or it is being recorded.
    """
    spool = spool_of(remote)
    if not (spool / RUN_FILE).exists():
        raise UsageError(
            f"nothing of '{remote}' is left on this machine; if its recording broke off, repair it "
            "on the machine that recorded it"
        )
    found = repair(spool)
    Mirror(spool, remote).close()
    return found
