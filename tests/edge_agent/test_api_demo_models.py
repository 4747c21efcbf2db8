"""The local API on the real engine with the demo's trained models, through the real `openai` client."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from engine.convert import convert_adapter, convert_base
from tests.simulators.agent_run import AgentRun, running_agent
from tests.simulators.fleet_server import FleetServer

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

MODELS = Path(__file__).resolve().parents[2] / "deploy" / "demo" / "models"
MAX_CONTEXT_TOKENS = 512
ASK = [{"role": "user", "content": "把客厅的灯打开"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "turn_on",
            "description": "Turn a device on",
            "parameters": {
                "type": "object",
                "properties": {"room": {"type": "string"}, "device": {"type": "string"}},
            },
        },
    }
]


@pytest.fixture(scope="module")
async def agent(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AgentRun]:
    directory = tmp_path_factory.mktemp("demo")
    convert_base(MODELS / "base", directory / "base")
    convert_adapter(MODELS / "adapters" / "home-1.0.0", directory / "base", directory / "home")
    fleet = FleetServer()
    fleet.want(*(fleet.publish(name, "1.0.0", directory / name) for name in ("base", "home")))
    settings = {
        "engine_command": (sys.executable, "-m", "edge_agent.engine_process"),
        "engine": {"num_threads": 1, "max_context_tokens": MAX_CONTEXT_TOKENS},
        "businesses": {"base": {"prompt_cache": True}},
        "engine_hang_timeout_s": 30.0,
        "probe_timeout_s": 90.0,
    }
    async with running_agent(directory / "state", fleet, **settings) as running:
        await running.until(lambda: running.revision == 1, timeout_s=90)
        yield running
    fleet.stop()


@pytest.fixture
async def client(agent: AgentRun) -> AsyncIterator[openai.AsyncOpenAI]:
    url = f"{agent.daemon.api.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as opened:
        yield opened


async def prefilled(agent: AgentRun) -> float:
    """Prompt tokens of the home adapter that were computed so far."""
    metrics = (await agent.api.get("/metrics")).text
    found = re.search(r'^socle_tokens_total{model="home",phase="prefill"} (\S+)$', metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def test_several_answers_are_those_of_asking_alone_and_run_the_prompt_once(client, agent) -> None:
    async def ask(seed: int, n: int) -> openai.types.chat.ChatCompletion:
        return await client.chat.completions.create(
            model="home", messages=ASK, n=n, seed=seed, temperature=2.0, max_tokens=24, logprobs=True, top_logprobs=2
        )

    before = await prefilled(agent)
    together = await ask(100, 4)
    assert await prefilled(agent) - before == together.usage.prompt_tokens
    alone = [(await ask(100 + place, 1)).choices[0] for place in range(4)]
    for one, other in zip(together.choices, alone, strict=True):
        assert (one.message, one.finish_reason, one.logprobs) == (other.message, other.finish_reason, other.logprobs)
    assert len({choice.message.content for choice in alone}) > 1


async def test_too_long_a_prompt_is_refused_with_both_numbers(client) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.completions.create(model="base", prompt=[7] * 700)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "prompt")
    assert {"700", str(MAX_CONTEXT_TOKENS)} <= set(re.findall(r"\d+", refused.value.message))


async def test_a_prompt_that_was_run_before_is_cached(client) -> None:
    prompt = [7 + number % 90 for number in range(200)]
    first, second = [await client.completions.create(model="base", prompt=prompt, max_tokens=4) for _ in range(2)]
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens_details.cached_tokens >= 128


async def test_log_probabilities_tell_the_answer(client) -> None:
    answer = await client.chat.completions.create(
        model="home", messages=ASK, temperature=0.0, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert all(token.top_logprobs[0].token == token.token for token in content)
    assert all(token.logprob <= 0 for token in content)
    assert "".join(token.token for token in content).startswith(answer.choices[0].message.content)


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "turn_on"}}])
async def test_the_model_calls_a_tool(client, choice: Any) -> None:
    answer = await client.chat.completions.create(
        model="home", messages=ASK, temperature=0.0, tools=TOOLS, tool_choice=choice
    )
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("turn_on", {"room": "客厅", "device": "灯"})
