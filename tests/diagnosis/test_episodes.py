"""Alarms, episodes and events on small hand-written masks."""

from __future__ import annotations

import numpy as np

from trustlens.diagnosis.episodes import Episode, alarm_of, blame_key, episodes_of, events_of


def mask(*layers: str) -> np.ndarray:
    """Build a mask from one string per layer with one character per row; # is an alarm."""
    return np.array([[letter == "#" for letter in layer] for layer in layers]).T


def test_episodes_are_consecutive_alarm_rows() -> None:
    alarm = mask("..##..#.", "........", "#......#")
    assert episodes_of(alarm) == [
        Episode(0, 2, 3), Episode(0, 6, 6), Episode(2, 0, 0), Episode(2, 7, 7),
    ]  # fmt: skip
    assert episodes_of(alarm, gap=2) == [Episode(0, 2, 6), Episode(2, 0, 0), Episode(2, 7, 7)]
    assert episodes_of(alarm, gap=6) == [Episode(0, 2, 6), Episode(2, 0, 7)]


def test_an_alarm_begins_when_the_score_last_rose_above_a_half() -> None:
    score = np.array([[0.4, 0.5, 0.9, 1.0, 0.6, 0.4, 0.9, 0.0, 1.0]]).T
    assert alarm_of(score)[:, 0].tolist() == mask(".####...#")[:, 0].tolist()


def test_alarms_that_overlap_are_one_event_and_the_worst_event_is_first() -> None:
    score = np.zeros((10, 4))
    alarm = mask("##........", ".##.......", "....###...", "......####")
    score[alarm] = 1.0
    score[7, 3] = 9.0
    late, early = events_of(episodes_of(alarm), score)
    assert [e.layer for e in late] == [2, 3]
    assert [e.layer for e in early] == [0, 1]


def test_blame_key_orders_by_onset_then_broken_weights_then_score_then_position() -> None:
    score = np.zeros((6, 5))
    broken = np.zeros((6, 5), bool)
    first = {0: 3, 1: 3, 2: 3, 3: 3, 4: 2}  # layer 4 began a row earlier
    score[3] = [1.0, 1.0, 2.0, 1.0, 5.0]
    score[2] = [0.3, 0.1, 0.0, 0.1, 1.0]
    broken[3, 3] = True
    episodes = [Episode(layer, row, 5) for layer, row in first.items()]
    order = sorted(episodes, key=lambda e: blame_key(e, score, broken))
    assert [e.layer for e in order] == [4, 3, 2, 0, 1]
    assert blame_key(Episode(0, 0, 1), score, broken)[3] == 0  # no row before the first
