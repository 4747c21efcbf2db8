"""Trust over a device's life: its first root, a new key, a release that is revoked while it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from edge_agent.client import FleetClient
from edge_agent.enrolment import enrol, identity_of
from edge_agent.errors import NotEnrolledError, RefusedError, UnreachableError
from edge_agent.protocol import UpdateState
from edge_agent.state_dir import StateDir
from edge_agent.states import MAX_ATTEMPTS
from edge_agent.trust import Signer, Unsigned, read_identity
from edge_agent.trust_rotation import finish_rotation, rotate_key
from tests.edge_agent.conftest import Catalogue
from tests.simulators.agent_run import AgentRun, quick_config, running_agent
from tests.simulators.fleet_server import FleetServer, Lost, Status, policy_of
from tests.simulators.tuf_repository import TufRepository, in_days

pytestmark = pytest.mark.anyio


async def try_to_enrol(fleet: FleetServer, state: Path, **changes: Any) -> StateDir:
    directory = StateDir(state)
    directory.make()
    async with httpx2.AsyncClient(trust_env=False) as http:
        config = quick_config(state, fleet.url, **changes)
        await enrol(config, directory, lambda server: FleetClient(server, Unsigned(), http))
    return directory


async def test_the_token_pins_the_first_root(fleet: FleetServer, tmp_path: Path) -> None:
    directory = await try_to_enrol(fleet, tmp_path / "state", token=fleet.token)
    assert directory.first_root.read_bytes() == fleet.trust.root_bytes


async def test_a_root_can_be_brought_as_a_file(fleet: FleetServer, tmp_path: Path) -> None:
    (tmp_path / "root.json").write_bytes(fleet.trust.root_bytes)
    directory = await try_to_enrol(fleet, tmp_path / "state", root=tmp_path / "root.json")
    assert directory.first_root.read_bytes() == fleet.trust.root_bytes


async def test_a_server_cannot_choose_the_root(fleet: FleetServer, tmp_path: Path) -> None:
    token = fleet.token
    fleet.trust = TufRepository()
    with pytest.raises(NotEnrolledError) as refused:
        await try_to_enrol(fleet, tmp_path / "state", token=token)
    assert refused.value.code == "root_mismatch"
    assert not StateDir(tmp_path / "state").first_root.exists()
    assert read_identity(StateDir(tmp_path / "state").identity) is None


async def test_nobody_is_trusted_by_default(fleet: FleetServer, tmp_path: Path) -> None:
    with pytest.raises(NotEnrolledError) as refused:
        await try_to_enrol(fleet, tmp_path / "state", token="good-token")
    assert refused.value.code == "no_root"
    assert "good-token" in fleet.tokens  # not used up


@pytest.fixture
async def device(fleet: FleetServer, tmp_path: Path) -> StateDir:
    return await try_to_enrol(fleet, tmp_path / "state", token=fleet.token)


async def rotate(fleet: FleetServer, directory: StateDir, step: Callable[..., Any] = rotate_key) -> None:
    identity = read_identity(directory.identity)
    async with httpx2.AsyncClient(trust_env=False) as http:

        def connect(signer: Signer) -> FleetClient:
            return FleetClient(fleet.url, signer, http)

        await step(directory, identity.device_id, connect)


async def works(fleet: FleetServer, directory: StateDir) -> None:
    polls = fleet.count("GET", "/desired")
    async with running_agent(directory.root, fleet) as agent:
        await agent.until(lambda: fleet.count("GET", "/desired") > polls + 1)
        assert agent.daemon.status()["server"]["problem"] is None


async def test_a_new_key_replaces_the_old_one(fleet: FleetServer, device: StateDir) -> None:
    before = device.key.read_bytes()
    await rotate(fleet, device)
    assert device.key.read_bytes() != before
    assert not device.next_key.exists()
    await works(fleet, device)


@pytest.mark.parametrize("fault", [Lost(), Status(503)])
async def test_an_interrupted_rotation_is_finished_at_the_next_start(
    fleet: FleetServer, device: StateDir, fault: Any
) -> None:
    before = device.key.read_bytes()
    fleet.order("/key", fault)
    with pytest.raises((UnreachableError, Exception)):
        await rotate(fleet, device)
    assert (device.key.read_bytes(), device.next_key.exists()) == (before, True)
    await rotate(fleet, device, finish_rotation)
    assert device.key.read_bytes() != before
    await works(fleet, device)


async def test_a_refused_rotation_leaves_the_old_key(fleet: FleetServer, device: StateDir) -> None:
    before = device.key.read_bytes()
    fleet.order("/key", Status(403, "device_revoked"))
    with pytest.raises(RefusedError):
        await rotate(fleet, device)
    assert device.key.read_bytes() == before


async def refusal(agent: AgentRun, model: str) -> str | None:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    answer = await agent.api.post("/v1/chat/completions", json=body)
    return None if answer.status_code == 200 else answer.json()["error"]["code"]


async def test_a_revoked_release_runs_no_more_also_after_a_restart_alone(
    fleet: FleetServer, catalogue: Catalogue, tmp_path: Path
) -> None:
    fleet.want(catalogue.base(), catalogue.adapter("home", "home 1"), catalogue.adapter("car", "car 1"))
    async with running_agent(tmp_path / "state", fleet, trust_interval_s=0.05) as agent:
        await agent.until_serving(1)
        assert await refusal(agent, "home") is None
        revoked = next(ref.digest for ref in fleet.desired.adapters if ref.name == "home")
        fleet.trust.set_policy(policy_of(fleet.desired_signer, revoked=(revoked,)))
        await agent.until(lambda: any(r.problem and r.problem.code == "release_revoked" for r in fleet.reports))
        assert [await refusal(agent, name) for name in ("home", "car", "base")] == ["release_revoked", None, None]
    fleet.stop()
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until(lambda: agent.revision == 1)
        assert [await refusal(agent, name) for name in ("home", "car")] == ["release_revoked", None]


async def test_nothing_runs_when_metadata_has_outlived_the_policys_limit(
    fleet: FleetServer, catalogue: Catalogue, tmp_path: Path
) -> None:
    fleet.want(catalogue.base())
    fleet.trust.set_policy(policy_of(fleet.desired_signer, max_stale_s=86_400))
    async with running_agent(tmp_path / "state", fleet, trust_interval_s=0.05) as agent:
        await agent.until_serving(1)
        fleet.trust.timestamp.expires = in_days(1 / 86_400)
        fleet.trust.publish_timestamp()
        await agent.until(lambda: agent.daemon.components.revocation._heard.max_stale_s == 86_400)
        fleet.trust.set_policy(policy_of(fleet.desired_signer, max_stale_s=0))
        await agent.until(lambda: any(r.problem and r.problem.code == "metadata_outlived" for r in fleet.reports))
        assert await refusal(agent, "base") == "metadata_outlived"
        fleet.trust.timestamp.expires = in_days(1)
        fleet.trust.publish_timestamp()
        await agent.until(lambda: agent.daemon.components.revocation.problem_with(()) is None)
        assert await refusal(agent, "base") is None


async def test_an_update_outlasts_a_lapse_of_the_fleets_signing(
    fleet: FleetServer, catalogue: Catalogue, tmp_path: Path
) -> None:
    base = catalogue.base()
    fleet.want(base)
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        fleet.trust.let_expire()
        second = fleet.want(base, catalogue.adapter("home", "home 1"))
        await agent.until(lambda: agent.states.count(UpdateState.FAILED) > MAX_ATTEMPTS + 1)
        assert agent.updater.entry.problem.code == "metadata_expired"
        fleet.trust.renew()
        await agent.until_serving(second)


async def test_a_timestamp_that_is_damaged_on_the_disk_counts_as_outlived(
    fleet: FleetServer, catalogue: Catalogue, tmp_path: Path
) -> None:
    fleet.want(catalogue.base())
    fleet.trust.set_policy(policy_of(fleet.desired_signer, max_stale_s=86_400))
    async with running_agent(tmp_path / "state", fleet, trust_interval_s=0.05) as agent:
        await agent.until_serving(1)
        await agent.until(lambda: agent.daemon.components.revocation._heard.max_stale_s == 86_400)
        fleet.stop()
        (agent.state_dir.metadata / "timestamp.json").write_bytes(b"")
        await agent.until(lambda: agent.daemon.components.revocation.problem_with(()))
        assert await refusal(agent, "base") == "metadata_outlived"
        fleet.start()
        await agent.until(lambda: agent.daemon.components.revocation.problem_with(()) is None)
        assert await refusal(agent, "base") is None


async def test_a_device_from_before_wants_a_root(fleet: FleetServer, device: StateDir) -> None:
    device.first_root.unlink()
    with pytest.raises(NotEnrolledError, match="--root"):
        await identity_of(quick_config(device.root, fleet.url), device, lambda _: None)


async def test_what_can_not_be_remembered_is_not_begun_and_said(fleet: FleetServer, catalogue, tmp_path: Path) -> None:
    """Else a restart would take an older desired state for new."""
    fleet.want(catalogue.base())
    directory = StateDir(tmp_path / "state")
    async with running_agent(directory.root, fleet) as agent:
        await agent.until_serving(1)
        in_the_way = directory.desired.with_name(f".{directory.desired.name}.tmp")
        in_the_way.mkdir()
        fleet.want(catalogue.base("base 2"))
        await agent.until(lambda: fleet.reports[-1].problem and fleet.reports[-1].problem.code == "disk_error")
        assert await agent.ask("base", "hi") == "base: hi"
        in_the_way.rmdir()
        await agent.until_serving(2)
        await agent.until(lambda: fleet.reports[-1].problem is None)
