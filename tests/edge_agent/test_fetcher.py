"""What a bad network and a bad server can do to a download, as a table."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from edge_agent.client import FleetClient
from edge_agent.errors import (
    AgentError,
    DamagedError,
    DiskFullError,
    RefusedError,
    UnavailableError,
    UnreachableError,
)
from edge_agent.fetcher import Fetcher
from edge_agent.file_client import FileClient
from edge_agent.gate import Gate
from edge_agent.part_file import Pieces
from edge_agent.patience import FetchPolicy, Pace
from edge_agent.protocol import EnrolRequest, Hardware, ReleaseRef
from edge_agent.schedule import Backoff
from edge_agent.store import Store
from edge_agent.trust import DeviceKey, Unsigned
from engine.artifact import BASE_WEIGHTS, Manifest
from engine.chunk_index import IndexedFile, IndexMismatchError
from tests.simulators.bundles import payload
from tests.simulators.fleet_server import (
    Cut,
    Endless,
    Fault,
    Hold,
    NoRange,
    Slow,
    Status,
    WrongBytes,
    WrongRange,
)

pytestmark = pytest.mark.anyio
CHUNK = 64 << 10
NUM_CHUNKS = 5
POLICY = FetchPolicy(backoff=Backoff(0.001, 0.002), max_retries=3, grace_s=5.0)


def tensors(tag: str = "weights", **changed: bytes) -> dict[str, bytes]:
    """Tensors that are a chunk each, the first one with the file's header before it."""
    return {f"t{n}": payload(f"{tag} {n}", CHUNK) for n in range(NUM_CHUNKS)} | changed


