"""Counts what the engine does: fills the meters of `engine.metrics`, and what a sequence says of its own use.

Is told of each event when it happens, and looks at the clock then. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.metrics import Meter, Metrics
from engine.scheduler import Batch, StepKind
from engine.sequence import FinishReason, Sequence


class Accounts:
    """The engine's meters, with the events that move them."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._clock = clock
        self._current_adapter: str | None = None

    def step_ran(self, batch: Batch, seconds: float, switched_s: float) -> None:
        """A step took so many seconds, `switched_s` of them to go over to other adapters."""
        num_rows = sum(work.num_tokens for work in batch.work)
        for work in batch.work:
            sequence, share_s, meter = work.sequence, seconds * work.num_tokens / num_rows, self._of(work.sequence)
            if batch.kind is StepKind.PREFILL:
                meter.add(prefill_tokens=work.num_tokens, prefill_s=share_s)
                sequence.prefill_s += share_s
            else:
                meter.add(decode_tokens=work.num_tokens, decode_s=share_s)
                sequence.decode_s += share_s
            if sequence.adapter != self._current_adapter:
                meter.add(adapter_switches=1, adapter_switch_s=switched_s)
                switched_s = 0.0  # once, with the first
            self._current_adapter = sequence.adapter

    def started(self, sequence: Sequence) -> None:
        """A sequence has got its memory."""
        if sequence.num_evictions:
            return  # it comes back
        sequence.queue_s = self._clock() - sequence.submitted_at
        meter = self._of(sequence)
        meter.queue_s.observe(sequence.queue_s)
        meter.add(prompt_tokens=sequence.num_prompt_tokens, cached_tokens=sequence.num_cached_tokens)

    def token_came(self, sequence: Sequence) -> None:
        """A sequence has got its next token."""
        now_s, meter = self._clock(), self._of(sequence)
        if sequence.last_token_at is None:
            sequence.ttft_s = now_s - sequence.submitted_at
            meter.ttft_s.observe(sequence.ttft_s)
        else:
            meter.inter_token_s.observe(now_s - sequence.last_token_at)
        sequence.last_token_at = now_s

    def pre_empted(self, batch: Batch) -> None:
        """A step passed sequences over."""
        for sequence in batch.pre_empted:
            self._of(sequence).add(pre_emptions=1)

    def evicted(self, sequence: Sequence) -> None:
        """A sequence has lost its state to another."""
        self._of(sequence).add(evictions=1)

    def ended(self, sequence: Sequence) -> None:
        """A sequence is over, for whatever reason."""
        self._of(sequence).add(
            failed=sequence.finish_reason is FinishReason.ERROR,
            cancelled=sequence.finish_reason is FinishReason.CANCELLED,
        )

    def _of(self, sequence: Sequence) -> Meter:
        return self._metrics.of(sequence.adapter, sequence.business.name)
