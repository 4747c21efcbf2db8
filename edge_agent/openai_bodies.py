"""Bodies of the local API's requests, as pydantic checks them: OpenAI's fields with vLLM's additions.

What would change the answer and isn't supported is refused by name; fields that would change nothing are taken if they
hold their default. Nothing is converted: a number as text is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from edge_agent.business import SamplingOptions

MOST_ANSWERS: Final = 128
MOST_LOGPROBS: Final = 20
"""As many as the engine names; its own module would bring numpy into the agent's process."""

IDLE_FIELDS: Final[Mapping[str, tuple[Any, ...]]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "metadata": ({},),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
}
"""Fields of OpenAI's API that are taken with these values only."""


class Body(BaseModel):
    """Strict: unknown fields, other types, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Body):
    """One part of a message; images and audio are not supported."""

    type: Literal["text"]
    text: str


class CalledFunction(Body):
    """The function that an assistant called, its arguments as JSON text."""

    name: str
    arguments: str


class MessageToolCall(Body):
    """A call in the history of the chat."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Body):
    """One message of the chat so far; what the client library leaves empty is taken as such."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None


class Function(Body):
    """A function that the model may call."""

    name: Annotated[str, Field(pattern=r"^[\w.:/-]{1,128}$")]  # it may be spelled in front of an answer
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: Literal[False] | None = None


class Tool(Body):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function


class FunctionName(Body):
    """Which function."""

    name: str


class NamedTool(Body):
    """The tool that the model must call."""

    type: Literal["function"]
    function: FunctionName


class StreamOptions(Body):
    """What else a stream shall bring."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class AnswerBody(SamplingOptions):
    """What both kinds of request have."""

    model: str
    n: int = Field(default=1, ge=1, le=MOST_ANSWERS)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None


class ChatBody(AnswerBody):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool = True
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=MOST_LOGPROBS)


TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=2**31 - 1)]], Field(min_length=1)]


class CompletionBody(AnswerBody):
    """`POST /v1/completions`. Prompts are texts or the tokens themselves."""

    prompt: str | TokenIds | Annotated[list[str], Field(min_length=1)] | Annotated[list[TokenIds], Field(min_length=1)]
    logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)


class LoadAdapterBody(Body):
    """`POST /v1/load_lora_adapter`: the bundle or PEFT directory at this path, as the model of this name."""

    lora_name: Annotated[str, Field(pattern=r"^[^/\s]{1,100}$")]
    lora_path: Annotated[str, Field(min_length=1, max_length=4000)]
    load_inplace: bool = False


class UnloadAdapterBody(Body):
    """`POST /v1/unload_lora_adapter`."""

    lora_name: str
