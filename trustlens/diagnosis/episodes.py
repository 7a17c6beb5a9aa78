"""Alarms of layers: where each begins and ends, and which of them are one event."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Episode:
    """One alarm of one layer, from the row of its onset to the row of its last step."""

    layer: int
    first: int
    last: int


def episodes_of(alarm: Mask, gap: int = 0) -> list[Episode]:
    """Return the alarms of each layer.

    Parameters
    ----------
    alarm : bool (rows, layers)
    gap : int
        Alarms at most so many quiet rows apart are one.
    """
    found: list[Episode] = []
    for layer in np.flatnonzero(alarm.any(axis=0)):
        rows = np.flatnonzero(alarm[:, layer])
        breaks = np.flatnonzero(np.diff(rows) > gap + 1)
        firsts, lasts = rows[np.r_[0, breaks + 1]], rows[np.r_[breaks, len(rows) - 1]]
        pairs = zip(firsts.tolist(), lasts.tolist(), strict=True)
        found += [Episode(int(layer), first, last) for first, last in pairs]
    return found


def alarm_of(score: Array) -> Mask:
    """Return where a score (rows, layers) is in alarm: at least 0.5 throughout and 1 somewhere."""
    alarm = np.zeros(score.shape, bool)
    for episode in episodes_of(score >= 0.5):
        steps = slice(episode.first, episode.last + 1)
        alarm[steps, episode.layer] = score[steps, episode.layer].max() >= 1
    return alarm


def events_of(episodes: list[Episode], score: Array) -> list[list[Episode]]:
    """Join alarms of several layers that overlap in time; the worst event is first."""
    events: list[list[Episode]] = []
    end = -1
    for episode in sorted(episodes, key=lambda e: e.first):
        if episode.first > end:
            events.append([])
        events[-1].append(episode)
        end = max(end, episode.last)
    return sorted(events, key=lambda event: -max(_peak(e, score) for e in event))


def _peak(episode: Episode, score: Array) -> float:
    return float(score[episode.first : episode.last + 1, episode.layer].max())


def blame(episode: Episode, score: Array, broken: Mask) -> tuple[float, ...]:
    """Return a key that sorts the layers of an event, the most to blame first.

    The layer whose alarm began first; then one whose weights were not finite before the step (its
    gradient made the others so); then the higher score at the step, and before it; then the layer
    nearer the loss, since a gradient reaches it first. ``broken``, (rows, layers), is where
    weights are not finite.
    """
    layer, first = episode.layer, episode.first
    before = score[first - 1, layer] if first else 0.0
    return (first, -float(broken[first, layer]), -score[first, layer], -before, -layer)
