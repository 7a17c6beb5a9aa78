"""The rules of the diagnosis: each computes a signal per layer and scores it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trustlens.diagnosis.baselines import above, below, grown, judge_by_past
from trustlens.diagnosis.episodes import Array, episodes_of

FALL_STEPS: Final = 10  # minimum length of a vanishing or frozen episode, in recorded steps

NEEDED: Final = (
    "weight_norm", "update_norm", "direction_norm", "grad_norm", "learning_rate", "nonfinite",
)  # fmt: skip
"""The recorded quantities that the rules need."""


@dataclass(frozen=True, slots=True)
class LayerRows:
    """The input of the diagnosis: recorded quantities of a run as arrays of steps × layers.

    Attributes
    ----------
    steps : int64 (steps,)
        Recorded steps, ascending.
    layers : sequence of str
        Names, in model order.
    values : dict of str to float64 (steps, layers)
        One array for each name in ``NEEDED``; NaN if there is no value.
    """

    steps: NDArray[np.int64]
    layers: Sequence[str]
    values: dict[str, Array]

    def __getitem__(self, name: str) -> Array:
        return self.values[name]


@dataclass(frozen=True, slots=True)
class Signal:
    """The result of one rule; arrays of shape (steps, layers).

    Attributes
    ----------
    kind : str
        "not finite", "exploding", "vanishing" or "frozen".
    name : str
        The quantity that was scored.
    score : float64
        1 at the alarm threshold.
    value, usual : float64
        The quantity, and its baseline from the layer's past; neither is a logarithm.
    """

    kind: str
    name: str
    score: Array
    value: Array
    usual: Array


def signals_of(rows: LayerRows) -> list[Signal]:
    """Apply all rules and return their signals."""
    with np.errstate(all="ignore"):  # 0/0 and inf − inf give NaN, which means unknown
        return [*_upward(rows), _growth(rows), *_downward(rows), _not_finite(rows)]


def _upward(rows: LayerRows) -> list[Signal]:
    """Score how far the update ratio and the direction ratio are above their earlier values."""
    signals: list[Signal] = []
    for name, norm in (("update ratio", "update_norm"), ("direction ratio", "direction_norm")):
        ratio = rows[norm] / rows["weight_norm"]
        value = np.log(ratio)
        if norm == "update_norm":
            value -= _common_rate(rows)
        score, usual = judge_by_past(value, above)
        factor = np.exp(usual - value)
        signals.append(Signal("exploding", name, score, ratio, ratio * factor))
    return signals


def _growth(rows: LayerRows) -> Signal:
    """Score how far the weight norm is above its earlier values, to find rapid growth."""
    value = np.log(rows["weight_norm"])
    score, usual = judge_by_past(value, grown)
    return Signal("exploding", "weight norm", score, rows["weight_norm"], np.exp(usual))


def _downward(rows: LayerRows) -> list[Signal]:
    """Score layers that almost or entirely stopped although their learning rate is not 0."""
    ratio = rows["update_norm"] / rows["weight_norm"]
    value = np.log(ratio) - _common_rate(rows)
    value[rows["learning_rate"] == 0] = np.nan
    score, usual = judge_by_past(value, below)
    lasting = np.zeros(score.shape, bool)
    for episode in episodes_of(score >= 1):
        if episode.last - episode.first + 1 >= FALL_STEPS:
            lasting[episode.first : episode.last + 1, episode.layer] = True
    usual = ratio * np.exp(usual - value)
    score = np.where(lasting, score, 0.0)
    moving = Signal("vanishing", "update ratio", np.where(ratio > 0, score, 0.0), ratio, usual)
    still = Signal("frozen", "update", np.where(ratio > 0, 0.0, score), ratio, usual)
    return [moving, still, _no_gradient(rows)]


def _no_gradient(rows: LayerRows) -> Signal:
    """Find layers whose gradient is 0 for some steps after mostly nonzero gradients."""
    norm = rows["grad_norm"]
    seen = np.cumsum(norm > 0, axis=0)
    score = np.zeros(norm.shape)
    for episode in episodes_of((norm == 0) & (rows["learning_rate"] != 0)):
        steps, layer = slice(episode.first, episode.last + 1), episode.layer
        enough = max(FALL_STEPS, episode.first // 2)
        if len(norm[steps]) >= FALL_STEPS and seen[episode.first, layer] >= enough:
            score[steps, layer] = 1.0
    return Signal("frozen", "gradient", score, norm, norm)


def _not_finite(rows: LayerRows) -> Signal:
    """Find rows whose gradient, weights or update are not finite."""
    has_row = ~np.isnan(rows["nonfinite"])
    bad = rows["nonfinite"] > 0
    for name in ("weight_norm", "update_norm"):
        bad |= has_row & ~np.isfinite(rows[name])
    count = rows["nonfinite"]
    return Signal("not finite", "", np.where(bad, np.inf, 0.0), count, np.zeros_like(count))


def _common_rate(rows: LayerRows) -> Array:
    """Return the logarithm of the median learning rate of all layers, shape (steps, 1).

    The logarithm is 0 for a step at which no learning rate is known, and NaN if the median is 0.
    """
    rate = np.array([np.median(r[~np.isnan(r)]) if not np.isnan(r).all() else 1.0
                     for r in rows["learning_rate"]])  # fmt: skip
    return np.log(np.where(rate > 0, rate, np.nan))[:, None]
