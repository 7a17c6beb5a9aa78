"""The rules: signals of each layer, and how far each departs from its past."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trustlens.diagnosis.baselines import above, below, grown, judge_by_past
from trustlens.diagnosis.episodes import Array, episodes_of

FALL_STEPS: Final = 10  # for which a layer must have all but stopped

NEEDED: Final = (
    "weight_norm", "update_norm", "direction_norm", "grad_norm", "learning_rate", "nonfinite",
)  # fmt: skip
"""The recorded quantities that the rules need."""


@dataclass(frozen=True, slots=True)
class LayerRows:
    """Recorded quantities of a run as steps × layers.

    Attributes
    ----------
    steps : int64 (steps,)
        Ascending.
    layers : sequence of str
        Names, in the order of the model.
    values : dict of str to float64 (steps, layers)
        By the names of ``NEEDED``; NaN where there is no value.
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
        The quantity that was judged.
    score : float64
        1 where an alarm begins.
    value, usual : float64
        The quantity, and what was usual in the layer's past; neither is a logarithm.
    """

    kind: str
    name: str
    score: Array
    value: Array
    usual: Array


def signals_of(rows: LayerRows) -> list[Signal]:
    """Apply every rule."""
    with np.errstate(all="ignore"):  # 0/0 and inf − inf are NaN here: not known
        return [*_upward(rows), _growth(rows), *_downward(rows), _not_finite(rows)]


def _upward(rows: LayerRows) -> list[Signal]:
    """Judge whether update ratio and direction ratio are far above their past."""
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
    """Judge whether a weight norm grew as only exponentials grow, or jumped."""
    value = np.log(rows["weight_norm"])
    score, usual = judge_by_past(value, grown)
    return Signal("exploding", "weight norm", score, rows["weight_norm"], np.exp(usual))


def _downward(rows: LayerRows) -> list[Signal]:
    """Judge whether a layer has all but stopped, though it has a rate to learn at."""
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
    """Find layers whose gradient became 0 for some steps, when most before were not."""
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
    there = ~np.isnan(rows["nonfinite"])
    bad = rows["nonfinite"] > 0
    for name in ("weight_norm", "update_norm"):
        bad |= there & ~np.isfinite(rows[name])
    count = rows["nonfinite"]
    return Signal("not finite", "", np.where(bad, np.inf, 0.0), count, np.zeros_like(count))


def _common_rate(rows: LayerRows) -> Array:
    """Return the logarithm of the median layer's learning rate, shape (steps, 1).

    It is 0 where no rate is known, and NaN where the rate is 0.
    """
    rate = np.array([np.median(r[~np.isnan(r)]) if not np.isnan(r).all() else 1.0
                     for r in rows["learning_rate"]])  # fmt: skip
    return np.log(np.where(rate > 0, rate, np.nan))[:, None]
