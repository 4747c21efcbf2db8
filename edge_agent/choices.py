"""The answers to one request while they come: read piece by piece, counted once each, closed whatever happens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from edge_agent.answers import Answers
from edge_agent.engine_wire import Piece, TokenLogprobs
from edge_agent.errors import AgentError
from edge_agent.openai_requests import Asked, ToolUse
from edge_agent.recorder import Outcome, Recorder, outcome_of
from edge_agent.served import Model
from edge_agent.tool_calls import Part, ToolCall, ToolCallReader
from engine.metrics import Usage


@dataclass(frozen=True, slots=True)
class Addition:
    """What a piece adds to the choice of this index.

    text_offset: length of all tokens before those of `logprobs`, in characters.
    """

    index: int
    parts: tuple[Part, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()
    text_offset: int = 0
    finish_reason: str | None = None


@dataclass(slots=True)
class Choice:
    """One answer as far as it has come."""

    index: int
    tool_use: ToolUse | None
    text: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    usage: Usage | None = None
    outcome: Outcome = Outcome.CANCELLED
    _reader: ToolCallReader | None = None
    _num_token_chars: int = 0

    def __post_init__(self) -> None:
        self._reader = self.tool_use.reader() if self.tool_use else None

    def add(self, piece: Piece) -> Addition:
        """Take a piece."""
        parts = tuple(self._taken(self._read(piece)))
        if piece.finish_reason:
            self.usage, self.outcome = piece.usage, Outcome.FINISHED
            is_call = bool(self.calls) and self.tool_use is not None and not self.tool_use.is_named
            self.finish_reason = "tool_calls" if is_call else piece.finish_reason
        addition = Addition(self.index, parts, piece.logprobs, self._num_token_chars, self.finish_reason)
        self.logprobs += piece.logprobs
        self._num_token_chars += sum(len(logprobs.chosen.text) for logprobs in piece.logprobs)
        return addition

    def _read(self, piece: Piece) -> Iterator[Part]:
        if self._reader is None:
            if piece.text:
                yield piece.text
            return
        yield from self._reader.push(piece.text)
        if piece.finish_reason:
            yield from self._reader.flush()

    def _taken(self, parts: Iterator[Part]) -> Iterator[Part]:
        """The parts that count, noted; a second call does not if one alone was asked for."""
        for part in parts:
            if isinstance(part, str):
                self.text += part
            elif self.calls and self.tool_use and not self.tool_use.takes_several:
                continue
            else:
                self.calls.append(part)
            yield part


class Reply:
    """An answer under way with all its choices: iterates over what comes, and notes each choice's end exactly once."""

    def __init__(self, asked: Asked, model: Model, answers: Answers, recorder: Recorder) -> None:
        self.asked = asked
        self.model = model
        self.choices = [Choice(index, asked.tool_use) for index in range(asked.num_choices)]
        self._answers = answers
        self._recorder = recorder
        self._is_closed = False

    async def __aiter__(self) -> AsyncIterator[Addition]:
        try:
            async for piece in self._answers:
                yield self.choices[self._answers.place_of[piece.call_id]].add(piece)
        except AgentError as error:
            for choice in self.choices:
                if choice.finish_reason is None:
                    choice.outcome = outcome_of(error)
            raise

    @property
    def is_finished(self) -> bool:
        """Whether all choices have come."""
        return all(choice.finish_reason for choice in self.choices)

    @property
    def usage(self) -> Usage:
        """Of all choices. A prompt counts once, however many answers it has; times of work are sums."""
        usages = [choice.usage or Usage() for choice in self.choices]
        firsts = usages[:: self.asked.num_answers]
        return Usage(
            prompt_tokens=sum(usage.prompt_tokens for usage in firsts),
            completion_tokens=sum(usage.completion_tokens for usage in usages),
            cached_tokens=sum(usage.cached_tokens for usage in firsts),
            queue_s=min(usage.queue_s for usage in usages),
            ttft_s=min(usage.ttft_s for usage in usages),
            prefill_s=sum(usage.prefill_s for usage in usages),
            decode_s=sum(usage.decode_s for usage in usages),
        )

    def close(self) -> None:
        """Give up what has not come yet."""
        if not self._is_closed:
            self._is_closed = True
            self._answers.close()
            for choice in self.choices:
                self._recorder.request_ended(self.model, choice.outcome, choice.usage)
