"""What steps cost on this machine, learnt from those that ran: the scheduler's measure of time. Knows no requests."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Final

_NEWEST_SHARE: Final = 0.2  # of an average: some ten steps, and a change of the machine's speed is known
_STALE_STEPS: Final = 200  # then a number of rows is tried again: one slow moment must not rule it out for ever


@dataclass(slots=True)
class _Cost:
    seconds: float
    seen_at: int  # number of the step


class StepCosts:
    """Moving averages of seconds; 0 where nothing is known yet."""

    def __init__(self) -> None:
        self._decode: dict[int, _Cost] = {}  # by rows
        self._num_decode_steps = 0
        self._prefill_tokens = self._prefill_seconds = 0.0  # of all steps, the older the less they count

    def observe_decode(self, num_rows: int, seconds: float) -> None:
        """A step with one token of each of `num_rows` sequences took so long."""
        self._num_decode_steps += 1
        known = self._decode.get(num_rows)
        average = seconds
        if known is not None and self._is_fresh(known):
            average = known.seconds + _NEWEST_SHARE * (seconds - known.seconds)
        self._decode[num_rows] = _Cost(average, self._num_decode_steps)

    def observe_prefill(self, num_tokens: int, seconds: float) -> None:
        """A step with so many tokens of prompts took so long.

        Large steps count for more: what a few tokens take, which is mostly one pass over the weights, says little.
        """
        self._prefill_tokens += num_tokens - _NEWEST_SHARE * self._prefill_tokens
        self._prefill_seconds += seconds - _NEWEST_SHARE * self._prefill_seconds

    def decode_s(self, num_rows: int) -> float:
        """What a decode step should take: on a line between numbers of rows that were measured.

        More rows than were measured count as if they cost nothing more, so that they are tried and then known.
        """
        costs = {rows: cost.seconds for rows, cost in sorted(self._decode.items()) if self._is_fresh(cost)}
        known = list(costs)
        if not known:
            return 0.0
        place = bisect_left(known, num_rows)
        above = known[min(place, len(known) - 1)]
        below = known[max(place - 1, 0)]
        if place == len(known) or above in (num_rows, below):
            return costs[above]
        share = (num_rows - below) / (above - below)
        return costs[below] + share * (costs[above] - costs[below])

    def prefill_s(self, num_tokens: int) -> float:
        """What a prompt should take."""
        return self._prefill_seconds / self._prefill_tokens * num_tokens if self._prefill_tokens else 0.0

    def _is_fresh(self, cost: _Cost) -> bool:
        return self._num_decode_steps - cost.seen_at < _STALE_STEPS
