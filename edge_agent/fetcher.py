"""Fetches a release: manifest, index, and those chunks of its files that are nowhere on the device yet.

Knows the order of things and when to try again. Where files lie is `store`'s matter, URLs are the clients', waiting is
`patience`'s, one request for a file is `download`'s, and what becomes of its bytes is `landing`'s.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import structlog

from edge_agent.client import FleetClient
from edge_agent.download import Download
from edge_agent.errors import DamagedError, TransientError, disk_error
from edge_agent.file_client import FileClient
from edge_agent.gate import Gate
from edge_agent.landing import Landing, OnBytes, runs
from edge_agent.part_file import PartFile, Source
from edge_agent.patience import FetchPolicy, Floor, Pace, RetryBudget
from edge_agent.store import Store
from engine.artifact import Manifest
from engine.chunk_index import ChunkIndex, IndexedFile, PlacedChunk
from engine.errors import BundleError

log = structlog.get_logger()

T = TypeVar("T")


class Fetcher:
    """Brings a release's files into the store's partial directory."""

    def __init__(
        self, client: FleetClient, files: FileClient, store: Store, policy: FetchPolicy, gate: Gate | None = None
    ) -> None:
        """Without a gate, downloads run at any time."""
        self.gate = gate or Gate()
        self._client = client
        self._files = files
        self._store = store
        self.policy = policy

    async def fetch_manifest(self, digest: str) -> None:
        """A release's manifest, opening its partial directory. Raises as `fetch` does, and `BundleError`."""
        await self._persistently(
            lambda: self._client.manifest(digest), lambda manifest: self._store.begin(digest, manifest)
        )

    async def fetch_index(self, digest: str, manifest: Manifest, sha256: str | None = None) -> ChunkIndex:
        """A release's chunk index, kept beside its manifest. Raises as `fetch` does, and `BundleError`.

        `sha256`: of the index that its publisher has signed; None takes any that fits the manifest.
        """
        return await self._persistently(
            lambda: self._client.index(digest), lambda data: self._store.keep_index(digest, manifest, data, sha256)
        )

    async def fetch(
        self, digest: str, manifest: Manifest, pace: Pace, on_bytes: OnBytes, *, index_sha256: str | None = None
    ) -> None:
        """All files that are missing; `on_bytes` hears of bytes that are here and verified, however they came.

        `index_sha256` as in `fetch_index`.

        Raises `TransientError` when the budget is spent or the disk is full, else `FinalError`.
        """
        missing = []
        for entry in self._store.missing_files(digest, manifest):
            if await asyncio.to_thread(self._store.reuse_file, digest, entry):
                on_bytes(entry.size_bytes)
            else:
                missing.append(entry.path)
        if not missing:
            return
        index = self._store.index(digest, manifest) or await self.fetch_index(digest, manifest, index_sha256)
        files = [file for file in index.files if file.path in missing]
        wanted = {chunk.sha256 for file in files for chunk in file.chunks}
        transfer = _Transfer(RetryBudget(self.policy), pace, on_bytes)
        try:
            transfer.sources = await asyncio.to_thread(self._store.chunk_sources, digest, wanted)
            for file in files:
                await self._file(digest, file, transfer)
        except OSError as error:
            raise disk_error(error) from error

    async def _persistently(self, get: Callable[[], Awaitable[bytes]], keep: Callable[[bytes], T]) -> T:
        """Get something small and keep it; tried again while the budget lasts, and once more if it is wrong."""
        budget, num_wrong = RetryBudget(self.policy), 0
        while True:
            try:
                return keep(await get())
            except TransientError as error:
                await budget.spend(error)
            except BundleError:
                num_wrong += 1
                if num_wrong >= self.policy.max_wrong:
                    raise

    async def _file(self, digest: str, file: IndexedFile, transfer: _Transfer) -> None:
        """One file: what is here, what is elsewhere on the disk, then what must come."""
        with await asyncio.to_thread(self._store.open_part, digest, file) as part:
            missing = await asyncio.to_thread(part.missing)
            if not missing and not part.is_new and not await asyncio.to_thread(part.is_right):
                part.path.unlink()
                raise DamagedError(
                    f"all chunks of {file.path} are as its index lists them, yet the file is not as its manifest lists "
                    "it: the index is wrong, publish the release again",
                    code="bad_index",
                    evidence={"path": file.path, "expected": file.sha256},
                )
            missing = await asyncio.to_thread(part.copy, missing, transfer.sources)
            transfer.on_bytes(file.size_bytes - sum(place.chunk.size_bytes for place in missing))
            while missing:
                missing = await self._round(part, file, missing, transfer)
            await asyncio.to_thread(self._store.finish_file, part)

    async def _round(
        self, part: PartFile, file: IndexedFile, missing: Sequence[PlacedChunk], transfer: _Transfer
    ) -> list[PlacedChunk]:
        """Fetch each missing chunk once; returns those whose bytes were wrong, unless one was that too often."""
        wrong: list[PlacedChunk] = []
        loop = asyncio.get_running_loop()
        for run in runs(missing):
            landing = Landing(part, run, lambda n: loop.call_soon_threadsafe(transfer.on_bytes, n))
            while landing.start < landing.stop:
                await self.gate.wait()
                await self._attempt(file, landing, transfer)
            wrong += landing.wrong
        for place in wrong:
            transfer.num_wrong[place.chunk.sha256] += 1
            log.warning("fetch.wrong_chunk", path=file.path, offset=place.offset, expected=place.chunk.sha256)
            if transfer.num_wrong[place.chunk.sha256] >= self.policy.max_wrong:
                raise _damaged(file, place, transfer.num_wrong[place.chunk.sha256])
        return wrong

    async def _attempt(self, file: IndexedFile, landing: Landing, transfer: _Transfer) -> None:
        """One request for what a run still lacks, and the wait that is due if it has failed."""
        start = landing.start
        try:
            await Download(self._files, file, landing, transfer.pace, Floor(self.policy, file.path), self.gate).run()
        except TransientError as error:
            if landing.start > start:
                transfer.budget.refill()
            await transfer.budget.spend(error)


@dataclass(slots=True)
class _Transfer:
    """What all requests of one release share."""

    budget: RetryBudget
    pace: Pace
    on_bytes: OnBytes
    sources: Mapping[str, Sequence[Source]] = field(default_factory=dict)
    num_wrong: Counter[str] = field(default_factory=Counter)


def _damaged(file: IndexedFile, place: PlacedChunk, num_times: int) -> DamagedError:
    return DamagedError(
        f"the {place.chunk.size_bytes} bytes at {place.offset} of {file.path} came {num_times} times with another "
        "SHA-256 than the index lists: look at the server's storage and at proxies in between, or publish again",
        evidence={"path": file.path, "offset": str(place.offset), "expected": place.chunk.sha256},
    )
