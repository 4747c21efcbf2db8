"""A fleet on loopback and bundles for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import structlog

from edge_agent.protocol import ReleaseRef
from tests.simulators.agent_run import AgentRun, running_agent
from tests.simulators.bundles import make_adapter, make_base
from tests.simulators.fleet_server import FleetServer


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def fleet() -> Iterator[FleetServer]:
    server = FleetServer()
    yield server
    server.stop()


@dataclass(slots=True)
class Catalogue:
    """Releases of a fleet, made when they are asked for."""

    fleet: FleetServer
    directory: Path

    def base(self, tag: str = "base", *, name: str = "base", **options: Any) -> ReleaseRef:
        make_base(self.path(tag), tag, **options)
        return self.fleet.publish(name, "1.0.0", self.path(tag))

    def adapter(self, name: str, tag: str, *, base: str = "base", **options: Any) -> ReleaseRef:
        make_adapter(self.path(tag), self.path(base), tag, **options)
        return self.fleet.publish(name, "1.0.0", self.path(tag))

    def path(self, tag: str) -> Path:
        return self.directory / tag.replace(" ", "-")


@pytest.fixture
def catalogue(fleet: FleetServer, tmp_path: Path) -> Catalogue:
    return Catalogue(fleet, tmp_path / "published")


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AgentRun]:
    """An agent that serves a base and two adapters to all tests of a module; `client` asks it."""
    directory = tmp_path_factory.mktemp("served")
    fleet = FleetServer()
    catalogue = Catalogue(fleet, directory / "published")
    business = {"sampling": {"temperature": 0.0, "top_k": -1, "stop": "##"}, "title": "for apps"}
    base = catalogue.base()
    fleet.want(base, catalogue.adapter("home", "home 1", business=business), catalogue.adapter("工具", "tool"))
    async with running_agent(directory / "state", fleet, engine_hang_timeout_s=30.0) as agent:
        await agent.until_serving(1)
        yield agent
    fleet.stop()


@pytest.fixture
async def client(served: AgentRun) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{served.daemon.api.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _quiet_log() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield
