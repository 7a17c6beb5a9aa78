"""The article's trust ratio, at its edges."""

from __future__ import annotations

import numpy as np
import pytest

from trustlens.schema import article_trust_ratio

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("weight_norm", "direction_norm", "expected"),
    [
        (3.0, 2.0, 1.5),
        (30.0, 2.0, 10.0),
        (0.0, 2.0, 1.0),
        (2.0, 0.0, 1.0),
        (0.0, 0.0, 1.0),
        (0.0, NAN, NAN),
        (NAN, 0.0, NAN),
        (NAN, 1.0, NAN),
        (INF, INF, NAN),
        (INF, 1.0, 10.0),
        (1.0, INF, 0.0),
    ],
)
def test_trust_ratio(weight_norm: float, direction_norm: float, expected: float) -> None:
    ratio = article_trust_ratio(np.array([weight_norm]), np.array([direction_norm]))
    np.testing.assert_array_equal(ratio, [expected])
