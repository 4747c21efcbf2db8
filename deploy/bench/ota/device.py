"""A device as far as it downloads: key, store, fetcher. As a program it fetches one release and prints what it took.

python -m deploy.bench.ota.device SERVER DIRECTORY DEVICE_ID DIGEST
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import structlog

from edge_agent.client import FleetClient
from edge_agent.fetcher import Fetcher
from edge_agent.file_client import FileClient
from edge_agent.patience import FetchPolicy, Pace
from edge_agent.protocol import EnrolRequest, Hardware
from edge_agent.schedule import Backoff
from edge_agent.store import Store
from edge_agent.trust import DeviceKey, DeviceSigner, Unsigned

POLICY = FetchPolicy(backoff=Backoff(0.01, 0.05), max_retries=3, min_bytes_per_s=4096, grace_s=3.0)


async def enrol(server: str, directory: Path, token: str) -> str:
    """Make a key below the directory and trade the token for a device id."""
    await asyncio.to_thread(directory.mkdir, parents=True, exist_ok=True)
    key = DeviceKey.open_or_make(directory / "key")
    secret, _, pin = token.partition(".")
    hello = EnrolRequest(secret, directory.name, key.public_base64(), "bench", Hardware("x", 1, 1), root_sha256=pin)
    async with httpx2.AsyncClient(timeout=30.0, trust_env=False) as http:
        return (await FleetClient(server, Unsigned(), http).enrol(hello)).device_id


def signer(directory: Path, device_id: str) -> DeviceSigner:
    """The device's signature, for whoever asks in its name."""
    return DeviceKey.open_or_make(directory / "key").signer(device_id)


@asynccontextmanager
async def fetcher(
    server: str, directory: Path, device_id: str, state: Path, policy: FetchPolicy = POLICY
) -> AsyncIterator[tuple[Fetcher, Store]]:
    """A fetcher over a store in the directory `state`."""
    async with httpx2.AsyncClient(timeout=30.0, trust_env=False) as http:
        store, signs = Store(state), signer(directory, device_id)
        files = FileClient(server, signs, timeout_s=POLICY.grace_s)
        yield Fetcher(FleetClient(server, signs, http), files, store, policy), store


async def fetch(fetcher: Fetcher, store: Store, digest: str) -> None:
    """All of a release, as the agent fetches it."""
    if store.manifest(digest) is None:
        await fetcher.fetch_manifest(digest)
    manifest = store.manifest(digest)
    assert manifest is not None
    await fetcher.fetch(digest, manifest, Pace(None), lambda _bytes: None)


async def _main(server: str, directory: Path, device_id: str, state: Path, digest: str) -> None:
    async with fetcher(server, directory, device_id, state) as (its_fetcher, store):
        await its_fetcher.fetch_manifest(digest)
        before, before_bytes = resource.getrusage(resource.RUSAGE_SELF), _memory_bytes("VmRSS")
        _reset_peak()
        started_s = time.perf_counter()
        await fetch(its_fetcher, store, digest)
        seconds = time.perf_counter() - started_s
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    growth_bytes = _memory_bytes("VmHWM") - before_bytes
    print(json.dumps({"seconds": seconds, "cpu_s": cpu_s, "memory_bytes": growth_bytes}))


def _reset_peak() -> None:
    """`VmHWM` counts from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def _memory_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    logging.disable(logging.INFO)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    its_server, its_directory, its_id, its_state, its_digest = sys.argv[1:]
    asyncio.run(_main(its_server, Path(its_directory), its_id, Path(its_state), its_digest))
