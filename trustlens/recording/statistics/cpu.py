"""The sums on the CPU by a compiled loop: one read of the tensors, and no temporaries.

The loop is ``cpu.c``. The machine's own C compiler builds it at its first use and the result
is kept in the user's cache folder. Where there is no compiler, or what it built does not count
right, there is no :class:`Compiled`, and the portable sums are used.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from trustlens.recording.directions import Direction
from trustlens.recording.statistics import SUMS, LayerStep
from trustlens.recording.statistics.portable import Portable
from trustlens.recording.statistics.reference import measure as measure_plainly

Loop = Callable[[bytes, int, int, Tensor], None]

_log: Final = logging.getLogger("trustlens")

_SOURCE: Final = Path(__file__).with_name("cpu.c")
_FLAGS: Final = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_ATTEMPTS: Final = (  # from the fastest on; some compilers do not know the first ones
    ("-march=native", "-fopenmp"),
    ("-march=native", "-fopenmp-simd"),
    ("-fopenmp-simd",),
)
_SECONDS: Final = 60  # that a compiler may take

_DTYPES: Final = {torch.float32: 1, torch.float64: 2, torch.bfloat16: 3, torch.float16: 4}
_LAYER: Final = struct.Struct("@6Q8iq9d")  # `Layer` of cpu.c

_NO_NUMBERS: Final = (0.0,) * 9

_PARALLEL: Final = 1 << 20
"""Elements from which on several threads are faster than one."""


class Compiled:
    """Measures with the compiled loop, and portably what it cannot read."""

    name: Final = "cpu"

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._portable = Portable()

    @classmethod
    def if_possible(cls) -> Compiled | None:
        """Return the compiled sums; None where they cannot be had. Built at their first use."""
        loop = _load()
        return None if loop is None else cls(loop)

    def measure(self, steps: Sequence[LayerStep]) -> Tensor:
        """Return the sums of each layer, float64 of shape (layers, len(SUMS)), on the CPU."""
        kept: list[Tensor] = []  # alive until they were read
        packed = [_packed(step, kept) for step in steps]
        sums = torch.empty((len(steps), len(SUMS)), dtype=torch.float64, device="cpu")
        if None not in packed:
            self._run(steps, packed, sums)
        else:
            for i, (step, layer) in enumerate(zip(steps, packed, strict=True)):
                if layer is None:
                    sums[i] = self._portable.measure([step])[0]
                else:
                    self._run([step], [layer], sums[i])
        return sums

    def _run(self, steps: Sequence[LayerStep], packed: Sequence[Any], sums: Tensor) -> None:
        elements = sum(step.after.numel() for step in steps)
        threads = torch.get_num_threads() if elements >= _PARALLEL else 1
        self._loop(b"".join(packed), len(steps), threads, sums)


def _packed(step: LayerStep, kept: list[Tensor]) -> bytes | None:
    """Return a layer as the loop reads it; None if it cannot."""
    form = step.direction
    known = form is not None and step.grad is not None
    numbers = _NO_NUMBERS if form is None else _numbers(form)
    if Tensor in set(map(type, numbers)):  # what lies on an accelerator is not read
        return None
    tensors = (step.after, step.before, step.grad)
    tensors += (None, None, None) if form is None else (form.base, form.variance, form.momentum)
    places = [0] * len(tensors)
    dtypes = [0] * len(tensors)
    for i, tensor in enumerate(tensors):
        if tensor is None:
            continue
        dtype = _DTYPES.get(tensor.dtype)
        if dtype is None or not tensor.is_cpu:
            return None
        # Elements are read in the order of the indices, whatever order they lie in.
        dense = tensor if tensor.is_contiguous() else tensor.contiguous()
        kept.append(dense)
        places[i], dtypes[i] = dense.data_ptr(), dtype
    divides = form is not None and form.divides and form.variance is not None
    return _LAYER.pack(*places, *dtypes, known, divides, step.after.numel(), *numbers)


def _numbers(form: Direction) -> tuple[Any, ...]:
    decay = form.decay or 0.0
    kept = form.kept
    return (
        form.rate,
        form.grad_share,
        form.base_share,
        form.weight_share,
        form.update_share,
        form.variance_share,
        form.epsilon,
        decay,
        1 - form.rate * (form.weight_share + decay) if kept is None else kept,
    )


@functools.cache
def _load() -> Loop | None:
    try:
        loop = _loop(_library())
        _check(Compiled(loop))
    except Exception as error:  # noqa: BLE001 — whatever it is, there is another way
        _log.info("trustlens: the sums are not compiled (%s: %s)", type(error).__name__, error)
        return None
    return loop


def _loop(path: Path) -> Loop:
    function = ctypes.CDLL(str(path)).trustlens_measure
    function.argtypes = (ctypes.c_char_p, ctypes.c_int64, ctypes.c_int, ctypes.c_void_p)

    def loop(layers: bytes, count: int, threads: int, sums: Tensor) -> None:
        if not function(layers, count, threads, sums.data_ptr()):
            raise MemoryError("for the sums of the layers")

    return loop


def _library() -> Path:
    """Return the built loop, building it where this source was not built on this machine yet."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or ""
    if not compiler:
        raise FileNotFoundError("no C compiler")
    source = _SOURCE.read_bytes()
    key = b"\n".join([source, compiler.encode(), _processor().encode(), repr(_ATTEMPTS).encode()])
    name = f"sums-{hashlib.sha256(key).hexdigest()[:20]}.so"
    folder = _cache()
    path = folder / name
    if not path.exists():
        _build(compiler, path)
    return path


def _cache() -> Path:
    """Return a folder of the user's own; where there is none, one for this process."""
    home = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    folder = Path(os.environ.get("XDG_CACHE_HOME") or home) / "trustlens"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="trustlens-"))


def _build(compiler: str, path: Path) -> None:
    # Under a name of its own first: other processes may build it at the same time.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        failed = ""
        for flags in _ATTEMPTS:
            command = [*compiler.split(), *_FLAGS, *flags, str(_SOURCE), "-o", str(made), "-lm"]
            done = subprocess.run(  # noqa: S603 — the user's own compiler
                command, capture_output=True, text=True, timeout=_SECONDS, check=False
            )
            if done.returncode == 0:
                made.replace(path)
                return
            failed = done.stderr.strip()
    raise OSError(f"{compiler} says: {failed[-200:]}")


def _processor() -> str:
    """Return what tells processors apart: a home folder may be that of many machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = ("model name", "flags", "Features")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(told)))


def _check(compiled: Compiled) -> None:
    """Raise ArithmeticError if it does not count right."""
    steps: list[LayerStep] = []
    for size in (3, 5000):  # not of random numbers, which are the training's
        w = torch.linspace(-1, 2, size, dtype=torch.float32, device="cpu")
        g, v = w.cos(), w.square()
        for before in (None, 1.001 * w):
            form = Direction(
                rate=0.01, base=g, base_share=2.0, variance=v, epsilon=1e-3, momentum=g, decay=0.1
            )
            steps.append(LayerStep(before, w, g, form))
        steps.append(LayerStep(w, w, None, None))
    if not torch.allclose(
        compiled.measure(steps), measure_plainly(steps), rtol=1e-5, atol=0, equal_nan=True
    ):
        raise ArithmeticError("the compiled sums are not right")
