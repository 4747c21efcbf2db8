"""What the agent and its engine process say to each other: one JSON object a line, tagged with its record's name.

Both ends are always of the same version, so there is no negotiation. Knows records, not pipes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from engine.business import Business
from engine.metrics import Counters, Usage
from engine.strict_json import DecodeError, canonical_json, from_document

MAX_LINE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class OpenEngine:
    """First of all: the base to open, and the engine's configuration as plain values.

    marker_descriptor: of the page that `edge_agent.crash_marker` describes.
    """

    bundle: str
    config: Mapping[str, Any] = field(default_factory=dict)
    heartbeat_interval_s: float = 1.0
    marker_descriptor: int | None = None


@dataclass(frozen=True, slots=True)
class LoadAdapter:
    """Make an adapter's bundle known. `digest` is what it should be."""

    call_id: str
    bundle: str
    digest: str


@dataclass(frozen=True, slots=True)
class UnloadAdapter:
    """Forget an adapter that no request uses any more."""

    call_id: str
    digest: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """Messages for the chat template, plain text, or tokens.

    `beginning` is how the answer to messages must begin: it is put behind them, and is no part of what comes back.
    """

    messages: tuple[Mapping[str, Any], ...] | None = None
    tools: tuple[Mapping[str, Any], ...] | None = None
    tool_choice: str | None = None
    beginning: str = ""
    text: str | None = None
    token_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Generate:
    """Start a request. `sampling` holds fields of `engine.sampling.SamplingParams`.

    `siblings`: the sampling of further requests with the same prompt, by their calls. They come in one line, so that
    the first one's work on the prompt serves them all. `leader`: the call of that first one, in a sibling.
    """

    call_id: str
    prompt: Prompt
    adapter: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    business: Business = field(default_factory=Business)
    siblings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    leader: str | None = None

    @property
    def call_ids(self) -> tuple[str, ...]:
        """Its own call and those of its siblings."""
        return (self.call_id, *self.siblings)

    def each(self) -> Iterator[Generate]:
        """One record for each request: the first, then its siblings, who hold the very same prompt."""
        yield replace(self, siblings={})
        for call_id, sampling in self.siblings.items():
            yield replace(self, call_id=call_id, sampling=sampling, siblings={}, leader=self.call_id)


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop a request; nothing more comes for it."""

    call_id: str


@dataclass(frozen=True, slots=True)
class Opened:
    """The engine is ready."""

    base: str
    backend: str


@dataclass(frozen=True, slots=True)
class Done:
    """A call other than `Generate` has succeeded."""

    call_id: str
    value: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """A call has failed; `call_id` is empty if the engine could not open. `is_transient`: try again later."""

    call_id: str
    code: str
    message: str
    is_transient: bool = False
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """A token as text, and the logarithm of its probability."""

    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A token of an answer, and the likeliest ones in its place."""

    chosen: TokenChoice
    likeliest: tuple[TokenChoice, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step added to an answer; the last one has a finish reason and what the request took.

    After an error `failure` says what went wrong, with the call's id.
    """

    call_id: str
    text: str
    num_tokens: int
    finish_reason: str | None = None
    usage: Usage | None = None
    failure: Failed | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """What the engine counted for an adapter and a business since the last reading."""

    adapter: str | None
    business: str
    counters: Counters


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Sent between steps and while idle. `memory_bytes`: what is resident, by kind; empty if nobody looked.

    `update_pause_s`: the longest time since the last one for which loading and unloading adapters held steps up.
    """

    readings: tuple[Reading, ...] = ()
    memory_bytes: Mapping[str, int] = field(default_factory=dict)
    num_running: int = 0
    num_waiting: int = 0
    update_pause_s: float = 0.0


Command = OpenEngine | LoadAdapter | UnloadAdapter | Generate | Cancel
Message = Opened | Done | Failed | Piece | Heartbeat

_RECORDS: Mapping[str, type] = {
    record.__name__: record
    for record in (OpenEngine, LoadAdapter, UnloadAdapter, Generate, Cancel, Opened, Done, Failed, Piece, Heartbeat)
}


def to_line(record: Command | Message) -> bytes:
    """One line, its newline included."""
    return canonical_json([type(record).__name__, asdict(record)]) + b"\n"


def from_line(line: bytes) -> Any:
    """The record of a line; raises `DecodeError` if it is none of ours."""
    try:
        name, document = json.loads(line)
        record = _RECORDS[name]
    except (ValueError, TypeError, KeyError) as error:
        raise DecodeError(f"not a line of ours: {line[:80]!r}") from error
    return from_document(record, document)
