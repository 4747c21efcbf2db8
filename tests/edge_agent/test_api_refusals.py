"""What the local API refuses, and that it names the field."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from tests.simulators.agent_run import AgentRun

pytestmark = pytest.mark.anyio
JSON = {"Content-Type": "application/json"}
HELLO = [{"role": "user", "content": "hello"}]


REFUSED: dict[str, tuple[dict[str, Any], int, str | None, str | None]] = {
    "unknown model": ({"model": "nobody"}, 404, "model", "model_not_found"),
    "no model": ({"model": None}, 400, "model", "invalid_value"),
    "no messages": ({"messages": []}, 400, "messages", "invalid_value"),
    "unknown role": ({"messages": [{"role": "boss", "content": "x"}]}, 400, "messages[0].role", "invalid_value"),
    "number as content": ({"messages": [*HELLO, {"role": "user", "content": 5}]}, 400, "messages[1].content", None),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "messages[0].content[0].type",
        None,
    ),
    "unknown field": ({"temprature": 1}, 400, "temprature", "invalid_value"),
    "no answer": ({"n": 0}, 400, "n", "invalid_value"),
    "more answers than the device gives": ({"n": 65}, 400, "n", "invalid_value"),
    "penalty": ({"frequency_penalty": 0.5}, 400, "frequency_penalty", "unsupported_value"),
    "JSON mode": ({"response_format": {"type": "json_object"}}, 400, "response_format", "unsupported_value"),
    "number as logprobs": ({"logprobs": 1}, 400, "logprobs", "invalid_value"),
    "likeliest tokens without logprobs": ({"top_logprobs": 1}, 400, "top_logprobs", "invalid_value"),
    "too many likeliest tokens": ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "invalid_value"),
    "infinite temperature": ({"temperature": 1e999}, 400, "temperature", None),
    "a number that no engine can read": ({"seed": 2**80}, 400, "seed", None),
    "empty stop string": ({"stop": ["a", ""]}, 400, "stop", "invalid_value"),
    "bad name of a function": (
        {"tools": [{"type": "function", "function": {"name": "<tool>"}}]},
        400,
        "tools[0].function.name",
        None,
    ),
    "negative temperature": ({"temperature": -1}, 400, "temperature", "invalid_value"),
    "text as number": ({"max_tokens": "5"}, 400, "max_tokens", "invalid_value"),
    "top_p of 0": ({"top_p": 0}, 400, "top_p", "invalid_value"),
    "a call without tools": ({"tool_choice": "required"}, 400, "tool_choice", "invalid_value"),
    "a call of no tool": (
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        400,
        "tool_choice",
        "invalid_value",
    ),
    "another choice": ({"tool_choice": "sometimes"}, 400, "tool_choice", "invalid_value"),
    "usage without stream": ({"stream_options": {"include_usage": True}}, 400, "stream_options", "invalid_value"),
    "what the engine refuses": ({"temperature": 101}, 400, None, "invalid_input"),
    "too long a prompt": (
        {"messages": [{"role": "user", "content": "too long"}]},
        400,
        "messages",
        "context_length_exceeded",
    ),
}


async def ask(served: AgentRun, path: str, body: dict[str, Any]) -> httpx2.Response:
    """The client library writes no infinity, others may."""
    return await served.api.post(path, content=json.dumps(body).replace("Infinity", "1e999"), headers=JSON)


@pytest.mark.parametrize("way", ["whole", "stream"])
async def test_refusals_name_the_field(served: AgentRun, way: str) -> None:
    stream = way == "stream"
    for name, (change, status, param, code) in REFUSED.items():
        body = {"model": "home", "messages": HELLO, "stream": stream, **change}
        if stream and "stream_options" in change:
            continue
        answer = await ask(served, "/v1/chat/completions", {k: v for k, v in body.items() if v is not None})
        error = answer.json()["error"]
        assert answer.status_code == status, (name, error)
        assert (error["param"] or "").startswith(param or ""), (name, error)
        assert bool(error["param"]) is bool(param), (name, error)
        assert error["type"] == "invalid_request_error", name
        assert code in (None, error["code"]), (name, error)


BODIES = {"not JSON": (b"{", 400), "no object": (b"[]", 400), "too large": (b" " * (9 << 20), 413)}


async def test_bad_bodies(served: AgentRun) -> None:
    for name, (body, status) in BODIES.items():
        answer = await served.api.post("/v1/chat/completions", content=body, headers=JSON)
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error"), name


PROMPTS: dict[str, Any] = {
    "none": [],
    "an empty list of tokens": [[]],
    "mixed": ["a", 1],
    "a negative token": [-1],
    "an object": {"text": "a"},
    "more than the device takes": ["a"] * 65,
}


async def test_refused_prompts(served: AgentRun) -> None:
    for name, prompt in PROMPTS.items():
        answer = await ask(served, "/v1/completions", {"model": "base", "prompt": prompt})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"].partition("[")[0]) == (400, "prompt"), (name, error)


async def test_what_cannot_be_written_as_text_is_quoted(served: AgentRun) -> None:
    for body in ('{"\\ud800": 1}', '{"model": "\\ud800", "prompt": "a"}', '{"model": "m", "prompt": "\\udfff"}'):
        answer = await served.api.post("/v1/completions", content=body, headers=JSON)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error"), body


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"items": value}
    return value


PARAMETERS: dict[str, Any] = {
    "a number of more than 64 bits": {"maximum": 2**80},
    "infinity": {"maximum": float("inf")},
    "half of a UTF-16 pair": {"title": "\ud800"},
    "too deep": nested(100),
}


async def test_what_the_engine_could_not_read_does_not_reach_it(served: AgentRun) -> None:
    pid = served.host.served.child.pid
    for name, parameters in PARAMETERS.items():
        tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
        body = {"model": "home", "messages": HELLO, "tools": tools}
        answer = await ask(served, "/v1/chat/completions", body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools"), name
    assert served.host.served.child.pid == pid


@pytest.mark.parametrize("arguments", ['{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}', "[" * 5000, "{", ""])
async def test_past_calls_may_have_any_arguments(served: AgentRun, arguments: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    past = [{"role": "assistant", "tool_calls": [call]}, *HELLO]
    answer = await ask(served, "/v1/chat/completions", {"model": "home", "messages": past})
    assert (answer.status_code, served.host.num_restarts) == (200, 0)


LATER = {"over budget": (429, "rate_limit_error", "8"), "no room": (503, "server_error", "1")}


@pytest.mark.parametrize("words", LATER)
@pytest.mark.parametrize("way", ["whole", "stream"])
async def test_what_may_work_later_says_when(served: AgentRun, words: str, way: str) -> None:
    status, kind, retry_after = LATER[words]
    body = {"model": "home", "messages": [{"role": "user", "content": words}], "stream": way == "stream"}
    answer = await ask(served, "/v1/chat/completions", body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
    assert answer.headers["Retry-After"] == retry_after
