"""Each attack against a running agent: refused under its name, seen by operators; the old set goes on serving."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.edge_agent.attacks import ATTACKS
from tests.edge_agent.conftest import Catalogue
from tests.simulators.agent_run import running_agent
from tests.simulators.fleet_server import FleetServer

pytestmark = pytest.mark.anyio


@pytest.fixture
def fleet() -> FleetServer:
    server = FleetServer(root_threshold=2)
    yield server
    server.stop()


@pytest.mark.parametrize("name", list(ATTACKS))
async def test_an_attack_is_refused_by_name(
    fleet: FleetServer, catalogue: Catalogue, tmp_path: Path, name: str
) -> None:
    case = ATTACKS[name]
    case.prepare(fleet)
    fleet.want(catalogue.base(), catalogue.adapter("home", "home 1"))
    async with running_agent(tmp_path / "state", fleet, request_timeout_s=0.4) as agent:
        await agent.until_serving(1)
        case.carry_out(fleet, catalogue)
        await agent.until(lambda: any(r.problem and r.problem.code == case.code for r in fleet.reports))
        assert agent.revision == 1
        assert await agent.ask("home", "hi") == "home 1: hi"


async def test_after_a_fast_forward_rotated_keys_set_it_right(
    fleet: FleetServer, catalogue: Catalogue, tmp_path: Path
) -> None:
    ATTACKS["fast-forward"].prepare(fleet)
    fleet.want(catalogue.base(), catalogue.adapter("home", "home 1"))
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        ATTACKS["fast-forward"].carry_out(fleet, catalogue)
        await agent.until(lambda: any(r.problem and r.problem.code == "metadata_rollback" for r in fleet.reports))
        fleet.trust.replace_keys("timestamp")
        fleet.trust.rotate_root()
        fleet.trust.publish()
        fleet.want(fleet.desired.base, *fleet.desired.adapters)
        await agent.until_serving(fleet.desired.revision)
