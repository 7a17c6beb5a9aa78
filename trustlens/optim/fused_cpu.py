"""Fused steps of LAMB and LARS on the CPU: calls of the compiled loop in ``fused.c``."""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from trustlens.kernels.build import load
from trustlens.kernels.sums import SUMS, columns_of
from trustlens.optim.foreach import to_float

_log: Final = logging.getLogger("trustlens")

_SOURCE: Final = Path(__file__).with_name("fused.c")

LAMB: Final = 0
"""Number of LAMB's first pass in the enum of ``fused.c``. Its second pass has the next number."""
LARS: Final = 2
"""Number of the first pass of LARS. Its second pass has the next number."""
_GRADIENTS: Final = 4

DEBIAS: Final[Mapping[bool | str, int]] = {False: 0, True: 1, "rate": 2, "first": 3}
"""Maps the option ``debias`` of `Lamb` to ``Options.debias``."""

_COLUMNS: Final = {  # positions of the fields of struct `Layer` in fused.c
    "weight": 0,
    "grad": 1,
    "exp_avg": 2,
    "momentum_buffer": 2,
    "exp_avg_sq": 3,
    "step": 4,
    "trust_ratio": 5,
    "size": 6,
}
_MOMENTUM_SUMS: Final = columns_of("momentum")
_VARIANCE_SUMS: Final = columns_of("variance")

_PARALLEL: Final = 1 << 20
"""Number of elements from which several threads are faster than one."""


class _Options(ctypes.Structure):
    """The struct ``Options`` of fused.c."""

    _fields_ = (
        ("rate", ctypes.c_double),
        ("beta1", ctypes.c_double),
        ("beta2", ctypes.c_double),
        ("epsilon", ctypes.c_double),
        ("decay", ctypes.c_double),
        ("kept", ctypes.c_double),
        ("divisor", ctypes.c_double),
        ("debias", ctypes.c_int32),
        ("decays_inside", ctypes.c_int32),
        ("ratio_before_decay", ctypes.c_int32),
        ("ratio_of_sum", ctypes.c_int32),
    )


@dataclass(slots=True)
class Options:
    """The options of a parameter group in one step, for `Rows` here and in fused_cuda.py.

    ``beta1`` is β₁ of LAMB or the momentum of LARS. Numbers may be tensors of one element.
    """

    rate: float | Tensor
    beta1: float | Tensor
    beta2: float | Tensor = 0.0
    epsilon: float | Tensor = 0.0
    decay: float | Tensor = 0.0
    divisor: float | Tensor = 1.0  # the gradients are divided by this
    debias: int = 0
    decays_inside: bool = True  # if False, w is decayed before the step
    ratio_before_decay: bool = True  # whether the ratio uses ‖w‖ before this decay
    ratio_of_sum: bool = False  # whether the ratio of LARS uses ‖g‖; else ‖g + λw‖

    def packed(self) -> _Options:
        """Return the options as the struct that the loop reads.

        This waits for a device if an option is a tensor there.
        """
        rate, decay = to_float(self.rate), to_float(self.decay)
        return _Options(
            rate=rate,
            beta1=to_float(self.beta1),
            beta2=to_float(self.beta2),
            epsilon=to_float(self.epsilon),
            decay=decay,
            kept=1.0 if self.decays_inside else 1 - rate * decay,
            divisor=to_float(self.divisor),
            debias=self.debias,
            decays_inside=self.decays_inside and decay != 0,
            ratio_before_decay=self.ratio_before_decay,
            ratio_of_sum=self.ratio_of_sum,
        )