@dataclass(slots=True)
class Download:
    """One release, and all that is needed to fetch it."""

    fetcher: Fetcher
    client: FleetClient
    store: Store
    release: ReleaseRef
    manifest: Manifest
    num_bytes: int = 0

    async def run(self, policy: FetchPolicy = POLICY) -> None:
        self.fetcher.policy = policy
        await self.fetcher.fetch(self.release.digest, self.manifest, Pace(None), self.count)

    def count(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes

    async def another(self, release: ReleaseRef) -> Download:
        """A release for the same device."""
        manifest = self.store.begin(release.digest, await self.client.manifest(release.digest))
        return Download(self.fetcher, self.client, self.store, release, manifest)

    @property
    def file(self) -> IndexedFile:
        index = self.store.index(self.release.digest, self.manifest)
        return next(file for file in index.files if file.path == BASE_WEIGHTS)

    @property
    def path(self) -> str:
        """Of the weights' requests."""
        return "/files/" + next(e.sha256 for e in self.manifest.files if e.path == BASE_WEIGHTS)

    @property
    def part(self) -> Path:
        return self.store.incoming(self.release.digest, BASE_WEIGHTS)

    def span(self, first: int, last: int | None = None) -> str:
        """The Range header for these chunks."""
        placed = list(self.file.placed())
        return f"bytes={placed[first].stored_offset}-{placed[first if last is None else last].stored_end - 1}"


@pytest.fixture
async def download(fleet, catalogue, tmp_path: Path) -> AsyncIterator[Download]:
    release = catalogue.base(tensors=tensors())
    key, store = DeviceKey.open_or_make(tmp_path / "key"), Store(tmp_path / "state")
    async with httpx2.AsyncClient(timeout=2.0, trust_env=False) as http:
        hello = EnrolRequest("good-token", "x", key.public_base64(), "0", Hardware("x", 1, 1))
        enrolled = await FleetClient(fleet.url, Unsigned(), http).enrol(hello)
        signer = key.signer(enrolled.device_id)
        client, files = FleetClient(fleet.url, signer, http), FileClient(fleet.url, signer, timeout_s=2.0)
        manifest = store.begin(release.digest, await client.manifest(release.digest))
        yield Download(Fetcher(client, files, store, POLICY), client, store, release, manifest)


def ranges(fleet, path: str) -> list[str | None]:
    return [asked for _, p, asked in fleet.requests if p == path]


HEADER = 384
SIZE = HEADER + NUM_CHUNKS * CHUNK
LAST = SIZE - 1
THIRD = HEADER + 2 * CHUNK
"""Where the third chunk begins; the header shares the first one's."""

SURVIVED: dict[str, tuple[list[Fault], list[str | None]]] = {
    "nothing wrong": ([], [None]),
    "cut in the middle": ([Cut(70_000)], [None, f"bytes=70000-{LAST}"]),
    "cut again and again": ([Cut(1000)] * 6, [None, *(f"bytes={1000 * n}-{LAST}" for n in range(1, 7))]),
    "cut before the first byte": ([Cut(0)], [None, None]),
    "server errors": ([Status(500), Status(502), Status(503)], [None] * 4),
    "too many requests": ([Status(429)], [None, None]),
    "one wrong byte": ([WrongBytes(THIRD + 5)], [None, f"bytes={THIRD}-{THIRD + CHUNK - 1}"]),
    "the last byte wrong": ([WrongBytes()], [None, f"bytes={SIZE - CHUNK}-{LAST}"]),
    "range ignored": ([Cut(1000), NoRange()], [None, f"bytes=1000-{LAST}"]),
    "wrong range, then right": ([Cut(1000), WrongRange()], [None, f"bytes=1000-{LAST}", f"bytes=1000-{LAST}"]),
    "more bytes than the file has": ([Endless()], [None]),
    "slow but steady": ([Slow(0.0001)], [None]),
}


@pytest.mark.parametrize("case", SURVIVED)
async def test_survived(fleet, download: Download, case: str) -> None:
    faults, asked = SURVIVED[case]
    fleet.order(download.path, *faults)
    await download.run()
    download.store.complete(download.release.digest)
    assert ranges(fleet, download.path) == asked
    assert download.num_bytes == SIZE + 2


GIVEN_UP: dict[str, tuple[list[Fault], type[AgentError], str, int]] = {
    "not found is final": ([Status(404, "not_found")], RefusedError, "not_found", 1),
    "gone is final": ([Status(410, "gone")], RefusedError, "gone", 1),
    "forbidden is final": ([Status(403, "not_desired")], RefusedError, "not_desired", 1),
    "no such range is final": ([Status(416, "range_not_satisfiable")], RefusedError, "range_not_satisfiable", 1),
    "down for longer than the budget": ([Status(503, "down")] * 9, UnavailableError, "down", 4),
    "cut at once, again and again": ([Cut(0)] * 9, UnreachableError, "server_unreachable", 4),
    "the last byte wrong twice": ([WrongBytes()] * 2, DamagedError, "digest_mismatch", 2),
    "wrong ranges for ever": ([Cut(10), *[WrongRange()] * 9], UnavailableError, "wrong_range", 4),
}


@pytest.mark.parametrize("case", GIVEN_UP)
async def test_given_up(fleet, download: Download, case: str) -> None:
    faults, error, code, num_requests = GIVEN_UP[case]
    fleet.order(download.path, *faults)
    with pytest.raises(error) as caught:
        await download.run()
    assert caught.value.code == code
    assert fleet.count("GET", download.path) == num_requests
    assert not download.store.holds(download.release.digest)


async def test_a_next_attempt_fetches_no_verified_chunk_again(fleet, download: Download) -> None:
    fleet.order(download.path, Cut(THIRD + 100), *[Status(503)] * 4)
    with pytest.raises(UnavailableError):
        await download.run()
    download.num_bytes = 0
    await download.run()
    assert ranges(fleet, download.path)[-1] == f"bytes={THIRD}-{LAST}"
    assert download.num_bytes == SIZE + 2 - 2  # the tokenizer was finished before


async def test_a_part_that_is_not_ours_is_fetched_anew(fleet, download: Download) -> None:
    download.part.write_bytes(b"x" * 1000)
    await download.run()
    download.store.complete(download.release.digest)
    assert ranges(fleet, download.path) == [None]


async def test_a_part_that_is_too_long_is_cut(fleet, download: Download) -> None:
    download.part.write_bytes(b"x" * (SIZE + 1))
    await download.run()
    download.store.complete(download.release.digest)


async def test_rot_on_the_disk_costs_one_chunk(fleet, download: Download) -> None:
    await download.run()
    digest = download.release.digest
    download.store.complete(digest)
    rot(download.store.bundle(digest) / BASE_WEIGHTS, THIRD + 7)
    assert download.store.drop_damaged([digest]) == [digest]
    await download.run()
    download.store.complete(digest)
    assert ranges(fleet, download.path)[1:] == [f"bytes={THIRD}-{THIRD + CHUNK - 1}"]


def rot(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


async def test_only_changed_tensors_of_a_new_base_come(fleet, catalogue, download: Download) -> None:
    await download.run()
    download.store.complete(download.release.digest)
    new = await download.another(catalogue.base("new", tensors=tensors(t3=payload("changed", CHUNK))))
    await new.run()
    new.store.complete(new.release.digest)
    assert ranges(fleet, new.path) == [new.span(3)]
    assert new.num_bytes == SIZE + 2


async def test_a_damaged_source_is_not_copied(fleet, catalogue, download: Download) -> None:
    await download.run()
    download.store.complete(download.release.digest)
    rot(download.store.bundle(download.release.digest) / BASE_WEIGHTS, THIRD)
    new = await download.another(catalogue.base("new", tensors=tensors(t4=payload("changed", CHUNK))))
    await new.run()
    new.store.complete(new.release.digest)
    assert ranges(fleet, new.path) == [new.span(2), new.span(4)]


async def test_an_interrupted_attempt_at_another_release_is_a_source(fleet, catalogue, download: Download) -> None:
    fleet.order(download.path, Cut(THIRD), *[Status(503)] * 4)
    with pytest.raises(UnavailableError):
        await download.run()
    new = await download.another(catalogue.base("new", tensors=tensors(t4=payload("changed", CHUNK))))
    await new.run()
    assert ranges(fleet, new.path) == [new.span(2, 4)]


async def test_what_shrinks_travels_packed(fleet, catalogue, download: Download) -> None:
    words = b"packs well " * 6000
    new = await download.another(catalogue.base("new", tensors=tensors("new", t1=words[:CHUNK], t2=words[-CHUNK:])))
    await new.run()
    new.store.complete(new.release.digest)
    assert new.file.object_bytes < 0.7 * new.file.size_bytes
    assert fleet.count("GET", f"/files/{new.file.object_sha256}") == 1


async def test_a_wrong_byte_in_a_packed_chunk_costs_that_chunk(fleet, catalogue, download: Download) -> None:
    words = b"packs well " * 6000
    new = await download.another(catalogue.base("new", tensors=tensors("new", t1=words[:CHUNK])))
    fleet.order("/files/", WrongBytes())  # for the tokenizer
    await new.fetcher.fetch_index(new.release.digest, new.manifest)
    packed = next(p for p in new.file.placed() if p.chunk.packed_bytes)
    fleet.order(f"/files/{new.file.object_sha256}", WrongBytes(packed.stored_offset + 9))
    await new.run()
    new.store.complete(new.release.digest)
    assert ranges(fleet, f"/files/{new.file.object_sha256}") == [None, new.span(1)]


async def test_an_index_of_no_sense_is_fetched_once_more_then_refused(fleet, download: Download) -> None:
    fleet.spoil_index(download.release, lambda document: document["files"].pop())
    with pytest.raises(IndexMismatchError, match="other files"):
        await download.run()
    assert fleet.count("GET", f"/releases/{download.release.digest}/index") == 2


async def test_an_index_that_lists_wrong_chunks_is_named(fleet, download: Download) -> None:
    """Every chunk comes as the index says, so that only the manifest can tell."""
    sha256 = download.path.removeprefix("/files/")
    fleet.spoil_file(sha256, THIRD)
    spoilt = bytes(fleet._files[sha256][THIRD : THIRD + CHUNK])

    def lie(document: dict[str, Any]) -> None:
        document["files"][1]["chunks"][2]["sha256"] = hashlib.sha256(spoilt).hexdigest()

    fleet.spoil_index(download.release, lie)
    await download.run()
    with pytest.raises(Exception, match="SHA-256"):
        download.store.complete(download.release.digest)
    assert not download.store.holds(download.release.digest)
    with pytest.raises(DamagedError) as caught:
        await download.run()
    assert caught.value.code == "bad_index"


class FullDisk:
    """Takes so many writes and no more, until it has room."""

    def __init__(self, num_writes: int) -> None:
        self.num_writes = num_writes
        self.has_room = False

    def __call__(self, descriptor: int, pieces: Pieces, offset: int) -> int:
        if self.num_writes == 0 and not self.has_room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.num_writes -= 1
        return os.pwritev(descriptor, pieces, offset)


@pytest.mark.parametrize("num_writes", range(1 + NUM_CHUNKS))
async def test_a_disk_that_is_full_at_any_write_is_named_and_costs_nothing(
    fleet, download: Download, tmp_path: Path, num_writes: int
) -> None:
    disk = FullDisk(num_writes)
    download.fetcher._store = download.store = Store(tmp_path / "state", disk)
    with pytest.raises(DiskFullError) as caught:
        await download.run()
    assert caught.value.code == "disk_full"
    disk.has_room = True
    await download.run()
    download.store.complete(download.release.digest)
    first_missing = max(0, num_writes - 1)  # the tokenizer was the first write
    asked = ranges(fleet, download.path)
    assert asked[-1] == (download.span(first_missing, NUM_CHUNKS - 1) if first_missing else None)


async def test_a_pause_ends_the_request_and_a_resumption_goes_on(fleet, download: Download, tmp_path: Path) -> None:
    pause = tmp_path / "paused"
    download.fetcher.gate = Gate(paused=pause, look_again_s=0.01)
    fleet.order(download.path, Slow(0.05, piece_bytes=16 << 10))
    task = asyncio.create_task(download.run())
    while download.num_bytes < 2 * CHUNK:  # noqa: ASYNC110 - a download tells nobody
        await asyncio.sleep(0.01)
    pause.touch()
    await asyncio.sleep(0.3)
    assert not task.done()
    assert len(ranges(fleet, download.path)) == 1
    pause.unlink()
    await task
    download.store.complete(download.release.digest)
    first, second = ranges(fleet, download.path)
    assert first is None
    assert int(second.removeprefix("bytes=").split("-")[0]) >= 2 * CHUNK


async def test_retry_after_is_obeyed(fleet, download: Download) -> None:
    fleet.order(download.path, Status(503, retry_after="1"))
    started_s = time.monotonic()
    await download.run()
    assert time.monotonic() - started_s >= 1.0


async def test_a_server_that_trickles_is_given_up(fleet, download: Download) -> None:
    fleet.order(download.path, *[Slow(0.05)] * 9)
    policy = FetchPolicy(backoff=Backoff(0.001, 0.002), max_retries=1, min_bytes_per_s=10_000_000, grace_s=0.05)
    with pytest.raises(UnavailableError) as caught:
        await download.run(policy)
    assert caught.value.code == "too_slow"


async def test_a_cancel_is_seen_in_the_middle(fleet, download: Download) -> None:
    hold = Hold(threading.Event())
    fleet.order(download.path, hold)
    task = asyncio.create_task(download.run())
    await asyncio.to_thread(hold.reached.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    hold.release.set()


async def test_a_bandwidth_limit_takes_its_time(download: Download) -> None:
    started_s = time.monotonic()
    await download.fetcher.fetch(download.release.digest, download.manifest, Pace(1_000_000), download.count)
    assert time.monotonic() - started_s >= SIZE / 1_000_000
