"""What was measured, and the numbers that follow from it. Pure: prints nothing, runs nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from engine.artifact import Architecture
from engine.bench.cases import Case
from engine.bench.child import PeakMemory
from engine.bench.machine import Capability

SAME_FUNCTION_COSINE = 0.95


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and extremes of some rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(median(values), min(values), max(values))


@dataclass(slots=True)
class Participant:
    """What is known of one contestant on one shape.

    is_peer, is_native, has_adapter: as in its `Entry`. facts: what it says of itself. failure: why it is not here, or
    did not end. opening, serving: peak memory, the latter by the label of a setting; all taken while no other
    contestant was in memory.
    """

    name: str
    is_peer: bool
    is_native: bool = False
    has_adapter: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    failure: str | None = None
    opening: PeakMemory | None = None
    serving: dict[str, PeakMemory] = field(default_factory=dict)


@dataclass(slots=True)
class ShapeResults:
    """Everything about one shape. seconds: of one step, a value per round, by contestant and case."""

    shape: str
    architecture: Architecture
    participants: dict[str, Participant]
    seconds: dict[tuple[str, Case], list[float]] = field(default_factory=dict)
    samples: dict[tuple[str, Case], list[float]] = field(default_factory=dict)
    capabilities: list[Capability] = field(default_factory=list)

    @property
    def cases(self) -> list[Case]:
        """All cases with a figure, in the order in which they ran."""
        return list(dict.fromkeys(case for _, case in self.seconds))

    def speed(self, name: str, case: Case) -> Spread | None:
        """Tokens per second over the rounds: every row of a step is a token."""
        seconds = self.seconds.get((name, case))
        return Spread.of([case.rows / value for value in seconds]) if seconds else None

    def best_peer(self, case: Case) -> float | None:
        """The highest median of the peers, in tokens per second."""
        speeds = [self.speed(p.name, case) for p in self.participants.values() if p.is_peer]
        return max((speed.median for speed in speeds if speed), default=None)

    def ratio(self, name: str, case: Case) -> float | None:
        """A contestant's median over that of the best peer."""
        speed, best = self.speed(name, case), self.best_peer(case)
        return speed.median / best if speed and best else None

    def agreement(self, name: str) -> float | None:
        """The lowest cosine over all cases between logits of this contestant and of the first peer.

        All run the same weights, so a value far from 1 says that one of them does not compute the model. Of a case, it
        takes the last row and the first tokens of the vocabulary, hence seldom a likely one. None with an adapter.
        """
        peers = {participant.name for participant in self.participants.values() if participant.is_peer}
        reference = next((n for n, _ in self.samples if n in peers), None)
        if reference is None or self.participants[name].has_adapter:
            return None
        cases = [case for n, case in self.samples if n == name and (reference, case) in self.samples]
        return min((cosine(self.samples[name, c], self.samples[reference, c]) for c in cases), default=None)


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    """Of the angle between two vectors of the same length; 0 if one of them is zero."""
    norms = math.hypot(*left) * math.hypot(*right)
    return sum(a * b for a, b in zip(left, right, strict=True)) / norms if norms else 0.0


def median_of(values: Iterable[float | None]) -> float | None:
    """The median of those that are known."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def shares(
    results: ShapeResults, name: str, case: Case, *, step_bytes: float, step_macs: int
) -> Mapping[str, float | None]:
    """How much of the machine's reading bandwidth and int8 arithmetic a median step of the native core uses.

    None for the others: they read other bytes.
    """
    seconds = results.seconds.get((name, case))
    if not seconds or not results.participants[name].is_native:
        return {"bandwidth": None, "arithmetic": None}
    step_s = median(seconds)
    bandwidth = median_of(c.read_bytes_per_s for c in results.capabilities)
    macs = median_of(c.int8_macs_per_s for c in results.capabilities)
    return {
        "bandwidth": step_bytes / step_s / bandwidth if bandwidth else None,
        "arithmetic": step_macs / step_s / macs if macs else None,
    }
