"""Requests of OpenAI's API: bytes in, a checked `Asked` out. Pure; `edge_agent.openai_bodies` says what is allowed."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from edge_agent.api_errors import BadRequestError
from edge_agent.engine_wire import Prompt
from edge_agent.openai_bodies import (
    IDLE_FIELDS,
    AnswerBody,
    ChatBody,
    CompletionBody,
    Message,
    MessageToolCall,
    NamedTool,
)
from edge_agent.tool_calls import ToolCallReader, call_beginning
from engine.strict_json import DecodeError, decode, from_document

B = TypeVar("B", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class ToolUse:
    """How tool calls come in an answer.

    beginning: of the answer, where a call was demanded; it is no part of what the engine gives back. takes_several:
    whether calls after the first one count. is_named: which function to call was said, not only that one shall be.
    """

    beginning: str = ""
    takes_several: bool = True
    is_named: bool = False

    def reader(self) -> ToolCallReader:
        """For one answer."""
        return ToolCallReader(self.beginning)


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked request, whichever kind it was: `num_answers` to each prompt.

    tool_use: None if calls are not looked for. logprobs: whether the answer shall bring them.
    """

    kind: Literal["chat", "text"]
    model: str
    prompts: tuple[Prompt, ...]
    num_answers: int
    sampling: Mapping[str, Any]
    stream: bool
    include_usage: bool
    tool_use: ToolUse | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def num_choices(self) -> int:
        """Answers to all prompts."""
        return len(self.prompts) * self.num_answers

    @property
    def has_logprobs(self) -> bool:
        """Whether the answers shall bring them."""
        return "logprobs" in self.sampling

    @property
    def prompt_field(self) -> str:
        """What the field is called that holds the prompts."""
        return "messages" if self.kind == "chat" else "prompt"


def parse_chat(data: bytes) -> Asked:
    """Check a chat request; raises `BadRequestError`."""
    body = parse_body(ChatBody, data)
    sampling = body.for_engine()
    if body.max_completion_tokens is not None:
        sampling["max_tokens"] = body.max_completion_tokens
    if body.logprobs:
        sampling["logprobs"] = body.top_logprobs
    elif body.top_logprobs:
        raise BadRequestError("top_logprobs is only allowed with logprobs", param="top_logprobs")
    tool_use = _tool_use(body)
    prompt = Prompt(
        messages=tuple(_for_template(message) for message in body.messages),
        tools=tuple(tool.model_dump(exclude_none=True) for tool in body.tools or ()) if tool_use else None,
        tool_choice=_tool_choice(body) if tool_use else None,
        beginning=tool_use.beginning if tool_use else "",
    )
    return _asked("chat", body, (prompt,), sampling, tool_use)


def parse_completion(data: bytes) -> Asked:
    """Check a text completion request; raises `BadRequestError`."""
    body = parse_body(CompletionBody, data)
    sampling = body.for_engine()
    if body.logprobs is not None:
        sampling["logprobs"] = body.logprobs
    return _asked("text", body, _prompts(body.prompt), sampling)


def parse_body(cls: type[B], data: bytes) -> B:
    """A body of this kind; raises `BadRequestError` that names the field."""
    document = _without_idle_fields(cls, _parse(data))
    try:
        return cls.model_validate(document)
    except ValidationError as error:
        deepest = max(
            error.errors(), key=lambda found: len(found["loc"])
        )  # of alternatives, the one that came furthest
        param = _spell(deepest["loc"])
        if deepest["type"] == "extra_forbidden":
            raise BadRequestError(f"{param} is not supported here: leave it out", param=param) from error
        raise BadRequestError(f"{param}: {_advice(param, deepest['msg'])}", param=param) from error


def _asked(
    kind: Literal["chat", "text"],
    body: AnswerBody,
    prompts: tuple[Prompt, ...],
    sampling: Mapping[str, Any],
    tool_use: ToolUse | None = None,
) -> Asked:
    options = body.stream_options
    if options and not body.stream:
        raise BadRequestError("stream_options is only allowed with stream", param="stream_options")
    return Asked(
        kind=kind,
        model=body.model,
        prompts=prompts,
        num_answers=body.n,
        sampling=sampling,
        stream=body.stream,
        include_usage=bool(options and options.include_usage),
        tool_use=tool_use,
    )


