"""Tool calls as Qwen and Hermes models write them: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

_OPENING: Final = "<tool_call>"
_CLOSING: Final = "</tool_call>"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function's name and its arguments as JSON text."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")


Part = str | ToolCall


def call_beginning(name: str | None = None) -> str:
    """How an answer begins that is a call, of this function if one is named. Ends where models' tokens end, too."""
    return f'{_OPENING}\n{{"name": "' + ("" if name is None else f'{name}", "arguments":')


class ToolCallReader:
    """Reads one answer as it comes: text passes on at once, a call as soon as it is whole.

    A call that can't be read stays text. Blanks beside a call belong to neither.
    """

    def __init__(self, beginning: str = "") -> None:
        """`beginning`: of the answer, if that is not going to be pushed."""
        self._held = beginning
        self._is_after_call = False

    def push(self, text: str) -> Iterator[Part]:
        """What is certain with this text."""
        self._held += text
        while (block := self._first_block()) is not None:
            before, written, self._held = self._held.partition(block)
            call = _read(written)
            if call is None:
                yield from self._text(before + written)
            else:
                yield from self._text(before.rstrip())
                self._is_after_call = True
                yield call
        cut = len(self._held) - self._num_undecided()
        ready, self._held = self._held[:cut], self._held[cut:]
        yield from self._text(ready)

    def flush(self) -> Iterator[Part]:
        """What is left at the end of the answer."""
        held, self._held = self._held, ""
        yield from self._text(held)

    def _first_block(self) -> str | None:
        start = self._held.find(_OPENING)
        end = self._held.find(_CLOSING, start)
        return self._held[start : end + len(_CLOSING)] if 0 <= start < end else None

    def _num_undecided(self) -> int:
        """Length of the end that may belong to a call, with the blanks before it."""
        held, start = self._held, self._held.find(_OPENING)
        if start < 0:
            longest = min(len(_OPENING) - 1, len(held))
            start = next((len(held) - n for n in range(longest, 0, -1) if _OPENING.startswith(held[-n:])), len(held))
        return len(held) - len(held[:start].rstrip())

    def _text(self, text: str) -> Iterator[str]:
        text = text.lstrip() if self._is_after_call else text
        if text:
            self._is_after_call = False
            yield text


def parse_tool_calls(text: str) -> tuple[str, list[ToolCall]]:
    """What is left of a whole answer, and its calls."""
    reader = ToolCallReader()
    parts = [*reader.push(text), *reader.flush()]
    return "".join(p for p in parts if isinstance(p, str)), [p for p in parts if isinstance(p, ToolCall)]


def _read(block: str) -> ToolCall | None:
    try:
        document = json.loads(block.removeprefix(_OPENING).removesuffix(_CLOSING))
        name, arguments = document["name"], document.get("arguments", {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False))
