"""Downloads through a proxy that spoils them: what comes of each, and how many bytes came twice."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from typing import Any, Final

from deploy.bench.ota.device import fetch, fetcher
from deploy.bench.ota.proxy import Fault, Proxy
from deploy.bench.ota.releases import Bundle
from deploy.bench.ota.server import Device
from deploy.bench.ota.speed import device_command, run_device
from deploy.tour.stack import ROOT, wait_for
from edge_agent.errors import AgentError
from engine.artifact import read_manifest
from engine.chunk_index import MAX_CHUNK_BYTES

_MIDDLE: Final = 5_555_555
"""A byte of the weights far from any cut."""

FAULTS: Final[dict[str, list[Fault]]] = {
    "none": [],
    "cut in the middle": [Fault(cut_at=_MIDDLE)],
    "cut five times": [Fault(cut_at=_MIDDLE + n) for n in range(5)],
    "cut before the first byte": [Fault(cut_at=0)],
    "one bit flipped": [Fault(flip_at=_MIDDLE)],
    "a bit flipped, then a cut": [Fault(flip_at=_MIDDLE, cut_at=2 * _MIDDLE)],
    "the same bit flipped twice": [Fault(flip_at=_MIDDLE), Fault(flip_at=9)],
    "503, Retry-After: 1": [Fault(status=503, retry_after_s=1)],
    "429, Retry-After: 1": [Fault(status=429, retry_after_s=1)],
    "503 for ever": [Fault(status=503)] * 9,
    "404": [Fault(status=404)],
    "410": [Fault(status=410)],
    "cut, then a wrong range": [Fault(cut_at=_MIDDLE), Fault(is_wrong_range=True)],
    "cut, then wrong ranges for ever": [Fault(cut_at=_MIDDLE), *[Fault(is_wrong_range=True)] * 9],
    "slow, above the floor, for 2 MiB": [Fault(bytes_per_s=1 << 20, cut_at=2 << 20)],
    "drip below the floor, then well": [Fault(bytes_per_s=1000)],
    "drip below the floor for ever": [Fault(bytes_per_s=1000)] * 9,
}


async def measure_faults(proxy: Proxy, device: Device, bundle: Bundle) -> list[dict[str, Any]]:
    """Each fault on a device that has nothing. The tokenizer, of two bytes, comes first and is left alone."""
    rows = []
    for name, faults in FAULTS.items():
        device.forget()
        proxy.order(Fault(), *faults)
        started_s = time.perf_counter()
        outcome = await _outcome(proxy, device, bundle)
        extra_bytes = proxy.num_bytes - _file_bytes(bundle) if outcome == "ok" else 0
        rows.append(
            {
                "fault": name,
                "outcome": outcome,
                "num_requests": proxy.num_requests,
                "extra_bytes": extra_bytes,
                "extra_chunks": extra_bytes / MAX_CHUNK_BYTES,
                "seconds": time.perf_counter() - started_s,
            }
        )
    return rows


async def _outcome(proxy: Proxy, device: Device, bundle: Bundle) -> str:
    server = f"http://127.0.0.1:{proxy.port}"
    async with fetcher(server, device.directory, device.device_id, device.state) as (its_fetcher, store):
        try:
            await fetch(its_fetcher, store, bundle.digest)
        except AgentError as error:
            return error.code
        await asyncio.to_thread(store.complete, bundle.digest)
        return "ok" if store.holds(bundle.digest) else "not whole"


def measure_kill(proxy: Proxy, device: Device, bundle: Bundle) -> dict[str, Any]:
    """SIGKILL in the middle of a download, then another start."""
    device.forget()
    proxy.order(Fault(), Fault(bytes_per_s=8 << 20))
    server = f"http://127.0.0.1:{proxy.port}"
    child = subprocess.Popen(  # noqa: S603 - our own command line
        device_command(server, device, bundle.digest), cwd=ROOT, stdout=subprocess.DEVNULL
    )
    wait_for(lambda: proxy.num_bytes > _MIDDLE, "half of the file")
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    run_device(server, device, bundle.digest)
    extra_bytes = proxy.num_bytes - _file_bytes(bundle)
    return {"extra_bytes": extra_bytes, "extra_chunks": extra_bytes / MAX_CHUNK_BYTES}


def _file_bytes(bundle: Bundle) -> int:
    manifest, _ = read_manifest(bundle.directory)
    return sum(entry.size_bytes for entry in manifest.files)
