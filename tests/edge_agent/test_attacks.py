"""Each attack against a running agent: refused under its name, seen by operators; the old set goes on serving."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.edge_agent.attacks import ATTACKS
from tests.edge_agent.conftest import Catalogue
from tests.simulators.agent_run import running_agent
from tests.simulators.fleet_server import FleetServer, policy_of
from tests.simulators.tuf_repository import make_signer

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


async def test_after_a_huge_revision_of_a_stolen_key_a_new_key_sets_it_right(
    fleet: FleetServer, catalogue: Catalogue, tmp_path: Path
) -> None:
    fleet.want(catalogue.base(), catalogue.adapter("home", "home 1"))
    honest = fleet.desired
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        fleet.want(fleet.desired.base, revision=2**60)
        await agent.until_serving(2**60)
        fleet.want(honest.base, *honest.adapters, revision=2)
        await agent.until(lambda: any(r.problem and r.problem.code == "desired_rollback" for r in fleet.reports))
    fleet.desired_signer = make_signer()
    fleet.trust.set_policy(policy_of(fleet.desired_signer))
    async with running_agent(tmp_path / "state", fleet) as agent:  # what it remembers is on its disk
        await agent.until_serving(2)
        fleet.want(honest.base, revision=1)  # the new key's revisions only grow as well
        await agent.until(lambda: fleet.reports[-1].problem and fleet.reports[-1].problem.code == "desired_rollback")
        assert await agent.ask("home", "hi") == "home 1: hi"


async def test_a_replay_after_a_restart_is_refused(fleet: FleetServer, catalogue: Catalogue, tmp_path: Path) -> None:
    """Also one of a revision that the device has heard of and never reached."""
    fleet.want(catalogue.base())
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        fleet.want(catalogue.base("gone"), revision=7)
        fleet.trust.withdraw("base", fleet.desired.base.digest)
        await agent.until(lambda: fleet.reports[-1].target_revision == 7)
    fleet.want(None, revision=6)
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until(lambda: any(r.problem and r.problem.code == "desired_rollback" for r in fleet.reports))
        await agent.until(lambda: agent.revision == 1)
