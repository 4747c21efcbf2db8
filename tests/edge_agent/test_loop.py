"""The whole agent against a simulated fleet: desired state in, answers and reports out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulators.agent_run import running_agent

pytestmark = pytest.mark.anyio


async def test_a_device_reaches_the_desired_set(fleet, catalogue, tmp_path: Path) -> None:
    base = catalogue.base()
    revision = fleet.want(base, catalogue.adapter("home", "home 1"), catalogue.adapter("car", "car 1"))
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(revision)
        assert await agent.ask("home", "hello") == "home 1: hello"
        assert await agent.ask("car", "你好") == "car 1: 你好"
        assert await agent.ask("base", "hello") == "base: hello"
        await agent.until(lambda: fleet.reports[-1].revision == revision)
    assert fleet.reports[-1].adapters == fleet.desired.adapters
    assert fleet.reports[-1].problem is None
    assert [str(s) for s in agent.states] == [
        "fetching",
        "admitting",
        "downloading",
        "verifying",
        "switching",
        "probing",
        "committed",
        "idle",
    ]
