"""Many devices that download at once from one server, and whether that writes to its database."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from deploy.bench.ota.device import fetch, fetcher
from deploy.bench.ota.releases import Bundle
from deploy.bench.ota.server import Device, Server
from edge_agent.errors import AgentError
from edge_agent.patience import FetchPolicy


async def measure_many(server: Server, bundle: Bundle, ref: str, num_agents: int) -> dict[str, Any]:
    """All fetch the same release at the same time. The worker is stopped meanwhile: its beat writes by itself."""
    devices = await server.enrol(num_agents)
    await asyncio.to_thread(server.want, ref, bundle.digest, devices[-1])
    server.stack.worker.stop()
    version = server.database_version()
    started_s = time.perf_counter()
    done = await asyncio.gather(*(_fetch(server, device, bundle) for device in devices))
    seconds = time.perf_counter() - started_s
    is_written = server.database_version() != version
    server.stack.worker.start()
    return {
        "num_agents": num_agents,
        "file_bytes": bundle.size_bytes,
        "seconds": seconds,
        "mib_per_s": num_agents * bundle.size_bytes / 2**20 / seconds,
        "num_failed": len(devices) - sum(done),
        "is_database_written": is_written,
    }


async def _fetch(server: Server, device: Device, bundle: Bundle) -> bool:
    device.forget()
    policy = FetchPolicy(grace_s=120.0)
    async with fetcher(server.url, device.directory, device.device_id, device.state, policy) as (its_fetcher, store):
        try:
            await fetch(its_fetcher, store, bundle.digest)
            await asyncio.to_thread(store.complete, bundle.digest)
        except AgentError:
            return False
    return store.holds(bundle.digest)
