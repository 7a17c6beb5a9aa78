"""The cases of the benchmark of recording."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.common.contenders import Trustlens, UsualLoop, contender
from benchmarks.common.measure import Contender, compare
from benchmarks.common.models import Shape, Training, gpt, mnist, mnist_sequential, tensors
from benchmarks.overhead import gpu, lamb, rivals, start

GPT = Shape(layers=6, heads=6, width=384, vocabulary=256, batch=8, length=256)
BATCH = 512  # of the article's network

LARGE = [(816, 817)] * 150  # 100 M parameters
HALF = LARGE[:75]  # small enough for the states and temporaries of every optimizer
SMALL = [(32, 32)] * 150


@dataclass(frozen=True)
class Case:
    """A case: what it measures, and ``run``, which takes a number of rounds and returns results."""

    what: str
    rounds: int
    run: Callable[[int], dict[str, Any]]
    packages: tuple[str, ...] = ()
    needs_gpu: bool = False


def compare_with_rivals(
    training: Callable[[], Training],
    rounds: int,
    turn: int,
    sequential: Callable[[], Training] | None = None,
) -> dict[str, Any]:
    """Compare trustlens and the usual loop with a plain training, then each rival with one."""
    plain = contender("plain", "fused AdamW, not observed", training)
    loop = contender("usual loop", "eight norms of each tensor, .item()", training, UsualLoop)
    ours = contender("trustlens", "every step, all sums", training, Trustlens)
    entries = compare([plain, loop, ours], rounds=rounds, turn=turn)
    for rival in rivals.rivals(training, sequential):
        entries[rival.name] = compare_rival(plain, rival, rounds, turn)
    return {"turn": turn, "contenders": entries}


def compare_rival(plain: Contender, rival: Contender, rounds: int, turn: int) -> dict[str, Any]:
    """Compare a rival with a plain training, in fewer rounds: its cost is large."""
    few = 3 if rival.slow else 10
    turn = 1 if rival.slow else turn
    return compare([plain, rival], rounds=min(rounds, few), turn=turn, warm_up=1)[rival.name]


def step_alone(shapes: list[tuple[int, ...]], rounds: int, turn: int) -> dict[str, Any]:
    """Compare trustlens and the usual loop with the optimizer's step alone, on fixed gradients."""
    make = partial(tensors, shapes)
    plain = contender("plain", "fused AdamW, optimizer.step() only", make)
    loop = contender("usual loop", "eight norms of each tensor, .item()", make, UsualLoop)
    ours = contender("trustlens", "every step, all sums", make, Trustlens)
    return {"turn": turn, "contenders": compare([plain, loop, ours], rounds=rounds, turn=turn)}


def gap(rounds: int) -> dict[str, Any]:
    """Measure steps that are not recorded."""
    make = partial(tensors, SMALL)
    plain = contender("plain", "fused AdamW, optimizer.step() only", make)
    ours = contender("trustlens", "every=1000", make, partial(Trustlens, every=1000))
    return {"turn": 20, "contenders": compare([plain, ours], rounds=rounds, turn=20)}


CASES: dict[str, Case] = {
    "gpt": Case(
        f"GPT of 10.9 M parameters on the CPU, batch {GPT.batch} of {GPT.length} tokens, "
        "fused AdamW, every step, all sums, writing included",
        rounds=30,
        run=lambda rounds: compare_with_rivals(partial(gpt, GPT), rounds, turn=2),
        packages=rivals.PACKAGES,
    ),
    "mnist": Case(
        f"MNIST CNN of 0.43 M parameters on the CPU, batch {BATCH}, "
        "fused AdamW, every step, all sums, writing included",
        rounds=100,
        run=lambda rounds: compare_with_rivals(
            partial(mnist, BATCH), rounds, turn=5, sequential=partial(mnist_sequential, BATCH)
        ),
        packages=rivals.PACKAGES,
    ),
    "large": Case(
        "100 M parameters in 150 tensors on the CPU, fused AdamW's step alone",
        rounds=40,
        run=lambda rounds: step_alone(LARGE, rounds, turn=2),
    ),
    "small": Case(
        "150 tensors of 32 × 32 on the CPU, fused AdamW's step alone",
        rounds=100,
        run=lambda rounds: step_alone(SMALL, rounds, turn=20),
    ),
    "gap": Case(
        "150 tensors of 32 × 32 on the CPU, a step that is not recorded (every=1000)",
        rounds=200,
        run=gap,
    ),
    "start": Case(
        "importing after torch and an optimizer; record() for 150 layers; close() after 20,000 "
        "steps of 50 layers recorded as fast as possible",
        rounds=11,
        run=start.measure,
    ),
    "lamb": Case(
        "50 M parameters in 75 tensors on the CPU, the optimizer's step alone",
        rounds=30,
        run=lambda rounds: {"contenders": lamb.measure(HALF, rounds)},
        packages=lamb.PACKAGES,
    ),
    "gpu-gpt2": Case(
        f"GPT-2 of 124 M parameters, bfloat16 autocast, batch {gpu.GPT2.batch} × "
        f"{gpu.GPT2.length}, fused AdamW, every step, all sums, writing included",
        rounds=20,
        run=gpu.CASES["gpu-gpt2"],
        needs_gpu=True,
    ),
    "gpu-kernel": Case(
        "device time for the sums of 1 B parameters, relative to reading them once at copy "
        "bandwidth",
        rounds=30,
        run=gpu.CASES["gpu-kernel"],
        needs_gpu=True,
    ),
    "gpu-host": Case(
        "host time in the hooks, tensors of 32 × 32",
        rounds=100,
        run=gpu.CASES["gpu-host"],
        needs_gpu=True,
    ),
    "gpu-memory": Case(
        "memory of a recorder of 100 M parameters, fused AdamW",
        rounds=500,
        run=gpu.CASES["gpu-memory"],
        needs_gpu=True,
    ),
}
