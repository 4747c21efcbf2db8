"""Tool calls as Qwen and Hermes models write them: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass, field

_CALL = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function's name and its arguments as JSON text."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")


def parse_tool_calls(text: str) -> tuple[str, list[ToolCall]]:
    """What is left of the text, and its calls. If one of them can't be read, the text stays as it is."""
    try:
        calls = [_call(json.loads(found)) for found in _CALL.findall(text)]
    except (ValueError, KeyError, TypeError):
        return text, []
    return (_CALL.sub("", text).strip(), calls) if calls else (text, [])


def _call(document: dict[str, object]) -> ToolCall:
    name, arguments = document["name"], document.get("arguments", {})
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise TypeError("not a call")
    return ToolCall(name, json.dumps(arguments, ensure_ascii=False))
