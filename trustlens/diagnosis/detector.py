"""Turn the signals of all layers into a ranked list of findings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from trustlens.diagnosis.episodes import Array, Episode, alarm_of, blame_key, episodes_of, events_of
from trustlens.diagnosis.signals import LayerRows, Signal, signals_of

CALM: Final = 10  # recorded steps without an alarm after which an episode is over


@dataclass(frozen=True, slots=True)
class Finding:
    """A suspicious layer, described by its worst episode (a period with an alarm).

    Attributes
    ----------
    step : int
        The first step of the episode.
    layer : str
        The name of the layer.
    kind : str
        "not finite", "exploding", "vanishing" or "frozen".
    score : float
        The highest score of the episode: 1 is the alarm threshold. Infinite if a value is not
        finite.
    evidence : str
        A sentence about the values that raised the alarm.
    """

    step: int
    layer: str
    kind: str
    score: float
    evidence: str


def find(rows: LayerRows) -> list[Finding]:
    """Return one finding for each layer with an alarm, most suspect first."""
    if not len(rows.steps) or not rows.layers:
        return []
    signals = signals_of(rows)
    score = np.stack([np.nan_to_num(s.score, nan=0.0, posinf=np.inf) for s in signals])
    worst = score.max(axis=0)
    alarm = np.logical_or.reduce([alarm_of(each) for each in score])
    broken = ~np.isfinite(rows["weight_norm"])
    findings: dict[int, Finding] = {}
    for event in events_of(episodes_of(alarm, gap=CALM), worst):
        for episode in sorted(event, key=lambda e: blame_key(e, worst, broken)):
            if episode.layer not in findings:
                findings[episode.layer] = _finding(episode, rows, signals, score)
    return list(findings.values())


def _finding(episode: Episode, rows: LayerRows, signals: list[Signal], score: Array) -> Finding:
    """Describe an episode by the signal with the highest score at its onset."""
    layer, first, last = episode.layer, episode.first, episode.last
    during = score[:, first : last + 1, layer]
    leading = int(during[:, 0].argmax())
    signal = signals[leading]
    step, kind = int(rows.steps[first]), signal.kind
    value, usual = float(signal.value[first, layer]), float(signal.usual[first, layer])
    if kind == "not finite":
        count = 0 if np.isnan(value) else int(value)
        evidence = f"{count:,} elements of gradient or weight not finite"
    elif kind == "exploding":
        evidence = f"{signal.name} {value:.2g} is {value / usual:.3g} × its past"
        worst = first + int(during[leading].argmax())
        if worst > first and np.isfinite(during[leading]).all():
            factor = signal.value[worst, layer] / signal.usual[worst, layer]
            evidence += f", {factor:.3g} × at step {rows.steps[worst]}"
    elif kind == "frozen":
        evidence = f"its {signal.name} is 0, though its learning rate is not"
    else:
        evidence = f"{signal.name} {value:.2g} is 1/{usual / value:.3g} of its past"
    infinite = np.flatnonzero(np.isinf(during.max(axis=0)))
    if len(infinite) and kind != "not finite":
        evidence += f"; not finite from step {rows.steps[first + infinite[0]]}"
    if last < len(rows.steps) - 1:
        evidence += f"; over after step {rows.steps[last]}"
    return Finding(step, rows.layers[layer], kind, float(during.max()), evidence)
