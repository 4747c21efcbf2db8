"""An agent in this event loop, with patience counted in milliseconds and the scripted engine as its child."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from edge_agent.__main__ import assemble
from edge_agent.client import FleetClient
from edge_agent.config import AgentConfig
from edge_agent.daemon import Daemon
from edge_agent.enrolment import identity_of
from edge_agent.host import Host
from edge_agent.protocol import UpdateState
from edge_agent.state_dir import StateDir
from edge_agent.trust import Unsigned
from edge_agent.updater import Updater
from tests.simulators.fleet_server import FleetServer

SCRIPTED_ENGINE = (sys.executable, str(Path(__file__).with_name("scripted_engine.py")))


def quick_config(state_dir: Path, server: str, **changes: Any) -> AgentConfig:
    """Settings under which seconds become milliseconds."""
    settings: dict[str, Any] = {
        "state_dir": state_dir,
        "server": server,
        "token": "good-token",
        "name": "test-device",
        "api_port": 0,
        "engine_command": SCRIPTED_ENGINE,
        "engine_heartbeat_s": 0.05,
        "engine_hang_timeout_s": 5.0,
        "retry_first_s": 0.01,
        "retry_longest_s": 0.05,
        "request_timeout_s": 5.0,
        "disk_reserve_bytes": 0,
        "spare_adapter_bytes": 0,
        "telemetry_interval_s": 0.2,
        "sample_interval_s": 0.2,
        "probe_timeout_s": 10.0,
    }
    return AgentConfig(**{**settings, **changes})


@dataclass(slots=True)
class AgentRun:
    """A running agent and its local API."""

    daemon: Daemon
    updater: Updater
    host: Host
    state_dir: StateDir
    task: asyncio.Task[None]
    api: httpx2.AsyncClient
    states: list[UpdateState]
    """States that the machine went through, in order."""

    @property
    def revision(self) -> int:
        """What is served, 0 for nothing."""
        served = self.host.served
        return served.desired.revision if served else 0

    async def until(self, condition: Callable[[], object], timeout_s: float = 20.0) -> None:
        """Wait until the condition holds; fails if the agent dies or it takes too long."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if self.task.done():
                await self.task
            assert time.monotonic() < deadline_s, f"waited in vain; {self.updater.entry.problem}; it went {self.states}"
            await asyncio.sleep(0.005)

    async def until_serving(self, revision: int) -> None:
        """Wait until this revision is served and the machine rests."""
        await self.until(lambda: self.revision == revision and self.updater.entry.state is UpdateState.IDLE)

    async def until_failed(self, revision: int) -> None:
        """Wait until this revision has failed."""
        await self.until(
            lambda: (
                self.updater.entry.state is UpdateState.FAILED
                and self.updater.entry.target is not None
                and self.updater.entry.target.revision == revision
            )
        )

    async def ask(self, model: str, words: str, **body: Any) -> str:
        """The answer's text."""
        document = {"model": model, "messages": [{"role": "user", "content": words}], **body}
        answer = await self.api.post("/v1/chat/completions", json=document)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["message"]["content"])


@asynccontextmanager
async def running_agent(state_dir: Path, fleet: FleetServer, **changes: Any) -> AsyncIterator[AgentRun]:
    """An agent from its boot to its stop."""
    changes.setdefault("token", fleet.token)
    config = quick_config(state_dir, changes.pop("server", fleet.url), **changes)
    directory = StateDir(state_dir)
    directory.make()
    async with httpx2.AsyncClient(timeout=5.0, trust_env=False) as http:
        with directory.held():
            identity = await identity_of(config, directory, lambda server: FleetClient(server, Unsigned(), http))
            daemon = assemble(config, directory, identity, http)
            async with _running(daemon, directory) as agent:
                yield agent


@asynccontextmanager
async def _running(daemon: Daemon, directory: StateDir) -> AsyncIterator[AgentRun]:
    components, states = daemon.components, []
    noted = components.updater.on_change
    components.updater.on_change = lambda entry: (states.append(entry.state), noted(entry))[1]
    task = asyncio.create_task(daemon.run())
    async with httpx2.AsyncClient(timeout=30.0, trust_env=False) as api:
        agent = AgentRun(daemon, components.updater, components.host, directory, task, api, states)
        try:
            await agent.until(lambda: daemon.api)
            assert daemon.api is not None
            api.base_url = httpx2.URL(daemon.api.url)
            yield agent
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
