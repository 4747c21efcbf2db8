"""How long a download bears with a network and a server: retries, the slowest speed, the fastest speed."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import structlog

from edge_agent.errors import TransientError, UnavailableError
from edge_agent.schedule import Backoff

log = structlog.get_logger()

TOO_SLOW = "too_slow"


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """How much patience to have.

    max_retries: failures in a row without a single new byte, per release. max_wrong: times that a chunk, an index or a
    manifest may come with a wrong hash. min_bytes_per_s: a server that stays below it for `grace_s` counts as failing.
    """

    backoff: Backoff = field(default_factory=lambda: Backoff(0.5, 60.0))
    max_retries: int = 8
    max_wrong: int = 2
    min_bytes_per_s: int = 1024
    grace_s: float = 30.0


class RetryBudget:
    """Failures in a row of one release; raises the last one when they are too many."""

    def __init__(self, policy: FetchPolicy) -> None:
        self._policy = policy
        self._num_in_a_row = 0
        self._num_too_slow = 0
        """Counted apart: a server that trickles always brings some new bytes."""

    def refill(self) -> None:
        """New bytes came in."""
        self._num_in_a_row = 0

    async def spend(self, error: TransientError) -> None:
        """Wait as long as is due before the next try."""
        self._num_in_a_row += 1
        self._num_too_slow += error.code == TOO_SLOW
        num_failures = max(self._num_in_a_row, self._num_too_slow)
        if num_failures > self._policy.max_retries:
            raise error
        delay_s = self._policy.backoff.delay_s(num_failures, error.retry_after_s)
        log.warning("fetch.retry", code=error.code, error=str(error), failures=num_failures, delay_s=delay_s)
        await asyncio.sleep(delay_s)


class Pace:
    """Keeps a download below a number of bytes per second; None is no limit."""

    def __init__(self, bytes_per_s: int | None) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at_s = 0.0

    def delay_s(self, num_bytes: int) -> float:
        """How long to wait now that these bytes have come."""
        if not self._bytes_per_s:
            return 0.0
        now_s = time.monotonic()
        self._free_at_s = max(self._free_at_s, now_s) + num_bytes / self._bytes_per_s
        return self._free_at_s - now_s


class Floor:
    """Ends an answer that brings less than the least speed over a whole stretch of `grace_s`."""

    def __init__(self, policy: FetchPolicy, what: str) -> None:
        self._policy = policy
        self._what = what
        self._num_bytes = 0
        self._ends_at_s = time.monotonic() + policy.grace_s

    @property
    def grace_s(self) -> float:
        """How long a stretch is."""
        return self._policy.grace_s

    def note(self, num_bytes: int, delay_s: float) -> None:
        """Bytes came, and `delay_s` was a wait of our own. Raises `UnavailableError` (too_slow)."""
        self._num_bytes += num_bytes
        self._ends_at_s += delay_s
        now_s = time.monotonic()
        if self._num_bytes >= self._policy.min_bytes_per_s * self._policy.grace_s:
            self._num_bytes, self._ends_at_s = 0, now_s + self._policy.grace_s
        elif now_s > self._ends_at_s:
            raise self.error()

    def error(self) -> UnavailableError:
        """What to raise for an answer that is too slow, or brings nothing at all."""
        return UnavailableError(
            f"{self._what} comes with less than {self._policy.min_bytes_per_s} bytes/s: "
            "look at the network, or let the device accept less (min_download_bytes_per_s)",
            code=TOO_SLOW,
        )
