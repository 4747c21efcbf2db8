"""Requests of OpenAI's API, with vLLM's additions for sampling. Pure: bytes in, a checked `Asked` out.

What would change the answer and isn't supported is refused by name; fields that would change nothing are taken if they
hold their default.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from edge_agent.business import SamplingOptions
from edge_agent.engine_wire import Prompt

WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "metadata": (None, {}),
    "n": (None, 1),
    "parallel_tool_calls": (None, True),
    "presence_penalty": (None, 0),
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "top_logprobs": (None, 0),
}
"""Fields of OpenAI's API that are taken with these values only."""


class BadRequestError(Exception):
    """The request is wrong; `param` names the field, `status` is HTTP's word for it."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str = "invalid_value", status: int = 400
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Strict):
    """One part of a message; images and audio are not supported."""

    type: Literal["text"]
    text: str


class CalledFunction(_Strict):
    """The function that an assistant called, its arguments as JSON text."""

    name: str
    arguments: str


class MessageToolCall(_Strict):
    """A call in the history of the chat."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(_Strict):
    """One message of the chat so far."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    refusal: None = None

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates know it."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": text}
        if self.tool_calls:
            message["tool_calls"] = [_call_for_template(call) for call in self.tool_calls]
        return message


class Function(_Strict):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None


class Tool(_Strict):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class StreamOptions(_Strict):
    """What else a stream shall bring."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class _Asked(SamplingOptions):
    """What both kinds of request have."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None


class ChatRequest(_Asked):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    tools: list[Tool] | None = None
    tool_choice: Literal["auto", "none"] | None = None


R = TypeVar("R", bound=_Asked)


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value


class CompletionRequest(_Asked):
    """`POST /v1/completions`. One prompt as text."""

    prompt: Annotated[str, BeforeValidator(_single)]


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked request, whichever kind it was."""

    kind: Literal["chat", "text"]
    model: str
    prompt: Prompt
    sampling: Mapping[str, Any]
    stream: bool
    include_usage: bool
    parses_tool_calls: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))


def parse_chat(body: bytes) -> Asked:
    """Check a chat request; raises `BadRequestError`."""
    request = _checked(ChatRequest, body)
    sampling = request.for_engine()
    if request.max_completion_tokens is not None:
        sampling["max_tokens"] = request.max_completion_tokens
    uses_tools = bool(request.tools) and request.tool_choice != "none"
    tools = tuple(tool.model_dump(exclude_none=True) for tool in request.tools or ()) if uses_tools else None
    prompt = Prompt(messages=tuple(message.for_template() for message in request.messages), tools=tools)
    return _asked("chat", request, prompt, sampling, parses_tool_calls=uses_tools)


def parse_completion(body: bytes) -> Asked:
    """Check a text completion request; raises `BadRequestError`."""
    request = _checked(CompletionRequest, body)
    return _asked("text", request, Prompt(text=request.prompt), request.for_engine())


def _asked(
    kind: Literal["chat", "text"],
    request: _Asked,
    prompt: Prompt,
    sampling: Mapping[str, Any],
    *,
    parses_tool_calls: bool = False,
) -> Asked:
    options = request.stream_options
    if options and not request.stream:
        raise BadRequestError("stream_options is only allowed with stream", param="stream_options")
    return Asked(
        kind=kind,
        model=request.model,
        prompt=prompt,
        sampling=sampling,
        stream=request.stream,
        include_usage=bool(options and options.include_usage),
        parses_tool_calls=parses_tool_calls,
    )


def _checked(cls: type[R], body: bytes) -> R:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the body is not JSON: {error}", code="invalid_json") from error
    if not isinstance(document, dict):
        raise BadRequestError("the body must be a JSON object", code="invalid_json")
    try:
        return cls.model_validate(_without_idle_fields(cls, document))
    except ValidationError as error:
        first = error.errors()[0]
        param = _spell(first["loc"])
        if first["type"] == "extra_forbidden":
            raise BadRequestError(f"{param} is not supported here: leave it out", param=param) from error
        raise BadRequestError(f"{param}: {first['msg']}", param=param) from error


def _without_idle_fields(cls: type[BaseModel], document: Mapping[str, Any]) -> dict[str, Any]:
    """The document less fields that change nothing; raises where one of them asks for a change."""
    kept = {}
    for name, value in document.items():
        if name in cls.model_fields or name not in WITHOUT_EFFECT:
            kept[name] = value
        elif value not in WITHOUT_EFFECT[name]:
            default = json.dumps(WITHOUT_EFFECT[name][1])
            raise BadRequestError(
                f"{name} other than {default} is not supported here: leave it out", param=name, code="unsupported_value"
            )
    return kept


def _spell(location: tuple[int | str, ...]) -> str:
    """`messages[0].role` from a place in a document; the names of the alternatives that were tried are left out."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part.isidentifier() and part != "str":
            text += f".{part}" if text else part
    return text


def _call_for_template(call: MessageToolCall) -> dict[str, Any]:
    """Templates print arguments as JSON themselves, so they want the object, not its text."""
    try:
        arguments = json.loads(call.function.arguments)
    except ValueError:
        arguments = call.function.arguments
    return {"type": "function", "function": {"name": call.function.name, "arguments": arguments}}
