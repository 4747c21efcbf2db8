"""The real server on this machine with releases to fetch and devices that shall have them, and curl as the measure."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from deploy.bench.ota.device import enrol, signer
from deploy.bench.ota.releases import Bundle
from deploy.tour.api import Api
from deploy.tour.stack import ROOT, Stack, free_port, wait_for
from edge_agent import protocol
from edge_agent.client import FleetClient
from engine.strict_json import decode

GROUP = "bench"


@dataclass(frozen=True, slots=True)
class Device:
    """An enrolled device: its directory has the key, `state` below it takes what it fetches."""

    directory: Path
    device_id: str

    @property
    def state(self) -> Path:
        """Where its store is."""
        return self.directory / "state"

    def forget(self) -> None:
        """Begin with an empty store."""
        shutil.rmtree(self.state, ignore_errors=True)
        self.state.mkdir(parents=True)


class Server:
    """Web server and worker of a fresh database."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.api = Api(stack.url, stack.token_file.read_text().strip())

    @property
    def url(self) -> str:
        """Where it listens."""
        return self.stack.url

    def publish(self, name: str, bundles: Sequence[Bundle]) -> list[str]:
        """Put bundles into the catalogue as versions of one base; returns their references."""
        refs = [f"{name}@{number}.0.0" for number in range(1, len(bundles) + 1)]
        arguments = [f"{ref}={bundle.directory}" for ref, bundle in zip(refs, bundles, strict=True)]
        subprocess.run(  # noqa: S603 - our own command line
            [sys.executable, "-m", "deploy.bench.ota.releases", *arguments],
            cwd=ROOT,
            env={**self.stack.server.environment, "DJANGO_SETTINGS_MODULE": "fleet.settings"},
            check=True,
            stdout=sys.stderr,
        )
        self.stack.manage(*self.stack.sign_command(*refs))
        return refs

    async def enrol(self, count: int) -> list[Device]:
        """New devices."""
        made = self.api.call("POST", "/api/v1/enrolment-tokens", {"group": GROUP, "count": count})["tokens"]
        directories = [self.stack.device_directory(f"{row['prefix'][-8:]}-{n}") for n, row in enumerate(made)]
        return [
            Device(directory, await enrol(self.url, directory, row["token"]))
            for directory, row in zip(directories, made, strict=True)
        ]

    def want(self, ref: str, digest: str, device: Device) -> None:
        """Roll a base out, and wait until the device shall have it."""
        self.api.call("POST", "/api/v1/rollouts", {"name": ref, "base": ref, "groups": [GROUP]})
        wait_for(lambda: asyncio.run(self._wants(device)) == digest, "the rollout", watch=self.stack.check)

    async def _wants(self, device: Device) -> str:
        async with httpx2.AsyncClient(timeout=30.0, trust_env=False) as http:
            client = FleetClient(self.url, signer(device.directory, device.device_id), http)
            signed = (await client.desired(None)).signed
        assert signed is not None
        desired = decode(protocol.DesiredStatement, signed.statement.encode()).desired
        return desired.base.digest if desired.base else ""

    def curl(self, device: Device, sha256: str, target: Path) -> float:
        """Seconds that curl takes for a file in the device's name."""
        path = f"{protocol.API_PREFIX}/files/{sha256}"
        signed = signer(device.directory, device.device_id).headers("GET", path, b"")
        headers = [argument for name, value in signed.items() for argument in ("-H", f"{name}: {value}")]
        started_s = time.perf_counter()
        subprocess.run(["curl", "-sSf", "-o", str(target), *headers, self.url + path], check=True)  # noqa: S603, S607
        return time.perf_counter() - started_s

    def database_version(self) -> int:
        """Changes whenever anybody has committed a write; ask through one connection only."""
        if not hasattr(self, "_database"):
            found = next((self.stack.directory / "data").glob("*.sqlite3"))
            self._database = sqlite3.connect(f"file:{found}?mode=ro", uri=True)
        return int(self._database.execute("PRAGMA data_version").fetchone()[0])


@contextmanager
def running_server(directory: Path) -> Iterator[Server]:
    """From migration to stop."""
    os.environ.setdefault("SOCLE_LOG_LEVEL", "WARNING")
    stack = Stack(directory, free_port())
    try:
        stack.prepare()
        stack.start_server()
        server = Server(stack)
        server.api.call("POST", "/api/v1/groups", {"name": GROUP})
        yield server
    finally:
        stack.close()
