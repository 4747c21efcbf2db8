"""What a request must fulfil before it is queued: a prompt that the model knows, room in all limits, budget left.

What can never be served is refused at once and for good, what cannot be served now with an error that says when to try
again. Knows limits, no queue and no states.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from engine.backends import Backend
from engine.errors import CapacityError, ContextLengthError, InvalidInputError
from engine.sequence import Request
from engine.token_budgets import TokenBudgets


@dataclass(frozen=True, slots=True)
class Limits:
    """max_context_tokens: of prompt and answer. max_state_bytes: what a state alone may take."""

    vocab_size: int
    max_context_tokens: int
    max_state_bytes: int


class Intake:
    """Checks requests against the engine's limits and those of their business."""

    def __init__(self, backend: Backend, limits: Limits) -> None:
        self.limits = limits
        self._backend = backend
        self._budgets = TokenBudgets()

    def check(self, request: Request, now_s: float) -> int:
        """How many tokens the answer may have.

        Raises `InvalidInputError`, `ContextLengthError`, `CapacityError` for what never fits into memory, and
        `RateLimitError` while the business has used up its tokens.
        """
        num_prompt = len(request.prompt_token_ids)
        if not num_prompt or not all(0 <= token < self.limits.vocab_size for token in request.prompt_token_ids):
            raise InvalidInputError(
                f"the prompt must have at least one token, each from 0 to {self.limits.vocab_size - 1}"
            )
        max_tokens = self._check_context(request)
        self._check_memory(request, num_prompt + max_tokens)
        self._budgets.require(request.business, now_s)
        return max_tokens

    def spend(self, request: Request, num_tokens: int, now_s: float) -> None:
        """Take tokens of the business's budget."""
        self._budgets.spend(request.business, num_tokens, now_s)

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
        room = self._memory_limit(request)
        affordable = bisect_right(range(limit + 1), room, key=self._backend.state_bytes) - 1
        return max(1, affordable - num_prompt)

    def _check_memory(self, request: Request, num_tokens: int) -> None:
        size_bytes, limit = self._backend.state_bytes(num_tokens), self._memory_limit(request)
        if size_bytes > limit:
            raise CapacityError(
                f"{num_tokens} tokens need {size_bytes} bytes of KV cache, {limit} is all that there may be: "
                "ask for fewer tokens, or raise the memory budget of the engine or of the business"
            )

    def _memory_limit(self, request: Request) -> int:
        own = request.business.memory_bytes
        return self.limits.max_state_bytes if own is None else min(own, self.limits.max_state_bytes)
