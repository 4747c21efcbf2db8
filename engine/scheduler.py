"""Who runs next. Knows sequences and limits; no arrays, no back end, no clock.

A step is either a prefill or a decode, so that the seconds of the two are known apart, and they take turns while both
have work. Requests are served in the order in which they came; `_rank` is the one place that says so.

A prompt is always cut at multiples of `prefill_chunk_tokens`, whatever else runs: the arithmetic of a request, and with
it its answer, does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from engine.errors import CapacityError
from engine.sequence import Sequence


class StepKind(StrEnum):
    """What a step does."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class Work:
    """The next `num_tokens` of one sequence."""

    sequence: Sequence
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What runs in one step."""

    kind: StepKind
    work: tuple[Work, ...]


class Scheduler:
    """A queue of waiting sequences and the set of running ones.

    `admit` is asked before a waiting sequence starts: it reserves what the sequence needs, or answers False.
    """

    def __init__(
        self, *, max_running: int, max_waiting: int, prefill_chunk_tokens: int, admit: Callable[[Sequence], bool]
    ) -> None:
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._prefill_chunk_tokens = prefill_chunk_tokens
        self._admit = admit
        self._last_kind = StepKind.DECODE
        self._num_arrived = 0
        self._arrival: dict[str, int] = {}

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; raises `CapacityError` if the queue is full."""
        if len(self.waiting) >= self._max_waiting:
            raise CapacityError(f"{len(self.waiting)} requests are waiting already: try again in a moment")
        self._arrival[sequence.request_id] = self._num_arrived
        self._num_arrived += 1
        self.waiting.append(sequence)

    def find(self, request_id: str) -> Sequence | None:
        """The queued or running sequence of a request."""
        return next((s for s in (*self.running, *self.waiting) if s.request_id == request_id), None)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that is finished."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        del self._arrival[sequence.request_id]

    def schedule(self) -> Batch | None:
        """The next step, or None if nothing can run."""
        self._start_waiting()
        ranked = sorted(self.running, key=self._rank)
        prefilling = [s for s in ranked if s.is_prefilling]
        decoding = [s for s in ranked if not s.is_prefilling]
        if prefilling and (not decoding or self._last_kind is StepKind.DECODE):
            batch = self._prefill(prefilling)
        elif decoding:
            batch = self._decode(decoding)
        else:
            return None
        self._last_kind = batch.kind
        return batch

    def _rank(self, sequence: Sequence) -> tuple[int, ...]:
        """Lower runs first."""
        return (self._arrival[sequence.request_id],)

    def _start_waiting(self) -> None:
        """Whoever cannot be admitted holds up those behind it, so that a large request is not starved."""
        for sequence in sorted(self.waiting, key=self._rank):
            if len(self.running) >= self._max_running or not self._admit(sequence):
                return
            self.waiting.remove(sequence)
            self.running.append(sequence)

    def _prefill(self, sequences: list[Sequence]) -> Batch:
        """The next chunk of the first sequence, and of those behind it as far as they fit as well."""
        left = self._prefill_chunk_tokens
        work: list[Work] = []
        for sequence in sequences:
            num_tokens = min(sequence.num_pending, self._prefill_chunk_tokens)
            if num_tokens > left:
                break
            work.append(Work(sequence, num_tokens))
            left -= num_tokens
        return Batch(StepKind.PREFILL, tuple(work))

    def _decode(self, sequences: list[Sequence]) -> Batch:
        """One token of each; those of one adapter side by side, so that a step switches adapters least often."""
        first_of_adapter: dict[str | None, int] = {}
        for index, sequence in enumerate(sequences):
            first_of_adapter.setdefault(sequence.adapter, index)
        grouped = sorted(sequences, key=lambda s: first_of_adapter[s.adapter])
        return Batch(StepKind.DECODE, tuple(Work(s, 1) for s in grouped))
