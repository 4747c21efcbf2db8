"""What a set must show on the engine before it is committed."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.protocol import Limits
from tests.simulators.agent_run import running_agent

pytestmark = pytest.mark.anyio


async def test_an_adapter_that_changes_nothing_is_refused_by_name(fleet, catalogue, tmp_path: Path) -> None:
    base = catalogue.base()
    nothing_new = catalogue.adapter("home", "copy", weights_tag="base", golden={})
    fleet.want(base)
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        fleet.want(base, nothing_new)
        await agent.until_failed(2)
        problem = agent.updater.entry.problem
        assert (problem.code, problem.evidence["model"]) == ("adapter_changes_nothing", "home")
        assert not agent.updater.entry.retryable
        await agent.until(lambda: fleet.reports[-1].problem == problem)
        assert await agent.ask("base", "hi") == "base: hi"


FLOORS = {
    "speed, as the device says": ({"min_decode_tokens_per_s": 1e9}, Limits(), "too_slow", "tokens_per_s"),
    "speed, as the fleet says": ({}, Limits(min_decode_tokens_per_s=1e9), "too_slow", "tokens_per_s"),
    "free memory": ({"min_free_memory_bytes": 1 << 60}, Limits(), "not_enough_memory", "free_bytes"),
}


@pytest.mark.parametrize("name", list(FLOORS))
async def test_a_set_below_a_floor_is_rolled_back_with_what_was_measured(
    fleet, catalogue, tmp_path: Path, name: str
) -> None:
    settings, limits, code, evidence = FLOORS[name]
    fleet.want(catalogue.base(), catalogue.adapter("home", "home 1"), limits=limits)
    async with running_agent(tmp_path / "state", fleet, **settings) as agent:
        await agent.until(lambda: any(report.problem for report in fleet.reports))
        problem = next(report.problem for report in fleet.reports if report.problem)
        assert problem.code == code
        assert float(problem.evidence[evidence]) > 0
        assert agent.revision == 0
        assert agent.updater.entry.retryable  # the device may have had a bad moment
