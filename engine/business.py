"""Whose requests the engine runs: how urgent a business is, and what it may take.

A business ships with its adapter (the manifest's `business`), and a device's configuration may override it. The engine
gets it with each request and keeps nothing but its use of budgets, by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final

from engine.errors import InvalidInputError
from engine.strict_json import DecodeError, from_document

MOST_PRIORITY: Final = 100


class Deadline(StrEnum):
    """How soon a business wants its answers."""

    URGENT = "urgent"
    INTERACTIVE = "interactive"
    PATIENT = "patient"


@dataclass(frozen=True, slots=True)
class Targets:
    """Seconds from a request to its first token, and from one token to the next, that a deadline stands for."""

    first_token_s: float
    next_token_s: float


TARGETS: Final[Mapping[Deadline, Targets]] = {
    Deadline.URGENT: Targets(0.5, 0.1),
    Deadline.INTERACTIVE: Targets(3.0, 0.25),
    Deadline.PATIENT: Targets(60.0, math.inf),
}


@dataclass(frozen=True, slots=True)
class Business:
    """A business; None means no limit but the engine's.

    name: what budgets, caches and figures are kept by. priority: higher runs first, whatever the deadlines.
    max_running, max_waiting: requests that may hold memory, and that may queue before them.
    tokens_per_minute: of prompts and answers, on average; a request that begins within it is let through whole.
    max_context_tokens: of prompt and answer of a request. memory_bytes: of its requests' states and cached prompts.
    timeout_s: the longest that a request may take. prompt_cache: whether the beginnings of its prompts are kept.
    """

    name: str = ""
    priority: int = 0
    deadline: Deadline = Deadline.INTERACTIVE
    max_running: int | None = None
    max_waiting: int | None = None
    tokens_per_minute: int | None = None
    max_context_tokens: int | None = None
    memory_bytes: int | None = None
    timeout_s: float | None = None
    prompt_cache: bool = False

    def __post_init__(self) -> None:
        _require(
            abs(self.priority) <= MOST_PRIORITY, "priority", f"a whole number from -{MOST_PRIORITY} to {MOST_PRIORITY}"
        )
        for name in ("max_running", "tokens_per_minute", "max_context_tokens", "memory_bytes"):
            _require(getattr(self, name) is None or getattr(self, name) >= 1, name, "a whole number of at least 1")
        _require(self.max_waiting is None or self.max_waiting >= 0, "max_waiting", "a whole number of at least 0")
        _require(self.timeout_s is None or self.timeout_s > 0, "timeout_s", "a number above 0")

    @classmethod
    def from_mapping(cls, document: Mapping[str, Any]) -> Business:
        """The fields above out of plain values; others are left alone. Raises `InvalidInputError` naming a bad one."""
        known = {spec.name for spec in fields(cls)}
        try:
            return from_document(cls, {name: value for name, value in document.items() if name in known})
        except DecodeError as error:
            raise InvalidInputError(f"business.{error}") from error

    @property
    def targets(self) -> Targets:
        """What its deadline stands for."""
        return TARGETS[self.deadline]


def _require(holds: bool, name: str, what: str) -> None:  # noqa: FBT001 - reads like assert
    if not holds:
        raise InvalidInputError(f"business.{name}: give {what}")
