"""Makes a request a sequence that may be queued, or refuses it.

It must have an adapter that is loaded, a prompt that the model knows, room in all limits, budget left, and a chance to
be served in time. What can never be served is refused for good, what cannot be served now with an error that says when
to try again. Holds no states and runs nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from engine.adapters import ResidentAdapters
from engine.backends import Backend
from engine.business import Business
from engine.errors import CapacityError, ContextLengthError, InvalidInputError
from engine.scheduler import Scheduler
from engine.sequence import Request, Sequence
from engine.token_budgets import TokenBudgets
from engine.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Limits:
    """max_context_tokens: of prompt and answer. max_state_bytes: what a state alone may take.

    request_timeout_s: the longest that a request may take, if its business says nothing else.
    """

    vocab_size: int
    max_context_tokens: int
    max_state_bytes: int
    request_timeout_s: float


class Intake:
    """Checks requests against the engine's limits and those of their business."""

    def __init__(
        self,
        limits: Limits,
        *,
        backend: Backend,
        tokenizer: Tokenizer,
        adapters: ResidentAdapters,
        scheduler: Scheduler,
    ) -> None:
        self.limits = limits
        self._backend = backend
        self._tokenizer = tokenizer
        self._adapters = adapters
        self._scheduler = scheduler
        self._budgets = TokenBudgets()

    def sequence(self, request: Request, now_s: float) -> Sequence:
        """The sequence of a request that may be queued.

        Raises `InvalidInputError` (`UnknownAdapterError`, `ContextLengthError`), `CapacityError` for what would come
        too late, and `RateLimitError` while the business has used up its tokens.
        """
        if self._scheduler.find(request.request_id) is not None:
            raise InvalidInputError(f"request id {request.request_id!r} is in use: give each request its own")
        if request.adapter is not None:
            self._adapters.require_known(request.adapter)
        sequence = Sequence(
            request,
            max_tokens=self._check(request, now_s),
            eos_token_ids=self._tokenizer.eos_token_ids,
            text=self._tokenizer.stream(),
            submitted_at=now_s,
        )
        sequence.leader = self._leader_of(request)
        self._check_wait(sequence, now_s)
        return sequence

    def timeout_s(self, business: Business) -> float:
        """The longest that a request of this business may take."""
        return self.limits.request_timeout_s if business.timeout_s is None else business.timeout_s

    def spend(self, request: Request, num_tokens: int, now_s: float) -> None:
        """Take tokens of the business's budget."""
        self._budgets.spend(request.business, num_tokens, now_s)

    def _check(self, request: Request, now_s: float) -> int:
        """How many tokens the answer may have."""
        num_prompt = len(request.prompt_token_ids)
        if not num_prompt or not all(0 <= token < self.limits.vocab_size for token in request.prompt_token_ids):
            raise InvalidInputError(
                f"the prompt must have at least one token, each from 0 to {self.limits.vocab_size - 1}"
            )
        max_tokens = self._check_context(request)
        self._check_memory(request, num_prompt + max_tokens)
        self._budgets.require(request.business, now_s)
        return max_tokens

    def _check_wait(self, sequence: Sequence, now_s: float) -> None:
        """Refuse what would run into its time-out while it waits."""
        wait_s, timeout_s = self._scheduler.expected_wait_s(sequence, now_s), self.timeout_s(sequence.business)
        if wait_s > timeout_s:
            raise CapacityError(
                f"requests that come before would take {wait_s:.0f} s, and this one may take {timeout_s:g}: "
                "try again later",
                retry_after_s=wait_s - timeout_s,
            )

    def _leader_of(self, request: Request) -> Sequence | None:
        """The request whose work on the prompt serves this one too, if it has not come too far."""
        leader = self._scheduler.find(request.leader) if request.leader is not None else None
        if leader is None or leader.num_answer_tokens:
            return None
        leader = leader.leader or leader  # one that follows itself runs no prompt
        theirs = leader.request
        is_same = (theirs.prompt_token_ids, theirs.adapter) == (request.prompt_token_ids, request.adapter)
        return leader if is_same and theirs.business.name == request.business.name else None

    def _check_context(self, request: Request) -> int:
        num_prompt, max_tokens = len(request.prompt_token_ids), request.sampling.max_tokens
        limit = self.limits.max_context_tokens
        if request.business.max_context_tokens is not None:
            limit = min(limit, request.business.max_context_tokens)
        wanted = num_prompt + (1 if max_tokens is None else max_tokens)
        if wanted > limit:
            raise ContextLengthError(
                f"{num_prompt} prompt tokens and an answer of {wanted - num_prompt} make {wanted}, the context holds "
                f"{limit}: shorten the prompt or lower max_tokens"
            )
        if max_tokens is not None:
            return max_tokens
        return max(1, self._affordable_tokens(request) - num_prompt)

    def _check_memory(self, request: Request, num_tokens: int) -> None:
        if self._backend.state_bytes(num_tokens) > self._memory_limit(request):
            raise ContextLengthError(
                f"prompt and answer make {num_tokens} tokens, there is never memory for more than "
                f"{self._affordable_tokens(request)}: shorten the prompt or lower max_tokens, or raise the memory "
                "budget of the engine or of the business"
            )

    def _affordable_tokens(self, request: Request) -> int:
        """How long a request may be for its state to have room, if it is alone."""
        tokens = range(self.limits.max_context_tokens + 1)
        return max(0, bisect_right(tokens, self._memory_limit(request), key=self._backend.state_bytes) - 1)

    def _memory_limit(self, request: Request) -> int:
        own = request.business.memory_bytes
        return self.limits.max_state_bytes if own is None else min(own, self.limits.max_state_bytes)
