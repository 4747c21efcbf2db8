"""Responses of OpenAI's API: chunks, whole completions, models and log probabilities as documents. Pure.

`socle` is our own addition: which releases answered, and how fast. Clients that don't know it skip it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from edge_agent.choices import Addition, Choice, Reply
from edge_agent.engine_wire import TokenChoice, TokenLogprobs
from edge_agent.openai_requests import Asked
from edge_agent.served import Model
from edge_agent.tool_calls import ToolCall
from engine.metrics import Usage


def completion(reply: Reply) -> dict[str, Any]:
    """The whole response to a request without streaming."""
    asked, usage = reply.asked, reply.usage
    make = _chat_choice if asked.kind == "chat" else _text_choice
    name = "chat.completion" if asked.kind == "chat" else "text_completion"
    return _envelope(asked, name, [make(asked, choice) for choice in reply.choices]) | {
        "usage": _usage_document(usage),
        "socle": _socle_document(reply.model, usage),
    }


def first_chunks(asked: Asked) -> Iterator[dict[str, Any]]:
    """A chat's stream begins with each choice's role."""
    if asked.kind == "chat":
        for index in range(asked.num_choices):
            yield _chunk(asked, index, {"role": "assistant", "content": ""})


def chunks(asked: Asked, choice: Choice, addition: Addition) -> Iterator[dict[str, Any]]:
    """What an addition, which the choice has just taken, adds to a stream; the finish reason by itself."""
    logprobs = _logprobs(asked, addition.logprobs, addition.text_offset)
    num_before = len(choice.calls) - sum(isinstance(part, ToolCall) for part in addition.parts)
    for part in addition.parts or ([""] if logprobs else []):
        if isinstance(part, str):
            yield _chunk(asked, addition.index, {"content": part} if asked.kind == "chat" else part, logprobs)
        else:
            call = {"index": num_before, **_call_document(part)}
            yield _chunk(asked, addition.index, {"tool_calls": [call]}, logprobs)
            num_before += 1
        logprobs = None
    if addition.finish_reason:
        delta: dict[str, Any] | str = {} if asked.kind == "chat" else ""
        yield _chunk(asked, addition.index, delta, finish_reason=addition.finish_reason)


def figures(reply: Reply) -> dict[str, Any]:
    """What a stream's very last chunk has besides."""
    return {"socle": _socle_document(reply.model, reply.usage)}


def usage_chunk(reply: Reply) -> dict[str, Any]:
    """After the last one, if it was asked for."""
    return _envelope(reply.asked, _chunk_name(reply.asked), []) | {"usage": _usage_document(reply.usage)}


def model_document(model: Model, created: int) -> dict[str, Any]:
    """One entry of `/v1/models`."""
    return {
        "id": model.name,
        "object": "model",
        "created": created,
        "owned_by": "socle",
        "root": model.release.digest,
        "parent": model.base.name if model.adapter else None,
        "version": model.release.version,
    }


# Choices


def _chat_choice(asked: Asked, choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text}
    if choice.calls:
        message |= {"content": choice.text or None, "tool_calls": [_call_document(call) for call in choice.calls]}
    return _choice(asked, choice, {"message": message})


def _text_choice(asked: Asked, choice: Choice) -> dict[str, Any]:
    return _choice(asked, choice, {"text": choice.text})


def _choice(asked: Asked, choice: Choice, content: dict[str, Any]) -> dict[str, Any]:
    logprobs = _logprobs(asked, choice.logprobs, 0)
    return {"index": choice.index, **content, "logprobs": logprobs, "finish_reason": choice.finish_reason}


def _chunk(
    asked: Asked,
    index: int,
    delta: dict[str, Any] | str,
    logprobs: dict[str, Any] | None = None,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    content = {"delta": delta} if asked.kind == "chat" else {"text": delta}
    choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}
    return _envelope(asked, _chunk_name(asked), [choice])


def _chunk_name(asked: Asked) -> str:
    return "chat.completion.chunk" if asked.kind == "chat" else "text_completion"


def _envelope(asked: Asked, name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    prefix = "chatcmpl" if asked.kind == "chat" else "cmpl"
    return {
        "id": f"{prefix}-{asked.id}",
        "object": name,
        "created": asked.created,
        "model": asked.model,
        "choices": choices,
    }


def _call_document(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


# Log probabilities


def _logprobs(asked: Asked, tokens: Sequence[TokenLogprobs], text_offset: int) -> dict[str, Any] | None:
    """None unless they were asked for and there are some."""
    if not asked.has_logprobs or not tokens:
        return None
    return _chat_logprobs(tokens) if asked.kind == "chat" else _text_logprobs(tokens, text_offset)


def _chat_logprobs(tokens: Sequence[TokenLogprobs]) -> dict[str, Any]:
    content = [
        {**_token_document(token.chosen), "top_logprobs": [_token_document(likely) for likely in token.likeliest]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _token_document(choice: TokenChoice) -> dict[str, Any]:
    return {"token": choice.text, "logprob": choice.logprob, "bytes": list(choice.text.encode())}


def _text_logprobs(tokens: Sequence[TokenLogprobs], text_offset: int) -> dict[str, Any]:
    """The older form: lists side by side. Each token's own probability is always among its likeliest ones."""
    offsets = []
    for token in tokens:
        offsets.append(text_offset)
        text_offset += len(token.chosen.text)
    return {
        "tokens": [token.chosen.text for token in tokens],
        "token_logprobs": [token.chosen.logprob for token in tokens],
        "top_logprobs": [
            {choice.text: choice.logprob for choice in (*reversed(token.likeliest), token.chosen)} for token in tokens
        ],
        "text_offset": offsets,
    }


# Figures


def _usage_document(usage: Usage) -> dict[str, Any]:
    """OpenAI's `usage`."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _socle_document(model: Model, usage: Usage) -> dict[str, Any]:
    """Releases, and how fast it was. The first answer token comes out of the prefill."""
    return {
        "base": model.base.digest,
        "adapter": model.adapter,
        "version": model.release.version,
        "backend": model.child.backend,
        "queue_s": usage.queue_s,
        "ttft_s": usage.ttft_s,
        "prefill_tokens": usage.prompt_tokens - usage.cached_tokens,
        "prefill_s": usage.prefill_s,
        "prefill_tokens_per_s": usage.prefill_tokens_per_s,
        "decode_tokens": max(usage.completion_tokens - 1, 0),
        "decode_s": usage.decode_s,
        "decode_tokens_per_s": usage.decode_tokens_per_s,
    }
