"""A fleet on loopback and bundles for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from edge_agent.protocol import ReleaseRef
from tests.simulators.bundles import make_adapter, make_base
from tests.simulators.fleet_server import FleetServer


@pytest.fixture
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


@pytest.fixture(autouse=True)
def _quiet_log() -> Iterator[None]:
    with structlog.testing.capture_logs():
        yield
