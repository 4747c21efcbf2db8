"""Who runs next. Knows sequences, limits and what steps cost; no arrays, no back end, no clock.

A step is either a prefill or a decode, so that the seconds of the two are known apart. Whoever has the highest level
runs: a business's priority, raised by one for each `ageing_s` that a sequence was not served, so that nobody starves.
Within a level the earliest deadline is first, and prefill and decode take turns. A step is the quantum: a sequence
that does not run in one keeps its state and goes on in another as if nothing had happened.

Running sequences of lower priority may have to make way, state and all, for one that waits for memory.

A prompt runs in buckets of `prefill_chunk_tokens`, or of fewer where these would take longer than `max_bucket_s`: for
so long an urgent request waits at most. Where the bits of an answer depend on the cuts, a prompt is always cut at the
same places, whatever else runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from enum import Enum, StrEnum, auto
from typing import Literal, Protocol

from engine.business import Business
from engine.errors import CapacityError, RateLimitError
from engine.sequence import Sequence
from engine.step_costs import StepCosts

_LEAST_BUCKET_TOKENS = 32
_LEAST_RETRY_S = 1.0
_TOLERANCE = 1.25  # of a lone row's time: what others may add to it even if a token is late already


class StepKind(StrEnum):
    """What a step does."""

    PREFILL = "prefill"
    DECODE = "decode"


class Admission(Enum):
    """Whether a waiting sequence could take the memory that it needs."""

    ADMITTED = auto()
    NO_ROOM = auto()
    """Nobody's fault: those behind it wait as well, so that a large request is not starved."""
    OVER_OWN_CAP = auto()
    """Its business has no room; others may pass."""
    ENDED = auto()
    """It cannot start at all, and has got its error."""


@dataclass(frozen=True, slots=True)
class Work:
    """The next `num_tokens` of one sequence."""

    sequence: Sequence
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step runs. `pre_empted` are those who ran before it, and whom others that came later pass over now."""

    kind: StepKind
    work: tuple[Work, ...]
    pre_empted: tuple[Sequence, ...] = ()

    @property
    def adapters(self) -> frozenset[str]:
        """Digests of the adapters that it needs."""
        return frozenset(work.sequence.adapter for work in self.work if work.sequence.adapter is not None)


@dataclass(frozen=True, slots=True)
class Limits:
    """See `engine.config.EngineConfig` and, for `cuts_anywhere`, `engine.backends.Backend`."""

    max_running: int
    max_waiting: int
    prefill_chunk_tokens: int
    max_bucket_s: float
    cuts_anywhere: bool
    ageing_s: float
    mixes_adapters: bool
    policy: Literal["deadlines", "first_come"]


class Memory(Protocol):
    """What the scheduler asks of whoever owns states."""

    def admit(self, sequence: Sequence) -> Admission:
        """Reserve what a sequence needs to run."""

    def outlook(self, sequence: Sequence, without: SequenceOf[Sequence]) -> Admission:
        """What `admit` would say at best if others were evicted; takes nothing. `OVER_OWN_CAP` is certain."""

    def evict(self, sequence: Sequence) -> bool:
        """Take a running sequence's memory away, to be computed again later; False if that cannot be done exactly."""


