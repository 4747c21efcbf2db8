"""What a device says of its requests, to the fleet and to a local Prometheus, and how it serves nothing."""

from __future__ import annotations

from pathlib import Path

import openai
import pytest

from edge_agent.protocol import Metric
from tests.simulators.agent_run import running_agent

pytestmark = pytest.mark.anyio
HELLO = [{"role": "user", "content": "hello"}]

NOT_ANSWERED = {
    "too long": openai.BadRequestError,
    "no room": openai.InternalServerError,
    "late": openai.InternalServerError,
}


async def test_what_was_answered_is_measured(fleet, catalogue, tmp_path: Path) -> None:
    fleet.want(catalogue.base(), catalogue.adapter("home", "home 1"))
    async with (
        running_agent(tmp_path / "state", fleet) as agent,
        openai.AsyncOpenAI(base_url=f"{agent.daemon.api.url}/v1", api_key="none", max_retries=0) as client,
    ):
        await agent.until_serving(1)
        await client.chat.completions.create(model="home", messages=HELLO)
        for words, refusal in NOT_ANSWERED.items():
            with pytest.raises(refusal):
                await client.chat.completions.create(model="home", messages=[{"role": "user", "content": words}])
        await agent.until(lambda: total(fleet, Metric.REQUESTS) == 4)
        assert total(fleet, Metric.REQUESTS_REFUSED) == 2
        assert total(fleet, Metric.REQUESTS_FAILED) == 1
        assert total(fleet, Metric.DECODE_TOKENS) == len("home 1: hello")
        (sample,) = [s for b in fleet.batches.values() for s in b.samples if s.metric is Metric.TTFT_S]
        assert (sample.adapter_name, sample.backend, sample.value.max) == ("home", "scripted", 0.25)
        metrics = (await agent.api.get("/metrics")).text
        assert 'socle_requests_total{model="home",outcome="finished"} 1.0' in metrics
        assert 'socle_requests_total{model="home",outcome="refused"} 2.0' in metrics
        assert 'socle_requests_total{model="home",outcome="failed"} 1.0' in metrics
        pss = next(line for line in metrics.splitlines() if line.startswith("socle_engine_pss_bytes "))
        assert float(pss.split()[1]) > 1e6


def total(fleet, metric: Metric) -> float:
    return sum(s.value.sum for b in fleet.batches.values() for s in b.samples if s.metric is metric)


async def test_nothing_to_serve_is_503_and_health_says_so(fleet, tmp_path: Path) -> None:
    async with running_agent(tmp_path / "state", fleet) as agent:
        answer = await agent.api.post("/v1/chat/completions", json={"model": "x", "messages": HELLO})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_serving")
        assert int(answer.headers["Retry-After"]) > 0
        assert (await agent.api.get("/health")).status_code == 503
        assert (await agent.api.get("/v1/models")).json() == {"object": "list", "data": []}
        assert (await agent.api.get("/v1/nothing")).json()["error"]["type"] == "invalid_request_error"
