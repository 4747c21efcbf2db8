"""Downloads where nothing goes wrong: how fast beside curl, how much memory, and how little of a changed base comes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from deploy.bench.ota.device import fetch, fetcher
from deploy.bench.ota.proxy import Proxy
from deploy.bench.ota.releases import Bundle
from deploy.bench.ota.server import Device, Server
from deploy.tour.stack import ROOT
from engine.artifact import BASE_WEIGHTS, read_manifest


def measure_speed(server: Server, device: Device, bundle: Bundle, rounds: int) -> dict[str, Any]:
    """Our download in a process of its own, and curl's of the same file, in turns."""
    weights = weights_of(bundle)
    ours, curl, memory, cpu = [], [], [], []
    for number in range(2 * rounds):
        if (number + number // 2) % 2:  # A B B A
            target = device.directory / "curl.out"
            curl.append(bundle.size_bytes / 2**20 / server.curl(device, weights, target))
            target.unlink()
        else:
            device.forget()
            took = run_device(server.url, device, bundle.digest)
            ours.append(bundle.size_bytes / 2**20 / took["seconds"])
            memory.append(took["memory_bytes"] / 2**20)
            cpu.append(took["cpu_s"])
    return {
        "size_mib": bundle.size_bytes / 2**20,
        "ours_mib_per_s": ours,
        "curl_mib_per_s": curl,
        "ratio": median(ours) / median(curl),
        "memory_mib": memory,
        "cpu_s": cpu,
    }


def measure_delta(server: Server, proxy: Proxy, device: Device, bundles: tuple[Bundle, Bundle]) -> dict[str, Any]:
    """A device that has the old base fetches the new one."""
    old, new = bundles
    refs = server.publish("delta", bundles)
    device.forget()
    for ref, bundle in zip(refs, bundles, strict=True):
        server.want(ref, bundle.digest, device)
        proxy.order()
        run_device(f"http://127.0.0.1:{proxy.port}", device, bundle.digest, is_completed=bundle is old)
    return {
        "file_bytes": new.size_bytes,
        "changed_share": _changed_bytes(old, new) / new.size_bytes,
        "wire_bytes": proxy.num_bytes,
        "wire_share": proxy.num_bytes / new.size_bytes,
    }


async def measure_packing(proxy: Proxy, device: Device, bundle: Bundle) -> dict[str, Any]:
    """A release of which a part shrinks."""
    device.forget()
    proxy.order()
    server = f"http://127.0.0.1:{proxy.port}"
    async with fetcher(server, device.directory, device.device_id, device.state) as (its_fetcher, store):
        await fetch(its_fetcher, store, bundle.digest)
    manifest, _ = read_manifest(bundle.directory)
    return {"wire_bytes": proxy.num_bytes, "file_bytes": sum(entry.size_bytes for entry in manifest.files)}


def run_device(server: str, device: Device, digest: str, *, is_completed: bool = False) -> dict[str, Any]:
    """One download in a process of its own; `is_completed` puts the bundle in its final place."""
    done = subprocess.run(device_command(server, device, digest), cwd=ROOT, capture_output=True, check=True)  # noqa: S603
    if is_completed:
        from edge_agent.store import Store  # noqa: PLC0415

        Store(device.state).complete(digest)
    return dict(json.loads(done.stdout))


def device_command(server: str, device: Device, digest: str) -> list[str]:
    """How `deploy.bench.ota.device` is started."""
    arguments = [server, str(device.directory), device.device_id, str(device.state), digest]
    return [sys.executable, "-m", "deploy.bench.ota.device", *arguments]


def weights_of(bundle: Bundle) -> str:
    """The SHA-256 of its weights."""
    manifest, _ = read_manifest(bundle.directory)
    return next(entry.sha256 for entry in manifest.files if entry.path == BASE_WEIGHTS)


def _changed_bytes(old: Bundle, new: Bundle) -> int:
    """In tensors that differ."""
    from engine.tensor_file import TensorFile  # noqa: PLC0415

    files = [TensorFile(Path(bundle.directory) / BASE_WEIGHTS) for bundle in (old, new)]
    return sum(files[0][n].size_bytes for n in files[0] if files[0].view(n).tobytes() != files[1].view(n).tobytes())
