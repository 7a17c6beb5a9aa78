"""The cases: what is measured, with how many rounds, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.common.contenders import Trustlens, UsualLoop, contender
from benchmarks.common.measure import Contender, compare
from benchmarks.common.models import Shape, Training, gpt, mnist, mnist_in_a_row, tensors
from benchmarks.overhead import gpu, lamb, rivals, start

GPT = Shape(layers=6, heads=6, width=384, vocabulary=256, batch=8, length=256)
BATCH = 512  # of the article's network

LARGE = [(816, 817)] * 150  # 100 M parameters
HALF = LARGE[:75]  # of which many optimizers, with their states and temporaries, find room
SMALL = [(32, 32)] * 150


@dataclass(frozen=True)
class Case:
    """What is measured; ``run`` takes the number of rounds and returns what was found."""

    what: str
    rounds: int
    run: Callable[[int], dict[str, Any]]
    packages: tuple[str, ...] = ()
    needs_gpu: bool = False


def beside_rivals(
    training: Callable[[], Training],
    rounds: int,
    turn: int,
    in_a_row: Callable[[], Training] | None = None,
) -> dict[str, Any]:
    """Measure trustlens and the usual loop beside a plain training, then each rival beside one."""
    plain = contender("plain", "fused AdamW, nobody looks", training)
    loop = contender("usual loop", "eight norms of each tensor, .item()", training, UsualLoop)
    ours = contender("trustlens", "every step, all sums", training, Trustlens)
    entries = compare([plain, loop, ours], rounds=rounds, turn=turn)
    for rival in rivals.rivals(training, in_a_row):
        entries[rival.name] = one_rival(plain, rival, rounds, turn)
    return {"turn": turn, "contenders": entries}


def one_rival(plain: Contender, rival: Contender, rounds: int, turn: int) -> dict[str, Any]:
    """Measure it in fewer rounds: a rival's cost is large."""
    few = 3 if rival.slow else 10
    turn = 1 if rival.slow else turn
    return compare([plain, rival], rounds=min(rounds, few), turn=turn, warm_up=1)[rival.name]


def step_alone(shapes: list[tuple[int, ...]], rounds: int, turn: int) -> dict[str, Any]:
    """Measure beside an optimizer's step alone, the same gradients each time."""
    make = partial(tensors, shapes)
    plain = contender("plain", "fused AdamW, optimizer.step() only", make)
    loop = contender("usual loop", "eight norms of each tensor, .item()", make, UsualLoop)
    ours = contender("trustlens", "every step, all sums", make, Trustlens)
    return {"turn": turn, "contenders": compare([plain, loop, ours], rounds=rounds, turn=turn)}


def gap(rounds: int) -> dict[str, Any]:
    """Measure the steps that are not recorded."""
    make = partial(tensors, SMALL)
    plain = contender("plain", "fused AdamW, optimizer.step() only", make)
    ours = contender("trustlens", "every=1000", make, partial(Trustlens, every=1000))
    return {"turn": 20, "contenders": compare([plain, ours], rounds=rounds, turn=20)}


CASES: dict[str, Case] = {
    "gpt": Case(
        f"GPT of 10.9 M parameters on the CPU, batch {GPT.batch} of {GPT.length} tokens, "
        "fused AdamW, every step, all sums, writing included",
        rounds=30,
        run=lambda rounds: beside_rivals(partial(gpt, GPT), rounds, turn=2),
        packages=rivals.PACKAGES,
    ),
    "mnist": Case(
        f"MNIST CNN of 0.43 M parameters on the CPU, batch {BATCH}, "
        "fused AdamW, every step, all sums, writing included",
        rounds=100,
        run=lambda rounds: beside_rivals(
            partial(mnist, BATCH), rounds, turn=5, in_a_row=partial(mnist_in_a_row, BATCH)
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
        "steps of 50 layers fed as fast as it goes",
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
        "the device's time for the sums of 1 B parameters, against reading them once at the "
        "bandwidth of a copy",
        rounds=30,
        run=gpu.CASES["gpu-kernel"],
        needs_gpu=True,
    ),
    "gpu-host": Case(
        "the host's time in the hooks, tensors of 32 × 32",
        rounds=100,
        run=gpu.CASES["gpu-host"],
        needs_gpu=True,
    ),
    "gpu-memory": Case(
        "memory beside 100 M parameters under fused AdamW",
        rounds=500,
        run=gpu.CASES["gpu-memory"],
        needs_gpu=True,
    ),
}
