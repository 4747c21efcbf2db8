"""Summaries of many observations that can be merged: DDSketch (Masson et al., 2019) with 1 % relative accuracy.

A door of its own, standard library only: the engine observes, the agent and the server merge and read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

ACCURACY = 0.01
GAMMA = (1 + ACCURACY) / (1 - ACCURACY)
_LOG_GAMMA = math.log(GAMMA)
_SMALLEST = 1e-12


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mergeable summary of many observations: DDSketch (Masson et al., 2019) with 1 % relative accuracy.

    `buckets` counts positive observations by index i, for values in (GAMMA**(i-1), GAMMA**i]; `zeros` those <= 0.
    """

    count: int = 0
    sum: float = 0.0
    min: float = 0.0
    max: float = 0.0
    zeros: int = 0
    buckets: Mapping[str, int] = field(default_factory=dict)

    def merge(self, other: Distribution) -> Distribution:
        """Both sets of observations as one."""
        if not self.count or not other.count:
            return self if self.count else other
        buckets = dict(self.buckets)
        for index, count in other.buckets.items():
            buckets[index] = buckets.get(index, 0) + count
        return Distribution(
            count=self.count + other.count,
            sum=self.sum + other.sum,
            min=min(self.min, other.min),
            max=max(self.max, other.max),
            zeros=self.zeros + other.zeros,
            buckets=buckets,
        )

    def quantile(self, q: float) -> float:
        """The value below which a share `q` of the observations lies, within 1 %; 0.0 if there are none."""
        rank = q * (self.count - 1)
        seen = self.zeros
        if not self.count or seen > rank:
            return min(self.min, 0.0)
        for index, count in sorted((int(i), n) for i, n in self.buckets.items()):
            seen += count
            if seen > rank:
                return min(max(2 * GAMMA**index / (GAMMA + 1), self.min), self.max)
        return self.max


class Sketch:
    """A distribution that grows by observations."""

    __slots__ = ("_buckets", "_count", "_max", "_min", "_sum")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self._count, self._sum = 0, 0.0
        self._min, self._max = math.inf, -math.inf

    def observe(self, value: float) -> None:
        """Add a finite number."""
        self._count += 1
        self._sum += value
        self._min, self._max = min(self._min, value), max(self._max, value)
        if value > _SMALLEST:
            index = math.ceil(math.log(value) / _LOG_GAMMA)
            self._buckets[index] = self._buckets.get(index, 0) + 1

    @property
    def distribution(self) -> Distribution:
        """What was observed so far."""
        if not self._count:
            return Distribution()
        buckets = {str(index): count for index, count in self._buckets.items()}
        zeros = self._count - sum(self._buckets.values())
        return Distribution(self._count, self._sum, self._min, self._max, zeros, buckets)


def distribution_of(values: Iterable[float]) -> Distribution:
    """The summary of finite observations."""
    sketch = Sketch()
    for value in values:
        sketch.observe(value)
    return sketch.distribution
