"""Responses of OpenAI's API: chunks, whole completions, models and errors as documents. Pure.

`socle` is our own addition: which releases answered, and how fast. Clients that don't know it skip it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge_agent.openai_requests import Asked
from edge_agent.served import Model
from edge_agent.tool_calls import ToolCall
from engine.metrics import Usage


def completion(
    asked: Asked, text: str, calls: list[ToolCall], finish_reason: str | None, extra: Extra
) -> dict[str, Any]:
    """The whole response to a request without streaming."""
    if asked.kind == "text":
        choice: dict[str, Any] = {"text": text}
    else:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            message |= {"content": text or None, "tool_calls": [_call_document(call) for call in calls]}
        choice = {"message": message}
    name = "chat.completion" if asked.kind == "chat" else "text_completion"
    return _envelope(asked, name, [_choice(choice, finish_reason)]) | {
        "usage": extra.usage_document(),
        "socle": extra.socle_document(),
    }


def first_chunk(asked: Asked) -> list[dict[str, Any]]:
    """A chat's stream begins with the role."""
    return [_chunk(asked, {"role": "assistant", "content": ""})] if asked.kind == "chat" else []


def text_chunk(asked: Asked, text: str) -> dict[str, Any]:
    """A piece of the answer."""
    return _chunk(asked, {"content": text}) if asked.kind == "chat" else _chunk(asked, text)


def tool_calls_chunk(asked: Asked, calls: list[ToolCall]) -> dict[str, Any]:
    """All calls at once."""
    return _chunk(asked, {"tool_calls": [{"index": i, **_call_document(call)} for i, call in enumerate(calls)]})


def last_chunks(asked: Asked, finish_reason: str | None, extra: Extra) -> list[dict[str, Any]]:
    """The finish reason with our figures, then the usage if it was asked for."""
    last = _chunk(asked, {} if asked.kind == "chat" else "", finish_reason) | {"socle": extra.socle_document()}
    if not asked.include_usage:
        return [last]
    name = "chat.completion.chunk" if asked.kind == "chat" else "text_completion"
    return [last, _envelope(asked, name, []) | {"usage": extra.usage_document()}]


def error_document(message: str, *, kind: str, code: str | None, param: str | None = None) -> dict[str, Any]:
    """OpenAI's error form."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


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


@dataclass(frozen=True, slots=True)
class Extra:
    """Figures of a finished answer."""

    model: Model
    usage: Usage

    def usage_document(self) -> dict[str, Any]:
        """OpenAI's `usage`."""
        usage = self.usage
        return {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        }

    def socle_document(self) -> dict[str, Any]:
        """Our `socle` object: releases, and how fast it was. The first answer token comes out of the prefill."""
        usage, model = self.usage, self.model
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


def _envelope(asked: Asked, name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    prefix = "chatcmpl" if asked.kind == "chat" else "cmpl"
    return {
        "id": f"{prefix}-{asked.id}",
        "object": name,
        "created": asked.created,
        "model": asked.model,
        "choices": choices,
    }


def _chunk(asked: Asked, delta: dict[str, Any] | str, finish_reason: str | None = None) -> dict[str, Any]:
    if asked.kind == "chat":
        return _envelope(asked, "chat.completion.chunk", [_choice({"delta": delta}, finish_reason)])
    return _envelope(asked, "text_completion", [_choice({"text": delta}, finish_reason)])


def _choice(content: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}


def _call_document(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
