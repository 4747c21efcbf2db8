"""Whatever anybody sends to the local API gets a clean answer, and the engine lives on."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.core import NOT_SET

from edge_agent import openapi
from edge_agent.openai_bodies import IDLE_FIELDS, MOST_LOGPROBS, ChatBody, CompletionBody
from engine.sampling import MAX_LOGPROBS
from tests.engine.golden_cases import GOLDEN_CASES
from tests.simulators.agent_run import AgentRun, running_agent
from tests.simulators.fleet_server import FleetServer

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ENDPOINTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"prompt": "hello"},
    "/v1/load_lora_adapter": {"lora_name": "dev", "lora_path": "/nowhere"},
    "/v1/unload_lora_adapter": {"lora_name": "dev"},
}
KNOWN_FIELDS = sorted({*ChatBody.model_fields, *CompletionBody.model_fields, *IDLE_FIELDS, "lora_name", "lora_path"})
PATIENT = settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))

numbers = st.one_of(
    st.integers(-2, 130),
    st.sampled_from([2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**80, -(2**80)]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -0.0, 1e-320, 1e-30, 1.0, 1e30, 1.7e308]),
)
texts = st.one_of(st.text(max_size=20), st.sampled_from(["\ud800", "\0", "<|im_end|>", "<tool_call>", "", "auto"]))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)
deep = st.integers(50, 3000).map(lambda depth: "[" * depth + "]" * depth)
changes = st.dictionaries(st.one_of(st.sampled_from(KNOWN_FIELDS), texts), values, max_size=3)


def test_the_constant_is_the_engines() -> None:
    assert MOST_LOGPROBS == MAX_LOGPROBS


@pytest.fixture(scope="module")
async def real(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AgentRun]:
    """An agent with the real engine on a tiny model."""
    directory = tmp_path_factory.mktemp("real")
    base, _ = next(case for case in GOLDEN_CASES if case.name == "qwen3").convert(directory)
    fleet = FleetServer()
    fleet.want(fleet.publish("base", "1.0.0", base))
    engine = {"num_threads": 1, "max_context_tokens": 64}
    command = (sys.executable, "-m", "edge_agent.engine_process")
    patience = {"engine_hang_timeout_s": 30.0, "probe_timeout_s": 60.0}
    async with running_agent(directory / "state", fleet, engine_command=command, engine=engine, **patience) as agent:
        await agent.until_serving(1)
        yield agent
    fleet.stop()


@pytest.fixture(params=["scripted", "real"])
def agent(request: pytest.FixtureRequest) -> AgentRun:
    return request.getfixturevalue({"scripted": "served", "real": "real"}[request.param])


async def attack(agent: AgentRun, path: str, body: str | bytes) -> None:
    """Send a body; whatever the answer, it is in OpenAI's form and the engine's process is the first one."""
    answer = await agent.api.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code < 500 or answer.status_code == 503, answer.text
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert answer.json()["error"]["message"]
    if answer.status_code in (429, 503):
        assert int(answer.headers["Retry-After"]) >= 1
    if "text/event-stream" in answer.headers.get("content-type", ""):
        assert answer.text.endswith("data: [DONE]\n\n")
        assert '"server_error"' not in answer.text
    assert agent.host.num_restarts == 0
    await agent.until(lambda: agent.host.num_in_flight == 0)


@pytest.mark.parametrize("path", ENDPOINTS)
@PATIENT
@given(change=changes)
async def test_a_good_body_with_bad_fields(agent: AgentRun, path: str, change: dict[str, Any]) -> None:
    known = {"model": "base"} if path.endswith("completions") else {}
    await attack(agent, path, json.dumps({**known, **ENDPOINTS[path], **change}))


@PATIENT
@given(path=st.sampled_from([*ENDPOINTS]), body=st.one_of(st.binary(max_size=50), values.map(json.dumps), deep))
async def test_anything_at_all(agent: AgentRun, path: str, body: str | bytes) -> None:
    await attack(agent, path, body)


@PATIENT
@given(field=st.sampled_from(["tools", "messages", "stop", "x"]), nested=deep)
async def test_what_is_nested_too_deeply(agent: AgentRun, field: str, nested: str) -> None:
    await attack(agent, "/v1/chat/completions", f'{{"model": "base", "{field}": {nested}}}')


DESCRIBED = schemathesis.openapi.from_dict(openapi.document("1"))
CASES = st.one_of(
    DESCRIBED[path]["POST"].as_strategy(generation_mode=mode)
    for path in ("/v1/chat/completions", "/v1/completions")
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
)


@settings(PATIENT, max_examples=50)
@given(case=CASES)
async def test_with_the_document_and_against_it(agent: AgentRun, case: schemathesis.Case) -> None:
    body = case.body
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        body = {**body, "model": "base"}
    await attack(agent, case.formatted_path, b"" if body is NOT_SET else json.dumps(body, default=str))


async def test_the_document_is_served_and_names_every_route(served: AgentRun) -> None:
    document = (await served.api.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        for method in operations:
            answer = await served.api.request(
                method, path.replace("{name}", "base"), json={} if method == "post" else None
            )
            assert answer.status_code not in (404, 405), path
    schemathesis.openapi.from_dict(document)
