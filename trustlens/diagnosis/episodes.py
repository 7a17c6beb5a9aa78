"""Alarms of layers: their first and last rows, and their grouping into events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Episode:
    """One alarm of one layer.

    ``layer`` is the index of the layer. ``first`` and ``last`` are the indices of the first and
    last recorded step of the alarm. The first step is the onset.
    """

    layer: int
    first: int
    last: int


def episodes_of(alarm: Mask, gap: int = 0) -> list[Episode]:
    """Return the episodes of all layers: groups of consecutive rows in which a layer has an alarm.

    A row is a recorded step.

    Parameters
    ----------
    alarm : bool (rows, layers)
        Whether the layer has an alarm in this row.
    gap : int
        Maximum number of rows without an alarm inside an episode.
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
    """Return whether each element of ``score``, (rows, layers), is part of an alarm.

    An alarm consists of consecutive rows with scores of at least 0.5, at least one of them 1 or
    more.
    """
    alarm = np.zeros(score.shape, bool)
    for episode in episodes_of(score >= 0.5):
        steps = slice(episode.first, episode.last + 1)
        alarm[steps, episode.layer] = score[steps, episode.layer].max() >= 1
    return alarm


def events_of(episodes: list[Episode], score: Array) -> list[list[Episode]]:
    """Group episodes that overlap in time into events, sorted by descending peak score."""
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


def blame_key(episode: Episode, score: Array, broken: Mask) -> tuple[float, ...]:
    """Return a key that sorts the episodes of an event: the most probable cause comes first.

    The criteria, in order of priority: an earlier onset; weights that were not finite before the
    step at the onset, because they make the gradients of other layers not finite; a higher score at
    the onset; a higher score in the row before the onset; a layer nearer to the loss, because the
    gradient reaches this layer first. ``broken``, (rows, layers), is True where a layer's weights
    are not finite.
    """
    layer, first = episode.layer, episode.first
    before = score[first - 1, layer] if first else 0.0
    return (first, -float(broken[first, layer]), -score[first, layer], -before, -layer)
