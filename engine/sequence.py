"""One request on its way to an answer: its tokens, its text, and how far it is. Holds no arrays and runs nothing."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from engine.backends import State
from engine.business import Business
from engine.errors import EngineError
from engine.metrics import Usage
from engine.prefix_cache import Lease
from engine.sampling import SamplingParams, TokenLogprobs, new_generator
from engine.stopping import StopStrings


class FinishReason(StrEnum):
    """Why an answer ended. `stop`: an end token or a stop string; `length`: max_tokens or the context is reached."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


class TextStream(Protocol):
    """Turns tokens into text as they come (`engine.tokenizer.Tokenizer.stream`)."""

    def push(self, token_id: int) -> str:
        """The text that is whole with this token; may be empty in the middle of a character."""

    def flush(self) -> str:
        """The text that is left."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a client wants. `adapter` is the digest of a loaded adapter, None for the bare base.

    `leader` is the id of another request with the same prompt and adapter, if its work on the prompt is to serve this
    one as well.
    """

    prompt_token_ids: tuple[int, ...]
    request_id: str
    adapter: str | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    business: Business = field(default_factory=Business)
    leader: str | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """What one step added to one request.

    `token_ids` are all new tokens, an end token included; `text` is what may be shown: no end token, no stop string,
    no half character. The last output has a `finish_reason` and the `usage`; after an error also what went wrong.
    `logprobs` are those of `token_ids`, if the request asked for them.
    """

    request_id: str
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    error: EngineError | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()


class Sequence:
    """A request with its progress.

    The KV `state`, the `prefix` that it shares with a cache and the `kv_bytes` that are reserved belong to whoever runs
    the sequence. `num_computed` counts the tokens that the state holds. While `leader` is set the sequence waits for
    that one to run the prompt of both. `served_at_s`: when it last ran, or came. `has_run`: whether a step has run it
    since it got its memory; `is_passed_over`: whether others that came later run in its place now.
    """

    def __init__(
        self,
        request: Request,
        *,
        max_tokens: int,
        eos_token_ids: Collection[int],
        text: TextStream,
        submitted_at: float,
    ) -> None:
        self.request = request
        self.max_tokens = max_tokens
        self.generator = new_generator(request.sampling)
        self.token_ids = list(request.prompt_token_ids)
        self.num_computed = 0
        self.state: State | None = None
        self.prefix: Lease | None = None
        self.kv_bytes = 0
        self.leader: Sequence | None = None
        self.followers: list[Sequence] = []
        self.finish_reason: FinishReason | None = None
        self.error: EngineError | None = None
        self.submitted_at = submitted_at
        self.served_at_s = submitted_at
        self.last_token_at: float | None = None
        self.has_run = False
        self.is_passed_over = False
        self.num_cached_tokens = 0
        self.num_evictions = 0
        self.queue_s = 0.0
        self.ttft_s = 0.0
        self.prefill_s = 0.0
        self.decode_s = 0.0
        self._eos_token_ids = frozenset() if request.sampling.ignore_eos else frozenset(eos_token_ids)
        self._text = text
        self._stops = StopStrings(request.sampling.stop)

    @property
    def request_id(self) -> str:
        """The client's name for the request."""
        return self.request.request_id

    @property
    def adapter(self) -> str | None:
        """Digest of the adapter, None for the bare base."""
        return self.request.adapter

    @property
    def business(self) -> Business:
        """Whose request it is."""
        return self.request.business

    @property
    def deadline_s(self) -> float:
        """When its next token should be there."""
        targets = self.business.targets
        if self.last_token_at is None:
            return self.submitted_at + targets.first_token_s
        return self.last_token_at + targets.next_token_s

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.request.prompt_token_ids)

    @property
    def num_answer_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_max_tokens(self) -> int:
        """Room that the state must have: the longest that prompt and answer can get."""
        return self.num_prompt_tokens + self.max_tokens

    @property
    def is_prefilling(self) -> bool:
        """Whether tokens have to run before the next one can: of the prompt, or all if the state was taken away."""
        return self.num_computed < self.num_prompt_tokens or self.num_pending > 1

    @property
    def num_pending(self) -> int:
        """Tokens that are known and have not run yet; when none are left, the next one can be sampled."""
        return len(self.token_ids) - self.num_computed

    @property
    def usage(self) -> Usage:
        """What the request took so far."""
        return Usage(
            prompt_tokens=self.num_prompt_tokens,
            completion_tokens=self.num_answer_tokens,
            cached_tokens=self.num_cached_tokens,
            queue_s=self.queue_s,
            ttft_s=self.ttft_s,
            prefill_s=self.prefill_s,
            decode_s=self.decode_s,
        )

    def take(self, num_tokens: int) -> list[int]:
        """The next tokens to run."""
        return self.token_ids[self.num_computed : self.num_computed + num_tokens]

    def accept(self, token_id: int) -> str:
        """Append a sampled token; returns the text that may be shown, and sets `finish_reason` if it was the last."""
        self.token_ids.append(token_id)
        if token_id in self._eos_token_ids:
            self.finish_reason = FinishReason.STOP
            return self._end_text()
        text = self._stops.push(self._text.push(token_id))
        if self._stops.matched is not None:
            self.finish_reason = FinishReason.STOP
        elif self.num_answer_tokens >= self.max_tokens:
            text += self._end_text()
            # The last characters may have completed a stop string.
            self.finish_reason = FinishReason.LENGTH if self._stops.matched is None else FinishReason.STOP
        return text

    def fail(self, error: EngineError) -> None:
        """End the sequence because it cannot go on."""
        self.finish_reason, self.error = FinishReason.ERROR, error

    def _end_text(self) -> str:
        return self._stops.push(self._text.flush()) + self._stops.flush()
