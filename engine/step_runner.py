"""Runs a batch on the back end: the tokens of its sequences go in, logits and the next tokens come out.

Times each step for `engine.step_costs`. Knows no queue, and nothing of what becomes of a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine.accounts import Accounts
from engine.backends import Backend, Logits, Segment
from engine.errors import BundleError, NumericalError
from engine.sampling import TokenLogprobs, draw_uniform, logprobs_of
from engine.scheduler import Batch, StepKind
from engine.sequence import Sequence
from engine.step_costs import StepCosts


@dataclass(frozen=True, slots=True)
class Sampled:
    """The next token of a sequence, None where there is none to be had; its probabilities if they were asked for."""

    sequence: Sequence
    token_id: int | None
    logprobs: tuple[TokenLogprobs, ...] = ()


class StepRunner:
    """Between batches of sequences and a back end's segments."""

    def __init__(self, backend: Backend, costs: StepCosts, accounts: Accounts, clock: Callable[[], float]) -> None:
        self._backend = backend
        self._costs = costs
        self._accounts = accounts
        self._clock = clock

    def damaged_adapters(self, batch: Batch) -> dict[str, BundleError]:
        """The adapters of a batch whose files are not those any more that were loaded, and what is wrong."""
        damaged: dict[str, BundleError] = {}
        for digest in batch.adapters:
            try:
                self._backend.check_adapter(digest)
            except BundleError as error:
                damaged[digest] = error
        return damaged

    def run(self, batch: Batch) -> list[Logits]:
        """Append the batch's tokens to their states; logits of the last row of whoever gets a token next."""
        segments = [self._segment(work.sequence, work.num_tokens) for work in batch.work]
        started_s, switched_s = self._clock(), self._backend.adapter_switch_s
        logits = self._backend.step(segments)
        seconds = self._clock() - started_s
        num_rows = sum(work.num_tokens for work in batch.work)
        observe = self._costs.observe_prefill if batch.kind is StepKind.PREFILL else self._costs.observe_decode
        observe(num_rows, seconds)
        self._accounts.step_ran(batch, seconds, self._backend.adapter_switch_s - switched_s)
        for work in batch.work:
            work.sequence.num_computed += work.num_tokens
        return logits

    def draw(self, sequence: Sequence, logits: Logits) -> Sampled:
        """The next token out of one row of logits; the sequence fails if they are not finite."""
        params = sequence.request.sampling
        try:
            uniform = draw_uniform(params, sequence.generator)
            token_id = self._backend.next_token(logits, params, sequence.token_ids, uniform)
        except NumericalError as error:
            sequence.fail(error)
            return Sampled(sequence, None)
        if params.logprobs is None:
            return Sampled(sequence, token_id)
        return Sampled(sequence, token_id, (logprobs_of(logits, token_id, params.logprobs),))

    def _segment(self, sequence: Sequence, num_tokens: int) -> Segment:
        assert sequence.state is not None
        token_ids = np.array(sequence.take(num_tokens), np.int32)
        wants_logits = num_tokens == sequence.num_pending
        return Segment(sequence.state, token_ids, sequence.adapter, (num_tokens - 1,) if wants_logits else ())
