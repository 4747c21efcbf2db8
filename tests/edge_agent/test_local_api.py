"""The local API through the real `openai` client, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest

from tests.edge_agent.conftest import Catalogue
from tests.simulators.agent_run import AgentRun, running_agent
from tests.simulators.fleet_server import FleetServer

pytestmark = pytest.mark.anyio
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def fleet() -> Iterator[FleetServer]:
    server = FleetServer()
    yield server
    server.stop()


@pytest.fixture(scope="module")
async def agent(fleet, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AgentRun]:
    directory = tmp_path_factory.mktemp("agent")
    catalogue = Catalogue(fleet, directory / "published")
    business = {"sampling": {"temperature": 0.0, "top_k": -1, "stop": "##"}, "title": "for apps"}
    base = catalogue.base()
    fleet.want(base, catalogue.adapter("home", "home 1", business=business), catalogue.adapter("工具", "tool"))
    async with running_agent(directory / "state", fleet) as running:
        await running.until_serving(1)
        yield running


@pytest.fixture
async def client(agent: AgentRun) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{agent.daemon.api_url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


async def test_models_have_the_base_as_parent(client, fleet) -> None:
    models = {model.id: model.model_extra["parent"] async for model in await client.models.list()}
    assert models == {"base": None, "home": "base", "工具": "base"}
    model = await client.models.retrieve("home")
    assert model.model_extra["root"] == fleet.desired.adapters[0].digest


async def test_a_chat_completion(client, fleet) -> None:
    answer = await client.chat.completions.create(model="home", messages=HELLO)
    choice = answer.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "home 1: hello", "stop")
    assert answer.usage.completion_tokens == len("home 1: hello")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    socle = answer.model_extra["socle"]
    assert socle["adapter"] == fleet.desired.adapters[0].digest
    assert (socle["ttft_s"], socle["decode_s"], socle["decode_tokens"]) == (0.25, 2.0, 12)
    assert socle["decode_tokens_per_s"] == 6.0


async def test_a_streamed_chat(client) -> None:
    stream = await client.chat.completions.create(
        model="home", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    with_choices = [chunk for chunk in chunks if chunk.choices]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in with_choices) == "home 1: hello"
    assert [chunk.choices[0].finish_reason for chunk in with_choices][-2:] == [None, "stop"]
    assert with_choices[-1].model_extra["socle"]["backend"] == "scripted"
    assert chunks[-1].usage.completion_tokens == len("home 1: hello")
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_stream_without_usage_has_none(client) -> None:
    stream = await client.chat.completions.create(model="home", messages=HELLO, stream=True)
    assert all([chunk.usage is None and chunk.choices async for chunk in stream])


async def test_text_completions(client) -> None:
    answer = await client.completions.create(model="base", prompt="hello", max_tokens=8)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("base: he", "length")
    stream = await client.completions.create(model="base", prompt=["hello"], stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "base: hello"


async def test_sampling_comes_from_the_request_then_from_the_business(client) -> None:
    ask = [{"role": "user", "content": "sampling"}]
    answer = await client.chat.completions.create(model="home", messages=ask, max_tokens=200)
    assert answer.choices[0].message.content == (
        "home 1: [('max_tokens', 200), ('stop', ['##']), ('temperature', 0.0), ('top_k', 0)]"
    )
    answer = await client.chat.completions.create(
        model="home",
        messages=ask,
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stop=["a", "b"],
        max_completion_tokens=300,
        extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1},
    )
    assert answer.choices[0].message.content == (
        "home 1: [('max_tokens', 300), ('min_p', 0.1), ('repetition_penalty', 1.1), ('seed', 7), "
        "('stop', ['a', 'b']), ('temperature', 0.5), ('top_k', 5), ('top_p', 0.9)]"
    )


async def test_fields_without_effect_are_taken_at_their_defaults(client) -> None:
    answer = await client.chat.completions.create(
        model="home",
        messages=HELLO,
        n=1,
        frequency_penalty=0,
        presence_penalty=0.0,
        logprobs=False,
        logit_bias={},
        user="me",
        response_format={"type": "text"},
        parallel_tool_calls=True,
        store=False,
    )
    assert answer.choices[0].message.content == "home 1: hello"


CALL = '<tool_call>\n{"name": "开灯", "arguments": {"room": "客厅"}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "开灯", "parameters": {"type": "object", "properties": {}}}}]


async def test_a_tool_call_is_text_unless_tools_were_given(client) -> None:
    ask = [{"role": "user", "content": CALL}]
    plain = await client.chat.completions.create(model="工具", messages=ask)
    assert plain.choices[0].message.content == f"tool: {CALL}"
    answer = await client.chat.completions.create(model="工具", messages=ask, tools=TOOLS)
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "tool:")
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("开灯", {"room": "客厅"})


async def test_a_streamed_tool_call(client) -> None:
    ask = [{"role": "user", "content": CALL}]
    stream = await client.chat.completions.create(model="工具", messages=ask, tools=TOOLS, stream=True)
    chunks = [chunk.choices[0] async for chunk in stream]
    (call,) = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    assert (call.index, call.function.name) == (0, "开灯")
    assert chunks[-1].finish_reason == "tool_calls"


async def test_tools_reach_the_template_and_past_calls_as_objects(client) -> None:
    history = [
        {"role": "user", "content": "x"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "done"},
        {"role": "user", "content": [{"type": "text", "text": "to"}, {"type": "text", "text": "ols"}]},
    ]
    answer = await client.chat.completions.create(model="home", messages=history, tools=TOOLS)
    assert "'name': '开灯'" in answer.choices[0].message.content


REFUSED: dict[str, tuple[dict[str, Any], int, str | None, str | None]] = {
    "unknown model": ({"model": "nobody"}, 404, "model", "model_not_found"),
    "no model": ({"model": None}, 400, "model", "invalid_value"),
    "no messages": ({"messages": []}, 400, "messages", "invalid_value"),
    "unknown role": ({"messages": [{"role": "boss", "content": "x"}]}, 400, "messages[0].role", "invalid_value"),
    "number as content": ({"messages": [*HELLO, {"role": "user", "content": 5}]}, 400, "messages[1].content", None),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "messages[0].content",
        None,
    ),
    "unknown field": ({"temprature": 1}, 400, "temprature", "invalid_value"),
    "several answers": ({"n": 2}, 400, "n", "unsupported_value"),
    "penalty": ({"frequency_penalty": 0.5}, 400, "frequency_penalty", "unsupported_value"),
    "JSON mode": ({"response_format": {"type": "json_object"}}, 400, "response_format", "unsupported_value"),
    "logprobs": ({"logprobs": True}, 400, "logprobs", "unsupported_value"),
    "negative temperature": ({"temperature": -1}, 400, "temperature", "invalid_value"),
    "text as number": ({"max_tokens": "5"}, 400, "max_tokens", "invalid_value"),
    "top_p of 0": ({"top_p": 0}, 400, "top_p", "invalid_value"),
    "forced tool": ({"tool_choice": "required"}, 400, "tool_choice", "invalid_value"),
    "usage without stream": ({"stream_options": {"include_usage": True}}, 400, "stream_options", "invalid_value"),
    "what the engine refuses": ({"temperature": 101}, 400, None, "invalid_input"),
    "too long a prompt": (
        {"messages": [{"role": "user", "content": "too long"}]},
        400,
        None,
        "context_length_exceeded",
    ),
}


@pytest.mark.parametrize("way", ["whole", "stream"])
async def test_refusals_name_the_field(agent: AgentRun, way: str) -> None:
    stream = way == "stream"
    for name, (change, status, param, code) in REFUSED.items():
        body = {"model": "home", "messages": HELLO, "stream": stream, **change}
        if stream and "stream_options" in change:
            continue
        answer = await agent.api.post("/v1/chat/completions", json={k: v for k, v in body.items() if v is not None})
        error = answer.json()["error"]
        assert answer.status_code == status, (name, error)
        assert (error["param"] or "").startswith(param or ""), (name, error)
        assert bool(error["param"]) is bool(param), (name, error)
        assert error["type"] == "invalid_request_error", name
        assert code in (None, error["code"]), (name, error)


BODIES = {"not JSON": (b"{", 400), "no object": (b"[]", 400), "too large": (b" " * (9 << 20), 413)}


async def test_bad_bodies(agent: AgentRun) -> None:
    for name, (body, status) in BODIES.items():
        answer = await agent.api.post("/v1/chat/completions", content=body)
        assert (answer.status_code, answer.json()["error"]["type"]) == (status, "invalid_request_error"), name


async def test_a_crash_in_the_middle_of_a_stream_is_an_error_event(client, agent) -> None:
    stream = await client.completions.create(model="base", prompt="endless", stream=True)
    await anext(aiter(stream))
    agent.host.served.child.kill()
    with pytest.raises(openai.APIError, match="signal 9"):
        [chunk async for chunk in stream]
    await agent.until(lambda: agent.revision)


async def test_health_and_status(agent: AgentRun) -> None:
    assert (await agent.api.get("/health")).json() == {"status": "ok"}
    status = (await agent.api.get("/socle/status")).json()
    assert (status["state"], status["has"]["revision"], status["engine"]["state"]) == ("idle", 1, "serving")
    assert status["engine"]["pss_bytes"] > 1e6


async def test_web_pages_cannot_reach_it_by_a_name_of_their_own(agent: AgentRun) -> None:
    answer = await agent.api.get("/v1/models", headers={"Host": "evil.example"})
    assert answer.status_code == 400