class Rows:
    """n parameters of one group that are stepped together on the CPU; each has a gradient.

    `trustlens.optim.fused` creates the instances. `Lamb` and `Lars` call :meth:`step`.

    Parameters
    ----------
    params : list of Tensor
        Dense contiguous parameters, whose dtypes are in ``dtypes``. If the step is measured,
        ``optimizer.measured`` contains this list itself, not a copy.
    entries : mapping of str to list of Tensor
        The state entries that the step reads or writes, by name: one tensor for each parameter.
    """

    dtypes: Final = frozenset({torch.float32})

    def __init__(self, params: list[Tensor], entries: Mapping[str, list[Tensor]]) -> None:
        self.params = params
        self._packed = np.zeros((len(params), len(set(_COLUMNS.values()))), np.int64)
        self._packed[:, _COLUMNS["size"]] = [p.numel() for p in params]
        for name, tensors in {"weight": params, **entries}.items():
            self._packed[:, _COLUMNS[name]] = list(map(Tensor.data_ptr, tensors))

    def set_gradients(self, grads: list[int]) -> None:
        """Set the addresses of the gradients for the next step."""
        self._packed[:, _COLUMNS["grad"]] = grads

    def grad_norms(self) -> Tensor:
        """Return the norms of the gradients, float64 of shape (n,)."""
        squares = _zeros(len(self.params), 2)
        self._run(_GRADIENTS, _Options(), squares, None, None)
        return squares[:, 0].sqrt()

    def step(
        self,
        optimizer: int,
        options: Options,
        ratios: Callable[[Tensor, Tensor], Tensor],
        *,
        measures: bool,
    ) -> Tensor | None:
        """Step the parameters.

        Parameters
        ----------
        optimizer : int
            ``LAMB`` or ``LARS``.
        options : Options
            Options of the group.
        ratios : callable
            Takes the norms of the weights and of the directions and returns the trust ratios, all
            float64 of shape (n,).
        measures : bool
            Whether to return the recorded sums.

        Returns
        -------
        Tensor, optional
            The recorded sums, float64 of shape (n, len(SUMS)); None if ``measures`` is False.
        """
        sums = self._initial_sums(optimizer) if measures else None
        packed = options.packed()
        squares = _zeros(len(self.params), 2)
        self._run(optimizer, packed, squares, None, sums)
        weight_norms, direction_norms = squares.sqrt_().unbind(1)
        applied = ratios(weight_norms, direction_norms).contiguous()
        self._run(optimizer + 1, packed, None, applied, sums)
        increment_version(self.params)
        return sums

    def _initial_sums(self, optimizer: int) -> Tensor:
        """Return zeros to which the loop adds; NaN for sums of averages that LARS does not have."""
        sums = _zeros(len(self.params), len(SUMS))
        if optimizer == LARS:
            sums[:, _VARIANCE_SUMS] = torch.nan
            if not self._packed[0, _COLUMNS["momentum_buffer"]]:
                sums[:, _MOMENTUM_SUMS] = torch.nan
        return sums

    def _run(
        self,
        pass_number: int,
        options: _Options,
        squares: Tensor | None,
        ratios: Tensor | None,
        sums: Tensor | None,
    ) -> None:
        loop = library()
        if loop is None:
            raise RuntimeError("the C loop of the fused step could not be built")
        elements = int(self._packed[:, _COLUMNS["size"]].sum())
        done = loop.trustlens_pass(
            pass_number,
            self._packed.ctypes.data,
            len(self._packed),
            ctypes.addressof(options),
            torch.get_num_threads() if elements >= _PARALLEL else 1,
            *(None if t is None else t.data_ptr() for t in (squares, ratios, sums)),
        )
        if not done:
            raise MemoryError("not enough memory for the step of the optimizer")


@functools.cache
def library() -> ctypes.CDLL | None:
    """Return the library with the compiled loop; the first call builds it.

    Return None if the loop cannot be built or computes a wrong step.
    """
    try:
        loop = load(_SOURCE)
        pointer = ctypes.c_void_p
        loop.trustlens_pass.argtypes = (
            *(ctypes.c_int, pointer, ctypes.c_int64, pointer, ctypes.c_int),
            *(pointer, pointer, pointer),
        )
        _check(loop)
    except Exception as error:  # noqa: BLE001 — foreach operations work in any case
        _log.info("trustlens: no fused step (%s: %s)", type(error).__name__, error)
        return None
    return loop


def _check(loop: ctypes.CDLL) -> None:
    """Raise ArithmeticError if the loop computes a wrong step."""
    # No random tensors: drawing them would change the random numbers of the training.
    w = torch.linspace(-1, 2, 19, dtype=torch.float32, device="cpu")
    g, m, v, expected = w.cos(), torch.zeros_like(w), torch.zeros_like(w), w.clone()
    step, ratio = (torch.zeros((), dtype=torch.float32, device="cpu") for _ in range(2))
    # There are 19 elements, so that the last ones do not fill a vector.
    layer = np.array([[t.data_ptr() for t in (w, g, m, v, step, ratio)] + [19]], np.int64)
    options = _Options(
        rate=0.5, beta1=0.9, beta2=0.99, epsilon=1e-3, decay=0.1, kept=1, divisor=1, debias=1,
        decays_inside=1,
    )  # fmt: skip
    squares, ratios = _zeros(1, 2), torch.full((1,), 2.0, dtype=torch.float64, device="cpu")
    given = (layer.ctypes.data, 1, ctypes.addressof(options), 1)
    loop.trustlens_pass(LAMB, *given, squares.data_ptr(), None, None)
    loop.trustlens_pass(LAMB + 1, *given, None, ratios.data_ptr(), None)
    u = g / (g.abs() + 1e-3) + 0.1 * expected
    norms = torch.stack([expected.square().sum(), u.square().sum()]).double()
    stepped = torch.allclose(w, expected - u, rtol=1e-5, atol=1e-5) and step == 1 and ratio == 2
    if not (stepped and torch.allclose(squares[0], norms, rtol=1e-5)):
        raise ArithmeticError("the compiled step gives wrong results")


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device="cpu")
