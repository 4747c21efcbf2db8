"""When to try again: jitter, exponential back-off, and the interval that the server asks for. Pure but for the dice."""

from __future__ import annotations

import random
from dataclasses import dataclass

from edge_agent.errors import TransientError

JITTER = 0.1
_INTERVALS_IN_LONGEST = 5


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays that double from `first_s` to `longest_s`, each cut by up to half at random: a fleet spreads out."""

    first_s: float
    longest_s: float

    def delay_s(self, num_failures: int, retry_after_s: float | None = None) -> float:
        """How long to wait after so many failures in a row (from 1); never less than the server asked for."""
        delay_s = min(self.first_s * 2.0 ** min(num_failures - 1, 32), self.longest_s) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        return max(delay_s, retry_after_s or 0.0)


def jittered_s(interval_s: float) -> float:
    """The interval, up to 10 % shorter or longer."""
    return interval_s * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - no secret


class PollSchedule:
    """When to poll next. The server's word on the interval stands until it says something else."""

    def __init__(self, interval_s: float, *, longest_s: float) -> None:
        self.interval_s = interval_s
        self._longest_s = longest_s
        self.num_failures = 0

    def succeeded(self, interval_s: float | None) -> float:
        """The delay after an answer."""
        self.num_failures = 0
        self.interval_s = min(max(interval_s or self.interval_s, 0.1), 86_400.0)
        return jittered_s(self.interval_s)

    def failed(self, error: Exception) -> float:
        """The delay after a failure: from the interval up to five of them, so that an outage brings no more polls."""
        self.num_failures += 1
        retry_after_s = error.retry_after_s if isinstance(error, TransientError) else None
        longest_s = max(self.interval_s, min(self._longest_s, _INTERVALS_IN_LONGEST * self.interval_s))
        backoff = Backoff(self.interval_s, longest_s)
        return backoff.delay_s(self.num_failures, retry_after_s)