# Prompts


def _prompts(given: str | list[int] | list[str] | list[list[int]]) -> tuple[Prompt, ...]:
    """One for each text or list of tokens."""
    tokens = [item for item in given if isinstance(item, int)]
    if tokens:
        return (Prompt(token_ids=tuple(tokens)),)
    items = [given] if isinstance(given, str) else given
    return tuple(
        Prompt(text=item) if isinstance(item, str) else Prompt(token_ids=tuple(item))
        for item in items
        if not isinstance(item, int)
    )


def _for_template(message: Message) -> dict[str, Any]:
    """The message as chat templates know it."""
    content = message.content or ""
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    role = "system" if message.role == "developer" else message.role
    document: dict[str, Any] = {"role": role, "content": text}
    if message.tool_calls:
        document["tool_calls"] = [_call_for_template(call) for call in message.tool_calls]
    return document


def _call_for_template(call: MessageToolCall) -> dict[str, Any]:
    """Templates print arguments as JSON themselves, so they want the object, not its text."""
    arguments: Any = call.function.arguments
    with suppress(DecodeError):
        arguments = decode(object, arguments.encode())
    return {"type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _tool_use(body: ChatBody) -> ToolUse | None:
    """None if there are no tools, or none shall be called; raises `BadRequestError` for a call of nothing."""
    choice, names = body.tool_choice, [tool.function.name for tool in body.tools or ()]
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if name not in names:
            raise BadRequestError(f"tool_choice: {name!r:.80} is none of the tools", param="tool_choice")
        return ToolUse(call_beginning(name), takes_several=False, is_named=True)
    if choice == "required":
        if not names:
            raise BadRequestError("tool_choice: a call needs tools", param="tool_choice")
        return ToolUse(call_beginning(), body.parallel_tool_calls)
    return ToolUse(takes_several=body.parallel_tool_calls) if names and choice != "none" else None


def _tool_choice(body: ChatBody) -> str | None:
    return body.tool_choice.function.name if isinstance(body.tool_choice, NamedTool) else body.tool_choice


# Documents


def _parse(data: bytes) -> dict[str, Any]:
    """A JSON object that can be written as JSON again, which the engine's process must be able to read."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(document, dict):
        raise BadRequestError("the body must be a JSON object", code="invalid_json")
    for name, value in document.items():
        try:
            from_document(object, [name, value])
        except DecodeError as error:
            raise BadRequestError(f"{name}{error}", param=name) from error
    return document


def _without_idle_fields(cls: type[BaseModel], document: Mapping[str, Any]) -> dict[str, Any]:
    """The document less fields that change nothing; raises where one of them asks for a change."""
    kept = {}
    for name, value in document.items():
        if value is None:
            continue
        if name in cls.model_fields or name not in IDLE_FIELDS:
            kept[name] = value
        elif value not in IDLE_FIELDS[name]:
            default = json.dumps(IDLE_FIELDS[name][0])
            raise BadRequestError(
                f"{name} other than {default} is not supported here: leave it out", param=name, code="unsupported_value"
            )
    return kept


_ADVICE: Mapping[str, str] = {
    "prompt": "give a text, token ids, or a list of texts or of lists of token ids, none of them empty",
    "stop": "give a text or a list of texts, none of them empty",
    "tool_choice": 'give "none", "auto", "required" or {"type": "function", "function": {"name": ...}}',
}
"""For fields of several kinds, where pydantic's first complaint is about the first kind only."""


def _advice(param: str, message: str) -> str:
    return _ADVICE.get(param.partition("[")[0], message)


def _spell(location: tuple[int | str, ...]) -> str:
    """`messages[0].role` from a place in a document; the names of the alternatives that were tried are left out."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() and part not in _TYPE_NAMES:
            text += f".{part}" if text else part
    return text


_TYPE_NAMES = frozenset({"str", "NamedTool"})
