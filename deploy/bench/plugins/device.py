"""A device without a fleet: the agent's host with its engine process, and the local API on a free port of loopback."""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2
import uvicorn

from deploy.bench.plugins.models import Models
from edge_agent.engine_child import ChildSettings
from edge_agent.host import Host, HostSettings
from edge_agent.local_api import LocalApi
from edge_agent.protocol import DesiredState, ReleaseRef
from edge_agent.quarantine import Quarantine
from edge_agent.recorder import Recorder
from edge_agent.served import Served
from edge_agent.spool import Spool
from edge_agent.store import Store
from edge_agent.telemetry import Telemetry

_ENGINE = (sys.executable, "-m", "edge_agent.engine_process")
_LONG_S = 600.0


@dataclass(frozen=True, slots=True)
class Device:
    """A running device."""

    host: Host
    api: httpx2.AsyncClient

    @property
    def served(self) -> Served:
        """What it serves; it must be serving."""
        assert self.host.served is not None
        return self.host.served

    async def until_serving(self) -> None:
        """Return once requests are answered."""
        while self.host.served is None:
            await asyncio.sleep(0.005)


@asynccontextmanager
async def device(
    models: Models,
    adapters: Mapping[str, Path],
    *,
    engine: Mapping[str, Any],
    businesses: Mapping[str, Mapping[str, Any]] | None = None,
    hang_timeout_s: float = 60.0,
    heartbeat_interval_s: float = 1.0,
) -> AsyncIterator[Device]:
    """Serve the base and adapters by name, with these engine settings and businesses."""
    with TemporaryDirectory(prefix="socle-plugins-") as temporary:
        state = Path(temporary)
        host = Host(
            _store(state, models, adapters),
            HostSettings(
                child=ChildSettings(
                    _ENGINE,
                    {"prefix_cache_dir": str(state / "prompts"), **engine},
                    heartbeat_interval_s=heartbeat_interval_s,
                    hang_timeout_s=hang_timeout_s,
                ),
                max_in_flight=1000,
                ready_wait_s=_LONG_S,
                stable_s=0.0,  # each crash counts as the first one
                businesses=businesses or {},
            ),
            Quarantine(state / "quarantine.json"),
        )
        host.start(desired_state(models, adapters, 1))
        telemetry = Telemetry(Spool(state / "spool", max_bytes=1 << 30), "bench")
        app = LocalApi(host, Recorder(telemetry), dict).app(hosts=None)
        async with (
            _served_on_loopback(app) as url,
            httpx2.AsyncClient(
                base_url=url, timeout=_LONG_S, trust_env=False, limits=httpx2.Limits(max_connections=None)
            ) as api,
        ):
            running = Device(host, api)
            await running.until_serving()
            try:
                yield running
            finally:
                await host.stop()


def _store(state: Path, models: Models, adapters: Mapping[str, Path]) -> Store:
    """Bundles where an agent has them, without another copy of their weights."""
    store = Store(state)
    for digest, bundle in {models.base_digest: models.base, **{models.digest(a): a for a in adapters.values()}}.items():
        shutil.copytree(bundle, store.bundle(digest), copy_function=_link)
    return store


def _link(source: str, target: str) -> None:
    Path(target).symlink_to(source)


def desired_state(models: Models, adapters: Mapping[str, Path], revision: int) -> DesiredState:
    """The base and these adapters by name."""
    refs = tuple(ReleaseRef(name, "1.0.0", models.digest(path)) for name, path in adapters.items())
    return DesiredState("bench", revision, ReleaseRef("base", "1.0.0", models.base_digest), refs)


class _Server(uvicorn.Server):
    def capture_signals(self) -> Any:
        return nullcontext()


@asynccontextmanager
async def _served_on_loopback(app: Any) -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = _Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await serving
