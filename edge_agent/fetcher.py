"""Fetches one release's files: ranges, resume, SHA-256 as bytes land, back-off, and a budget of retries.

Knows how to be patient with a bad network and a bad server; where files lie is `store`'s matter, URLs are `client`'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import structlog

from edge_agent.client import FileStream, FleetClient
from edge_agent.errors import DamagedError, TransientError, UnavailableError
from edge_agent.schedule import Backoff
from edge_agent.store import Store
from engine.artifact import FileEntry, Manifest
from engine.errors import BundleError

log = structlog.get_logger()

TOO_SLOW = "too_slow"
OnBytes = Callable[[int], None]
_READ_BYTES = 1 << 20


class Hash(Protocol):
    """What of a hashlib object is used here."""

    def update(self, data: bytes, /) -> None:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """The digest of all bytes so far."""


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """How much patience to have.

    max_retries: failures in a row without a single new byte, per release. max_wrong: times that a file may come with a
    wrong hash. min_bytes_per_s: a server that is slower for a whole answer counts as failing.
    """

    backoff: Backoff = field(default_factory=lambda: Backoff(0.5, 60.0))
    max_retries: int = 8
    max_wrong: int = 2
    min_bytes_per_s: int = 1024
    grace_s: float = 30.0


class RetryBudget:
    """Failures in a row of one release; raises the last one when they are too many."""

    def __init__(self, policy: FetchPolicy) -> None:
        self._policy = policy
        self._num_in_a_row = 0
        self._num_too_slow = 0
        """Counted apart: a server that trickles always brings some new bytes."""

    def refill(self) -> None:
        """New bytes came in."""
        self._num_in_a_row = 0

    async def spend(self, error: TransientError) -> None:
        """Wait as long as is due before the next try."""
        self._num_in_a_row += 1
        self._num_too_slow += error.code == TOO_SLOW
        num_failures = max(self._num_in_a_row, self._num_too_slow)
        if num_failures > self._policy.max_retries:
            raise error
        delay_s = self._policy.backoff.delay_s(num_failures, error.retry_after_s)
        log.warning("fetch.retry", code=error.code, error=str(error), failures=num_failures, delay_s=delay_s)
        await asyncio.sleep(delay_s)


class Pace:
    """Keeps a download below a number of bytes per second; None is no limit."""

    def __init__(self, bytes_per_s: int | None) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at_s = 0.0

    async def take(self, num_bytes: int) -> None:
        """Wait until these bytes may come."""
        if not self._bytes_per_s:
            return
        now_s = time.monotonic()
        self._free_at_s = max(self._free_at_s, now_s) + num_bytes / self._bytes_per_s
        await asyncio.sleep(self._free_at_s - now_s)


class Fetcher:
    """Brings a release's files into the store's partial directory."""

    def __init__(self, client: FleetClient, store: Store, policy: FetchPolicy) -> None:
        self._client = client
        self._store = store
        self.policy = policy

    async def fetch_manifest(self, digest: str) -> None:
        """A release's manifest, opening its partial directory. Raises as `fetch` does, and `BundleError`."""
        budget, num_wrong = RetryBudget(self.policy), 0
        while True:
            try:
                self._store.begin(digest, await self._client.manifest(digest))
            except TransientError as error:
                await budget.spend(error)
            except BundleError:
                num_wrong += 1
                if num_wrong >= self.policy.max_wrong:
                    raise
            else:
                return

    async def fetch(self, digest: str, manifest: Manifest, pace: Pace, on_bytes: OnBytes) -> None:
        """All files that are missing; raises `TransientError` when the budget is spent, else `FinalError`."""
        budget = RetryBudget(self.policy)
        for entry in self._store.missing_files(digest, manifest):
            if self._store.reuse_file(digest, entry):
                on_bytes(entry.size_bytes)
                continue
            await self._file(digest, entry, _Transfer(budget, pace, on_bytes))

    async def _file(self, digest: str, entry: FileEntry, transfer: _Transfer) -> None:
        """One file, tried again until it is whole, wrong too often, or the budget is spent."""
        incoming, num_wrong = self._store.incoming(digest, entry), 0
        while True:
            try:
                sha256 = await self._attempt(incoming, entry, transfer)
            except TransientError as error:
                await transfer.budget.spend(error)
                continue
            if sha256 == entry.sha256:
                self._store.finish_file(digest, entry)
                return
            num_wrong += 1
            log.warning("fetch.wrong_digest", path=entry.path, expected=entry.sha256, got=sha256, times=num_wrong)
            transfer.on_bytes(-incoming.stat().st_size)
            incoming.unlink()
            if num_wrong >= self.policy.max_wrong:
                raise DamagedError(
                    f"{entry.path} came {num_wrong} times with another SHA-256 than the manifest lists: "
                    "look at the server's storage and at proxies in between, or publish the release again",
                    evidence={"path": entry.path, "expected": entry.sha256, "got": sha256},
                )

    async def _attempt(self, incoming: Path, entry: FileEntry, transfer: _Transfer) -> str:
        """One request for what is missing; returns the SHA-256 of the whole file."""
        start, sha256 = await asyncio.to_thread(_resume_point, incoming, entry.size_bytes)
        if start == entry.size_bytes:
            return sha256.hexdigest()
        try:
            async with (
                asyncio.timeout(self.policy.grace_s + (entry.size_bytes - start) / self.policy.min_bytes_per_s),
                self._client.file(entry.sha256, start=start, size_bytes=entry.size_bytes) as stream,
            ):
                if stream.start != start:
                    sha256 = hashlib.sha256()
                    transfer.on_bytes(-start)
                return await self._receive(stream, incoming, entry, sha256, transfer)
        except TimeoutError as error:
            raise UnavailableError(f"{entry.path} comes in too slowly", code=TOO_SLOW) from error

    async def _receive(
        self, stream: FileStream, incoming: Path, entry: FileEntry, sha256: Hash, transfer: _Transfer
    ) -> str:
        """Write what comes, at most the file's size: a server may send without end. Raises if it stops early."""
        num_bytes = stream.start
        with incoming.open("ab" if stream.start else "wb") as file:
            async for data in stream.chunks:
                chunk = data[: entry.size_bytes - num_bytes]
                await transfer.pace.take(len(chunk))
                await asyncio.to_thread(file.write, chunk)
                sha256.update(chunk)
                num_bytes += len(chunk)
                transfer.on_bytes(len(chunk))
                transfer.budget.refill()
                if num_bytes == entry.size_bytes:
                    break
        if num_bytes < entry.size_bytes:
            raise UnavailableError(f"{entry.path} ended after {num_bytes} of {entry.size_bytes} bytes", code="cut_off")
        return sha256.hexdigest()


@dataclass(frozen=True, slots=True)
class _Transfer:
    """What all requests of one release share."""

    budget: RetryBudget
    pace: Pace
    on_bytes: OnBytes


def _resume_point(incoming: Path, size_bytes: int) -> tuple[int, Hash]:
    """How much of the file is here already, and the hash of it. What is too long can't be ours."""
    sha256 = hashlib.sha256()
    if not incoming.is_file():
        return 0, sha256
    if incoming.stat().st_size > size_bytes:
        incoming.unlink()
        return 0, sha256
    with incoming.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            sha256.update(piece)
    return incoming.stat().st_size, sha256
