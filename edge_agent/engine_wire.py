"""What the agent and its engine process say to each other: one JSON object a line, tagged with its record's name.

Both ends are always of the same version, so there is no negotiation. Knows records, not pipes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from engine.strict_json import DecodeError, canonical_json, from_document

MAX_LINE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class OpenEngine:
    """First of all: the base to open, and the engine's configuration as plain values."""

    bundle: str
    config: Mapping[str, Any] = field(default_factory=dict)
    heartbeat_interval_s: float = 1.0


@dataclass(frozen=True, slots=True)
class LoadAdapter:
    """Make an adapter's bundle known."""

    call_id: str
    bundle: str


@dataclass(frozen=True, slots=True)
class UnloadAdapter:
    """Forget an adapter that no request uses any more."""

    call_id: str
    digest: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """Messages for the chat template, or plain text."""

    messages: tuple[Mapping[str, Any], ...] | None = None
    tools: tuple[Mapping[str, Any], ...] | None = None
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Generate:
    """Start a request. `sampling` holds fields of `engine.sampling.SamplingParams`."""

    call_id: str
    prompt: Prompt
    adapter: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)


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


@dataclass(frozen=True, slots=True)
class Timing:
    """What a request took, see `engine.sequence.Usage`."""

    prompt_tokens: int
    completion_tokens: int
    ttft_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step added to an answer; the last one has a finish reason and the timing."""

    call_id: str
    text: str
    num_tokens: int
    finish_reason: str | None = None
    timing: Timing | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Sent between steps and while idle. Counters grow from the engine's start."""

    counters: Mapping[str, float] = field(default_factory=dict)


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