class Scheduler:
    """The queue of waiting sequences and the set of running ones, which hold memory."""

    def __init__(self, limits: Limits, *, memory: Memory, costs: StepCosts) -> None:
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._limits = limits
        self._memory = memory
        self._costs = costs
        self.blocked: Sequence | None = None
        """Who comes first of those that could not start in the last step."""
        self._last = Batch(StepKind.DECODE, ())
        self._num_arrived = 0
        self._arrival: dict[str, int] = {}

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; raises `CapacityError` if the queue is full, `RateLimitError` if its business's is."""
        if self._is_full(len(self.waiting), self._limits.max_waiting, sequence):
            raise CapacityError(
                f"{len(self.waiting)} requests are waiting already: try again in a moment",
                retry_after_s=self._retry_after_s(),
            )
        business = sequence.business
        num_waiting = sum(other.business.name == business.name for other in self.waiting)
        if business.max_waiting is not None and self._is_full(num_waiting, business.max_waiting, sequence):
            raise RateLimitError(
                f"{num_waiting} requests of {business.name!r} are waiting already, its limit",
                retry_after_s=self._retry_after_s(),
            )
        self._arrival[sequence.request_id] = self._num_arrived
        self._num_arrived += 1
        self.waiting.append(sequence)

    def _is_full(self, num_waiting: int, max_waiting: int, sequence: Sequence) -> bool:
        """Who can start in the next step does not queue: without that, a limit of 0 would let nobody in."""
        return num_waiting >= max_waiting and (num_waiting > 0 or not self.has_place_for(sequence))

    def find(self, request_id: str) -> Sequence | None:
        """The queued or running sequence of a request."""
        return next((s for s in (*self.running, *self.waiting) if s.request_id == request_id), None)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that is finished."""
        (self.running if sequence in self.running else self.waiting).remove(sequence)
        del self._arrival[sequence.request_id]

    def start(self, sequence: Sequence) -> None:
        """A waiting sequence has got its memory."""
        self.waiting.remove(sequence)
        self.running.append(sequence)
        sequence.has_run = False

    def schedule(self, now_s: float) -> Batch | None:
        """The next step, or None if nothing can run."""
        self._start_waiting(now_s)
        ranked = sorted(self.running, key=lambda s: self._rank(s, now_s))
        if not ranked:
            return None
        batch = self._batch(ranked, now_s)
        batch = replace(batch, pre_empted=self._pass_over(batch, ranked))
        for work in batch.work:
            work.sequence.served_at_s = now_s
            work.sequence.has_run, work.sequence.is_passed_over = True, False
        self._last = batch
        return batch

    def _batch(self, ranked: list[Sequence], now_s: float) -> Batch:
        peers = self._peers(ranked, now_s)
        prefilling = [s for s in peers if s.is_prefilling]
        if prefilling and self._is_turn_of_prefill(peers):
            return self._prefill(prefilling)
        return self._decode([s for s in ranked if not s.is_prefilling])

    def _is_turn_of_prefill(self, peers: list[Sequence]) -> bool:
        """Every other time, and for who comes first and did not run in the last step: another prompt's bucket did."""
        if self._last.kind is StepKind.DECODE or all(s.is_prefilling for s in peers):
            return True
        return peers[0].is_prefilling and all(work.sequence is not peers[0] for work in self._last.work)

    def _pass_over(self, batch: Batch, ranked: list[Sequence]) -> tuple[Sequence, ...]:
        """Mark those whom others that came later, and rank before them, now begin to pass over."""
        chosen = {id(work.sequence) for work in batch.work}
        newest, passed = -1, []
        for sequence in ranked:
            arrival = self._arrival[sequence.request_id]
            if id(sequence) in chosen:
                newest = max(newest, arrival)
            elif sequence.has_run and not sequence.is_passed_over and arrival < newest:
                sequence.is_passed_over = True
                passed.append(sequence)
        return tuple(passed)

    def _peers(self, ranked: list[Sequence], now_s: float) -> list[Sequence]:
        """The first, and those who may share its step: of its level, or of its priority whatever their age."""
        first, level = ranked[0], self._level(ranked[0], now_s)
        return [s for s in ranked if self._level(s, now_s) == level or s.business.priority == first.business.priority]

    def _level(self, sequence: Sequence, now_s: float) -> int:
        if self._limits.policy == "first_come":
            return 0
        return sequence.business.priority + int((now_s - sequence.served_at_s) / self._limits.ageing_s)

    def _rank(self, sequence: Sequence, now_s: float) -> tuple[float, ...]:
        """Lower runs first."""
        arrival = self._arrival[sequence.request_id]
        if self._limits.policy == "first_come":
            return (arrival,)
        return (-self._level(sequence, now_s), sequence.deadline_s, arrival)

    # Who gets memory

    def _start_waiting(self, now_s: float) -> None:
        """Those behind one that waits for memory start only in the place of others, which takes nothing from it."""
        self.blocked = None
        may_take_room = True
        for sequence in sorted(self.waiting, key=lambda s: self._rank(s, now_s)):
            if sequence.leader is not None or self._has_enough_running(sequence.business):
                continue
            admission = self._admit(sequence, may_take_room=may_take_room)
            if admission is Admission.ADMITTED:
                self.start(sequence)
            elif admission is not Admission.ENDED:
                self.blocked = self.blocked or sequence
                may_take_room = may_take_room and admission is not Admission.NO_ROOM

    def has_place_for(self, sequence: Sequence) -> bool:
        """Whether another sequence of this business may run beside those that do."""
        return len(self.running) < self._limits.max_running and not self._has_enough_running(sequence.business)

    def expected_wait_s(self, sequence: Sequence, now_s: float) -> float:
        """How long the prompts of those that would come before it take, as far as steps have been measured."""
        level = sequence.business.priority
        before = [s for s in (*self.running, *self.waiting) if self._is_before(s, level, sequence.deadline_s, now_s)]
        return self._costs.prefill_s(sum(s.num_pending for s in before if s.is_prefilling))

    def _retry_after_s(self) -> float:
        """A guess at when the queue will be shorter: once the prompts in it have run."""
        num_tokens = sum(s.num_pending for s in (*self.running, *self.waiting) if s.is_prefilling)
        return max(_LEAST_RETRY_S, self._costs.prefill_s(num_tokens))

    def _is_before(self, sequence: Sequence, level: int, deadline_s: float, now_s: float) -> bool:
        if self._limits.policy == "first_come":
            return True
        its_level = self._level(sequence, now_s)
        return its_level > level or (its_level == level and sequence.deadline_s <= deadline_s)

    def _has_enough_running(self, business: Business) -> bool:
        num_running = sum(sequence.business.name == business.name for sequence in self.running)
        return business.max_running is not None and num_running >= business.max_running

    def _admit(self, sequence: Sequence, *, may_take_room: bool) -> Admission:
        """Admit it, if need be in the place of others of lower priority; nobody makes way unless that may help."""
        has_place = may_take_room and len(self.running) < self._limits.max_running
        admission = self._memory.admit(sequence) if has_place else Admission.NO_ROOM
        victims = self._lower(sequence)
        if admission is not Admission.NO_ROOM or not victims:
            return admission
        outlook = self._memory.outlook(sequence, victims)
        if outlook is not Admission.ADMITTED:
            return outlook
        for victim in victims:
            if not self._memory.evict(victim):
                break
            self.running.remove(victim)
            self.waiting.append(victim)
            admission = self._memory.admit(sequence)
            if admission is not Admission.NO_ROOM:
                break
        return admission

    def _lower(self, sequence: Sequence) -> list[Sequence]:
        """Running sequences of lower priority, the lowest first and of these the latest.

        Age counts for nothing here, else two could evict each other in turns.
        """
        if self._limits.policy == "first_come":
            return []
        lower = [s for s in self.running if s.business.priority < sequence.business.priority]
        return sorted(lower, key=lambda s: (s.business.priority, -self._arrival[s.request_id]))

    # What runs together

    def _prefill(self, sequences: list[Sequence]) -> Batch:
        """The next chunk of the first sequence, and of those behind it as far as they fit as well."""
        bucket_tokens = left = self._bucket_tokens()
        work: list[Work] = []
        for sequence in self._miscible(sequences):
            num_tokens = min(sequence.num_pending, bucket_tokens)
            if num_tokens > left:
                break
            work.append(Work(sequence, num_tokens))
            left -= num_tokens
        return Batch(StepKind.PREFILL, tuple(work))

    def _bucket_tokens(self) -> int:
        """As many tokens as run in time, in steps of 32: fewer would pass over the weights too often."""
        most, token_s = self._limits.prefill_chunk_tokens, self._costs.prefill_s(1)
        if not self._limits.cuts_anywhere or token_s * most <= self._limits.max_bucket_s:
            return most
        in_time = int(self._limits.max_bucket_s / token_s)
        return min(most, max(_LEAST_BUCKET_TOKENS, in_time // _LEAST_BUCKET_TOKENS * _LEAST_BUCKET_TOKENS))

    def _miscible(self, sequences: list[Sequence]) -> list[Sequence]:
        """Those that may run in one step with the first."""
        if self._limits.mixes_adapters:
            return sequences
        return [sequence for sequence in sequences if sequence.adapter == sequences[0].adapter]

    def _decode(self, ranked: list[Sequence]) -> Batch:
        """One token of each, as far as nobody's next token comes too late for it.

        Those of one adapter are side by side, so that a step switches adapters least often.
        """
        chosen: list[Sequence] = []
        allowed_s = math.inf
        for sequence in self._miscible(ranked):
            if self._limits.policy == "deadlines":
                target_s = max(sequence.business.targets.next_token_s, _TOLERANCE * self._costs.decode_s(1))
                allowed_s = min(allowed_s, target_s)
            if chosen and self._costs.decode_s(len(chosen) + 1) > allowed_s:
                break
            chosen.append(sequence)
        first_of_adapter: dict[str | None, int] = {}
        for index, sequence in enumerate(chosen):
            first_of_adapter.setdefault(sequence.adapter, index)
        grouped = sorted(chosen, key=lambda s: first_of_adapter[s.adapter])
        return Batch(StepKind.DECODE, tuple(Work(s, 1) for s in grouped))
