"""The whole device with the real engine in its child: checkpoints over the air, answers as in this process."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

from edge_agent.protocol import Metric
from engine.config import EngineConfig
from engine.convert import convert_adapter
from engine.runtime import Engine
from engine.sampling import SamplingParams
from tests.engine.golden_cases import GOLDEN_CASES
from tests.simulators.agent_run import AgentRun, running_agent

pytestmark = pytest.mark.anyio

ENGINE_PROCESS = (sys.executable, "-m", "edge_agent.engine_process")
ASK = [{"role": "user", "content": "Hello, 你好!"}]
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter, and the adapter again with golden prompts that it does not answer."""
    case = next(case for case in GOLDEN_CASES if case.name == "qwen3")
    directory = tmp_path_factory.mktemp("real")
    base, _ = case.convert(directory)
    spoilt = Path(shutil.copytree(case.adapter, directory / "source"))
    golden = [{"messages": ASK, "answer": "nothing that a random model says"}]
    (spoilt / "socle.json").write_text(json.dumps({"golden_prompts": golden}))
    convert_adapter(spoilt, base, directory / "spoilt")
    return directory


@pytest.fixture(scope="module")
def expected(bundles: Path) -> dict[str, str]:
    """Greedy answers of an engine in this process."""
    engine = Engine.open(bundles / "base", EngineConfig(num_threads=1))
    adapter = engine.load_adapter(bundles / "adapter")
    greedy = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS)

    def text(adapter: str | None) -> str:
        return "".join(output.text for output in engine.generate(ASK, adapter=adapter, sampling=greedy))

    answers = {"base": text(None), "home": text(adapter)}
    engine.close()
    assert answers["base"] != answers["home"]
    return answers


async def greedy(agent: AgentRun, model: str) -> str:
    body = {"model": model, "messages": ASK, "temperature": 0.0, "max_tokens": NUM_TOKENS}
    answer = await agent.api.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


async def test_the_loop_with_the_real_engine(fleet, bundles: Path, expected, tmp_path: Path) -> None:
    base = fleet.publish("base", "1.0.0", bundles / "base")
    home = fleet.publish("home", "1.0.0", bundles / "adapter")
    fleet.want(base, home)
    settings = {"engine_command": ENGINE_PROCESS, "engine": {"num_threads": 1}, "engine_hang_timeout_s": 30.0}
    async with running_agent(tmp_path / "state", fleet, probe_timeout_s=60.0, **settings) as agent:
        await agent.until_serving(1)
        assert {name: await greedy(agent, name) for name in expected} == expected
        await refusals_of_the_engine(agent)
        fleet.want(base, fleet.publish("home", "2.0.0", bundles / "spoilt"))
        await agent.until_failed(2)
        assert agent.updater.entry.problem.code == "golden_prompt_failed"
        assert await greedy(agent, "home") == expected["home"]
        await agent.until(lambda: measured(fleet) >= {"home", ""})
    (sample, *_) = [s for b in fleet.batches.values() for s in b.samples if s.metric is Metric.DECODE_TOKENS_PER_S]
    assert sample.backend == ("native" if importlib.util.find_spec("socle_native") else "onnx")
    assert sample.value.min > 0


async def refusals_of_the_engine(agent: AgentRun) -> None:
    long = await agent.api.post("/v1/completions", json={"model": "base", "prompt": "hello " * 5000})
    assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
    empty = await agent.api.post("/v1/completions", json={"model": "base", "prompt": ""})
    assert empty.status_code == 400
    bad = await agent.api.post("/v1/completions", json={"model": "base", "prompt": [10**6]})
    assert (bad.status_code, bad.json()["error"]["code"]) == (400, "invalid_input")


def measured(fleet) -> set[str]:
    return {
        sample.adapter_name
        for batch in fleet.batches.values()
        for sample in batch.samples
        if sample.metric is Metric.DECODE_TOKENS_PER_S
    }


async def test_an_engine_configured_wrongly_says_so(fleet, bundles: Path, tmp_path: Path) -> None:
    fleet.want(fleet.publish("base", "1.0.0", bundles / "base"))
    settings = {"engine_command": ENGINE_PROCESS, "engine": {"num_treads": 1}}
    async with running_agent(tmp_path / "state", fleet, **settings) as agent:
        await agent.until_failed(1)
        problem = agent.updater.entry.problem
        assert (problem.code, "num_treads" in problem.detail) == ("invalid_input", True)
