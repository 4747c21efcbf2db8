"""Killed at any point: at once the old set or the new one is served again from disk, then the device goes on."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.journal import Journal
from edge_agent.protocol import Metric, Problem
from edge_agent.states import Entry, State
from edge_agent.store import Store
from engine.artifact import read_manifest
from tests.simulators.agent_process import AgentProcess
from tests.simulators.agent_run import running_agent
from tests.simulators.fleet_server import FleetServer, Hold

OLD, NEW = "home 1: hi", "home 2: hi"

# State at the kill, whether the new set's files were whole -> answers right after a restart without a server, and in
# the end with one.
KILLED_IN: dict[State, tuple[bool, set[str], str]] = {
    State.IDLE: (False, {OLD}, NEW),
    State.FETCHING: (False, {OLD}, NEW),
    State.ADMITTING: (False, {OLD}, NEW),
    State.DOWNLOADING: (False, {OLD}, NEW),
    State.VERIFYING: (True, {OLD, NEW}, NEW),
    State.SWITCHING: (True, {OLD, NEW}, NEW),
    State.PROBING: (True, {OLD, NEW}, NEW),
    State.COMMITTED: (True, {NEW}, NEW),
    State.ROLLING_BACK: (True, {OLD}, OLD),
    State.FAILED: (True, {OLD}, OLD),
}


def test_the_table_has_every_state() -> None:
    assert set(KILLED_IN) == set(State)


@pytest.mark.anyio
@pytest.mark.parametrize("state", list(State))
async def test_killed_in(fleet, catalogue, tmp_path: Path, state: State) -> None:
    is_whole, at_once, in_the_end = KILLED_IN[state]
    base, old, new = catalogue.base(), catalogue.adapter("home", "home 1"), catalogue.adapter("home", "home 2")
    fleet.want(base, old)
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        served = agent.updater.entry.served
    fleet.want(base, new)
    if is_whole:
        put_on_disk(tmp_path / "state", catalogue.path("home 2"))
    Journal(tmp_path / "state").write(entry_at(state, served, replace(fleet.desired, device_id=served.device_id)))
    fleet.stop()
    async with running_agent(tmp_path / "state", fleet) as agent:
        assert await agent.ask("home", "hi") in at_once
        fleet.start()
        await (agent.until_serving(2) if in_the_end == NEW else agent.until_failed(2))
        assert await agent.ask("home", "hi") == in_the_end


def entry_at(state: State, old, new) -> Entry:
    """What the journal holds when the agent is killed in a state on its way from the old set to the new one."""
    if state is State.IDLE:
        return Entry(state, old, old)
    problem = Problem("why", "because") if state in (State.ROLLING_BACK, State.FAILED) else None
    return Entry(state, new if state is State.COMMITTED else old, new, problem)


def put_on_disk(state_dir: Path, bundle: Path) -> None:
    """A bundle as it lies there after its download."""
    manifest, digest = read_manifest(bundle)
    store = Store(state_dir)
    store.begin(digest, (bundle / "manifest.json").read_bytes())
    for entry in manifest.files:
        (state_dir / "partial" / digest / entry.path).write_bytes((bundle / entry.path).read_bytes())
    store.complete(digest)


@pytest.mark.anyio
async def test_a_bundle_that_rotted_on_disk_is_fetched_again(fleet, catalogue, tmp_path: Path) -> None:
    base = catalogue.base()
    fleet.want(base, catalogue.adapter("home", "home 1"))
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
    weights = tmp_path / "state" / "bundles" / base.digest / "weights.safetensors"
    weights.write_bytes(b"damaged\n" + weights.read_bytes()[8:])
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        assert await agent.ask("home", "hi") == OLD
    assert weights.read_bytes().startswith(b"base\n")


@pytest.fixture
def agent(fleet, tmp_path: Path) -> Iterator[AgentProcess]:
    process = AgentProcess(tmp_path / "state", fleet)
    yield process
    process.stop()


SLOW_POINTS = {
    "fetching": ("/releases/", {}),
    "downloading": ("/files/", {}),
    "switching": (None, {"load_s": 1.0}),
    "probing": (None, {"step_s": 0.15}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SLOW_POINTS))
def test_kill_9(fleet, catalogue, agent: AgentProcess, name: str) -> None:
    path, engine = SLOW_POINTS[name]
    base, old, new = catalogue.base(), catalogue.adapter("home", "home 1"), catalogue.adapter("home", "home 2")
    fleet.want(base, old)
    agent.changes["engine"] = engine
    agent.start()
    agent.until(lambda: agent.ask("home", "hi") == OLD)
    hold = Hold(threading.Event())
    if path:
        fleet.order(path, hold)
    fleet.want(base, new)
    journal = Journal(agent.state_dir)
    agent.until(lambda: (journal.read().state, journal.read().target.revision) == (name, 2))
    engines = agent.kill()
    hold.release.set()
    assert engines
    agent.start()
    agent.until(lambda: agent.ask("home", "hi") in (OLD, NEW))
    agent.until(lambda: agent.ask("home", "hi") == NEW)
    agent.until(lambda: not any(engine.is_running() for engine in engines))


@pytest.mark.slow
def test_kills_and_outages_at_random_times_lose_no_request(fleet, catalogue, agent: AgentProcess) -> None:
    dice = random.Random(7)
    fleet.want(catalogue.base())
    num_answered = 0
    for _ in range(3):
        agent.start()
        agent.until(lambda: agent.ask("base", "uncounted") is not None)
        num_answered += 1
        fleet.stop()
        for _ in range(dice.randint(1, 8)):
            num_answered += agent.ask("base", "hi") is not None
        if dice.random() < 0.5:
            time.sleep(dice.random())
        agent.kill()
        fleet.start()
    agent.start()
    agent.until(lambda: requests_counted(fleet) >= num_answered)
    agent.stop()
    assert requests_counted(fleet) == num_answered


def requests_counted(fleet: FleetServer) -> int:
    samples = [sample for batch in fleet.batches.values() for sample in batch.samples]
    return round(sum(sample.value.sum for sample in samples if sample.metric is Metric.REQUESTS))


@pytest.mark.slow
def test_a_signal_ends_the_agent_and_its_engine_cleanly(fleet, catalogue, agent: AgentProcess) -> None:
    fleet.want(catalogue.base())
    agent.start()
    agent.until(lambda: agent.ask("base", "hi"))
    engines = agent.engines()
    agent.stop()
    assert agent.process.returncode == 0
    assert not any(engine.is_running() for engine in engines)
    assert requests_counted(fleet) == 1
