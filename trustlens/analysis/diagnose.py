"""Which layers left their own past: a simple rule that ranks them.

1. Each layer is compared with itself only, once it has 32 recorded steps. Its signals are its
   update ratio ‖Δw‖/‖w‖ and its direction ratio r₂/r₁ (the update ratio at rate 1, which still
   speaks where LAMB or LARS hold the first one fixed). The rate that the layers have in common
   is divided out of the first: a warm-up or schedule is no fault, one group's own jump is.
2. Baseline: the median of the signal's logarithm over the second half of the layer's past, and
   a spread: from there to its 90 % point, as of a normal curve, at least 0.1. Steps
   of an alarm stay out of it, and during an alarm it is frozen. As the window grows with the
   past, a trend that follows any power of time stays below 2 spreads.
3. "exploding": 10 spreads above the baseline; or a weight norm 6 times its low (10 %) point in
   that window, which exponential growth reaches and no power of time up to the third.
   "vanishing": a thousandth of its high (90 %) point in that window, 10 steps long. "frozen":
   an update of 0 likewise, or 10 gradients of 0 after 10, and half of all, that were not.
   "not finite": an element of g or w, or a norm, is NaN or infinite; this needs no past.
4. Score: the logarithm of the departure over that of the alarm's level. An alarm begins where
   the score last rose above a half. Blame goes to that onset: alarms that overlap in time are
   one event, events are ranked by the worst score in them, layers within one by their onset.

A long run, whose rows are too many to be read, is judged likewise by the largest values of up to
2,048 stretches of steps in place of steps; an onset is then the first step of a stretch.

What it cannot see: a layer that was wrong from its first steps on, since it has no other past,
and what leaves the norms as they are, as a gradient of the wrong sign does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

if TYPE_CHECKING:
    from trustlens.analysis.run import Run

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

LEAST_PAST: Final = 32  # recorded steps before a layer is judged by its past
UNITS: Final = 10.0  # of spread above the baseline
LEAST_SPREAD: Final = 0.1  # natural logarithm: 10 %
FALL: Final = np.log(1000.0)
FALL_STEPS: Final = 10
GROWTH: Final = np.log(6.0)
SAMPLES: Final = 128  # of the past that a baseline is taken from
STRETCHES: Final = 2048  # of steps, in which a long run is judged
CALM: Final = 10  # quiet recorded steps after which an alarm is over
Z90: Final = 1.2816  # the 90 % point of the normal distribution

COLUMNS: Final = ("step", "layer", "kind", "score", "evidence")
NEEDED: Final = (
    "weight_norm", "update_norm", "direction_norm", "grad_norm", "learning_rate", "nonfinite",
)  # fmt: skip


@dataclass(frozen=True)
class _Rows:
    """The columns of a run as steps × layers, NaN where there is no value."""

    steps: NDArray[np.int64]
    layers: list[str]
    values: dict[str, Array]

    def __getitem__(self, name: str) -> Array:
        return self.values[name]


@dataclass(frozen=True)
class _Signal:
    """What one rule says, all of shape (steps, layers): 1 is where its alarm begins."""

    kind: str
    name: str
    score: Array
    value: Array  # what was seen, and
    usual: Array  # what was usual, both as they are, not as logarithms


@dataclass(frozen=True)
class _Episode:
    """One alarm of one layer, from the row of its onset to that of its last step."""

    layer: int
    first: int
    last: int


def diagnose(run: Run) -> pd.DataFrame:
    """Rank the layers by how far they left their own past; see the module for the rule.

    Parameters
    ----------
    run : Run
        Any recorded run, also one that is being recorded.

    Returns
    -------
    DataFrame
        One row for each layer that has a finding (its worst episode), most suspect first; empty
        for a healthy run. ``step`` (int64) of onset, ``layer``, ``kind`` ("not finite",
        "exploding", "vanishing" or "frozen"), ``score`` (float64: how far it went, as a multiple
        of where the alarm begins; infinite if not finite), ``evidence`` in words.
    """
    rows = _read(run)
    if not len(rows.steps) or not rows.layers:
        return _frame([])
    with np.errstate(all="ignore"):  # 0/0 and inf − inf are NaN here: not known
        signals = [*_upward(rows), _growth(rows), *_downward(rows), _not_finite(rows)]
    score = np.stack([np.nan_to_num(s.score, nan=0.0, posinf=np.inf) for s in signals])
    worst = score.max(axis=0)
    alarm = np.logical_or.reduce([_alarm(each) for each in score])
    episodes = _episodes(alarm, gap=CALM)
    broken = ~np.isfinite(rows["weight_norm"])
    findings: list[tuple[int, str, str, float, str]] = []
    named: set[int] = set()
    for event in _events(episodes, worst):
        event.sort(key=lambda e: _blame(e, worst, broken))
        for episode in event:
            if episode.layer not in named:
                named.add(episode.layer)
                findings.append(_finding(episode, rows, signals, score))
    return _frame(findings)


def verdict(findings: pd.DataFrame, run: Run) -> str:
    """Return what `diagnose` found as one short line, for lists of runs."""
    if not len(findings):
        return "no steps" if not run.last_step else "no layer left its past"
    first = findings.iloc[0]
    others = len(findings) - 1
    more = f", then {others} other layer{'s' if others > 1 else ''}" if others else ""
    return f"{first['layer']} {first['kind']} from step {first['step']}{more}"


def _frame(findings: list[tuple[int, str, str, float, str]]) -> pd.DataFrame:
    frame = pd.DataFrame(findings, columns=pd.Index(COLUMNS))
    return frame.astype({"step": np.int64, "score": np.float64})


def _read(run: Run) -> _Rows:
    if run.is_long:
        return _read_largest(run)
    table = run.layers(NEEDED)
    steps, row = np.unique(table["step"].to_numpy(), return_inverse=True)
    column = table["layer"].cat.codes.to_numpy()
    values: dict[str, Array] = {}
    for name in NEEDED:
        values[name] = np.full((len(steps), len(run.layer_names)), np.nan)
        values[name][row, column] = table[name].to_numpy(np.float64)
    return _Rows(steps, run.layer_names, values)


def _read_largest(run: Run) -> _Rows:
    """Read the largest values of stretches of steps, each by the name of its first step."""
    read = run.overviews(NEEDED, STRETCHES)
    some = np.logical_or.reduce([each.rows.any(axis=1) for each in read.values()])
    values: dict[str, Array] = {}
    for name, each in read.items():
        largest = each.mean if each.high is None else each.high
        values[name] = np.where(each.finite < each.rows, np.inf, largest)[some]
    return _Rows(next(iter(read.values())).steps[some], run.layer_names, values)


def _upward(rows: _Rows) -> list[_Signal]:
    """Judge whether update ratio and direction ratio are far above their past."""
    signals: list[_Signal] = []
    for name, above in (("update ratio", "update_norm"), ("direction ratio", "direction_norm")):
        ratio = rows[above] / rows["weight_norm"]
        value = np.log(ratio)
        if above == "update_norm":
            value -= _common_rate(rows)
        score, usual = _follow(value, _above)
        factor = np.exp(usual - value)
        signals.append(_Signal("exploding", name, score, ratio, ratio * factor))
    return signals


def _growth(rows: _Rows) -> _Signal:
    """Judge whether a weight norm grew as only exponentials grow, or jumped."""
    value = np.log(rows["weight_norm"])
    score, usual = _follow(value, _grown)
    return _Signal("exploding", "weight norm", score, rows["weight_norm"], np.exp(usual))


def _downward(rows: _Rows) -> list[_Signal]:
    """Judge whether a layer has all but stopped, though it has a rate to learn at."""
    ratio = rows["update_norm"] / rows["weight_norm"]
    value = np.log(ratio) - _common_rate(rows)
    value[rows["learning_rate"] == 0] = np.nan
    score, usual = _follow(value, _below)
    lasting = np.zeros(score.shape, bool)
    for episode in _episodes(score >= 1):
        if episode.last - episode.first + 1 >= FALL_STEPS:
            lasting[episode.first : episode.last + 1, episode.layer] = True
    usual = ratio * np.exp(usual - value)
    score = np.where(lasting, score, 0.0)
    moving = _Signal("vanishing", "update ratio", np.where(ratio > 0, score, 0.0), ratio, usual)
    still = _Signal("frozen", "update", np.where(ratio > 0, 0.0, score), ratio, usual)
    return [moving, still, _no_gradient(rows)]


def _no_gradient(rows: _Rows) -> _Signal:
    """Find layers whose gradient became 0 for some steps, when most before were not."""
    norm = rows["grad_norm"]
    seen = np.cumsum(norm > 0, axis=0)
    score = np.zeros(norm.shape)
    for episode in _episodes((norm == 0) & (rows["learning_rate"] != 0)):
        steps, layer = slice(episode.first, episode.last + 1), episode.layer
        enough = max(FALL_STEPS, episode.first // 2)
        if len(norm[steps]) >= FALL_STEPS and seen[episode.first, layer] >= enough:
            score[steps, layer] = 1.0
    return _Signal("frozen", "gradient", score, norm, norm)


def _not_finite(rows: _Rows) -> _Signal:
    """Find rows whose gradient, weights or update are not finite."""
    there = ~np.isnan(rows["nonfinite"])
    bad = rows["nonfinite"] > 0
    for name in ("weight_norm", "update_norm"):
        bad |= there & ~np.isfinite(rows[name])
    count = rows["nonfinite"]
    return _Signal("not finite", "", np.where(bad, np.inf, 0.0), count, np.zeros_like(count))


def _common_rate(rows: _Rows) -> Array:
    """Return the logarithm of the median layer's learning rate, shape (steps, 1).

    It is 0 where no rate is known, and NaN where the rate is 0.
    """
    rate = np.array([np.median(r[~np.isnan(r)]) if not np.isnan(r).all() else 1.0
                     for r in rows["learning_rate"]])  # fmt: skip
    return np.log(np.where(rate > 0, rate, np.nan))[:, None]


Judge = Callable[[Array, Array, Array, Array], tuple[Array, Array]]
"""From values (rows, layers) and a baseline's low, middle and high point (layers,): the score,
1 where an alarm begins, and which of the points it was measured from."""


def _above(x: Array, _low: Array, middle: Array, high: Array) -> tuple[Array, Array]:
    return (x - middle) / (UNITS * np.maximum((high - middle) / Z90, LEAST_SPREAD)), middle


def _below(x: Array, _low: Array, _middle: Array, high: Array) -> tuple[Array, Array]:
    # A layer that stands still is −inf here; it shall not count for more than a huge fall.
    return np.minimum(high - x, 3 * FALL) / FALL, high


def _grown(x: Array, low: Array, _middle: Array, _high: Array) -> tuple[Array, Array]:
    return (x - low) / GROWTH, low


def _follow(values: Array, judge: Judge) -> tuple[Array, Array]:
    """Judge each row by the past before it; return score and what was usual, as `values`.

    The baseline is taken anew each time the past has grown by a twentieth.
    """
    past = np.where(np.isfinite(values), values, np.nan)
    score = np.zeros(values.shape)
    usual = np.full(values.shape, np.nan)
    baseline = np.full((3, values.shape[1]), np.nan)
    start = LEAST_PAST
    while start < len(values):
        stop = max(start + 1, start + start // 20)
        rows = np.unique(np.linspace(start // 2, start - 1, SAMPLES).astype(int))
        frozen = (score[start - 1] >= 1) & ~np.isnan(baseline[1])
        baseline = np.where(frozen, baseline, _quantiles(past[rows]))
        block = slice(start, stop)
        score[block], usual[block] = judge(values[block], *baseline)
        past[block][score[block] >= 1] = np.nan
        start = stop
    return score, usual


def _quantiles(values: Array) -> Array:
    """Return the 10, 50 and 90 % points of each column, (3, columns); NaN if half is missing."""
    ordered = np.sort(values, axis=0)  # NaN last
    count = (~np.isnan(ordered)).sum(axis=0)
    places = np.rint(np.array([[0.1], [0.5], [0.9]]) * (count - 1)).astype(int)
    points = np.take_along_axis(ordered, np.maximum(places, 0), axis=0)
    points[:, 2 * count < len(values)] = np.nan
    return points


def _alarm(score: Array) -> Mask:
    """Return where a signal is in alarm: above a half all along, and 1 somewhere."""
    alarm = np.zeros(score.shape, bool)
    for episode in _episodes(score >= 0.5):
        steps = slice(episode.first, episode.last + 1)
        alarm[steps, episode.layer] = score[steps, episode.layer].max() >= 1
    return alarm


def _episodes(alarm: Mask, gap: int = 0) -> list[_Episode]:
    """Return the alarms of each layer; those at most `gap` quiet rows apart are one."""
    found: list[_Episode] = []
    for layer in np.flatnonzero(alarm.any(axis=0)):
        rows = np.flatnonzero(alarm[:, layer])
        breaks = np.flatnonzero(np.diff(rows) > gap + 1)
        firsts, lasts = rows[np.r_[0, breaks + 1]], rows[np.r_[breaks, len(rows) - 1]]
        pairs = zip(firsts.tolist(), lasts.tolist(), strict=True)
        found += [_Episode(int(layer), first, last) for first, last in pairs]
    return found


def _events(episodes: list[_Episode], score: Array) -> list[list[_Episode]]:
    """Join alarms of several layers that overlap in time; the worst event first."""
    events: list[list[_Episode]] = []
    end = -1
    for episode in sorted(episodes, key=lambda e: e.first):
        if episode.first > end:
            events.append([])
        events[-1].append(episode)
        end = max(end, episode.last)
    return sorted(events, key=lambda event: -max(_peak(e, score) for e in event))


def _peak(episode: _Episode, score: Array) -> float:
    return float(score[episode.first : episode.last + 1, episode.layer].max())


def _blame(episode: _Episode, score: Array, broken: Mask) -> tuple[float, ...]:
    """Return what orders the layers of an event: the more to blame, the smaller.

    Who began first; then whose weights were not finite before the step (its gradient made the
    others so); then who was further out, at the step and before it; then the layer nearer the
    loss, since a gradient reaches it first.
    """
    layer, first = episode.layer, episode.first
    before = score[first - 1, layer] if first else 0.0
    return (first, -float(broken[first, layer]), -score[first, layer], -before, -layer)


def _finding(
    episode: _Episode, rows: _Rows, signals: list[_Signal], score: Array
) -> tuple[int, str, str, float, str]:
    layer, first, last = episode.layer, episode.first, episode.last
    during = score[:, first : last + 1, layer]
    place = int(during[:, 0].argmax())
    signal = signals[place]
    step, kind = int(rows.steps[first]), signal.kind
    value, usual = float(signal.value[first, layer]), float(signal.usual[first, layer])
    if kind == "not finite":
        count = 0 if np.isnan(value) else int(value)
        told = f"{count:,} elements of gradient or weight not finite"
    elif kind == "exploding":
        told = f"{signal.name} {value:.2g} is {value / usual:.3g} × its past"
        worst = first + int(during[place].argmax())
        if worst > first and np.isfinite(during[place]).all():
            times = signal.value[worst, layer] / signal.usual[worst, layer]
            told += f", {times:.3g} × at step {rows.steps[worst]}"
    elif kind == "frozen":
        told = f"its {signal.name} is 0, though its learning rate is not"
    else:
        told = f"{signal.name} {value:.2g} is 1/{usual / value:.3g} of its past"
    infinite = np.flatnonzero(np.isinf(during.max(axis=0)))
    if len(infinite) and kind != "not finite":
        told += f"; not finite from step {rows.steps[first + infinite[0]]}"
    if last < len(rows.steps) - 1:
        told += f"; over after step {rows.steps[last]}"
    return step, rows.layers[layer], kind, float(during.max()), told
