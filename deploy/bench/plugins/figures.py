"""Medians, percentiles and lines for people."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile; 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


def spread(values: Sequence[float], unit: str, scale: float = 1.0) -> str:
    """Median and range."""
    low, middle, high = (scale * percentile(values, percent) for percent in (0, 50, 100))
    return f"{middle:.3g} {unit} [{low:.3g}, {high:.3g}]"
