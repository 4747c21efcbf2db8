"""What a bad network and a bad server can do to a download, as a table."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from edge_agent.client import FleetClient
from edge_agent.errors import AgentError, DamagedError, RefusedError, UnavailableError, UnreachableError
from edge_agent.fetcher import Fetcher, FetchPolicy, Pace
from edge_agent.protocol import EnrolRequest, Hardware, ReleaseRef
from edge_agent.schedule import Backoff
from edge_agent.store import Store
from edge_agent.trust import DeviceKey, Unsigned
from engine.artifact import BaseManifest
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
SIZE_BYTES = 200_000
POLICY = FetchPolicy(backoff=Backoff(0.001, 0.002), max_retries=3, grace_s=5.0)


@dataclass(slots=True)
class Download:
    """One release, and all that is needed to fetch it."""

    fetcher: Fetcher
    store: Store
    release: ReleaseRef
    manifest: BaseManifest
    num_bytes: int = 0

    async def run(self, policy: FetchPolicy = POLICY) -> None:
        self.fetcher.policy = policy
        await self.fetcher.fetch(self.release.digest, self.manifest, Pace(None), self.count)

    def count(self, num_bytes: int) -> None:
        self.num_bytes += num_bytes

    @property
    def weights(self) -> str:
        return next(e.sha256 for e in self.manifest.files if e.size_bytes == SIZE_BYTES)

    @property
    def part(self) -> Path:
        return self.store.incoming(
            self.release.digest, next(e for e in self.manifest.files if e.size_bytes == SIZE_BYTES)
        )


@pytest.fixture
async def download(fleet, catalogue, tmp_path: Path) -> AsyncIterator[Download]:
    release = catalogue.base(size_bytes=SIZE_BYTES)
    key, store = DeviceKey.open_or_make(tmp_path / "key"), Store(tmp_path / "state")
    async with httpx2.AsyncClient(timeout=2.0, trust_env=False) as http:
        hello = EnrolRequest("good-token", "x", key.public_base64(), "0", Hardware("x", 1, 1))
        enrolled = await FleetClient(fleet.url, Unsigned(), http).enrol(hello)
        client = FleetClient(fleet.url, key.signer(enrolled.device_id), http)
        manifest = store.begin(release.digest, await client.manifest(release.digest))
        assert isinstance(manifest, BaseManifest)
        yield Download(Fetcher(client, store, POLICY), store, release, manifest)


SURVIVED: dict[str, tuple[list[Fault], list[str | None]]] = {
    "nothing wrong": ([], [None]),
    "cut in the middle": ([Cut(70_000)], [None, "bytes=70000-"]),
    "cut again and again": ([Cut(1000)] * 6, [None, *(f"bytes={1000 * n}-" for n in range(1, 7))]),
    "cut before the first byte": ([Cut(0)], [None, None]),
    "server errors": ([Status(500), Status(502), Status(503)], [None] * 4),
    "too many requests": ([Status(429)], [None, None]),
    "wrong bytes once": ([WrongBytes()], [None, None]),
    "range ignored": ([Cut(1000), NoRange()], [None, "bytes=1000-"]),
    "wrong range, then right": ([Cut(1000), WrongRange()], [None, "bytes=1000-", "bytes=1000-"]),
    "more bytes than the file has": ([Endless()], [None]),
    "slow but steady": ([Slow(0.0001)], [None]),
}


@pytest.mark.parametrize("case", SURVIVED)
async def test_survived(fleet, download: Download, case: str) -> None:
    faults, ranges = SURVIVED[case]
    path = f"/files/{download.weights}"
    fleet.order(path, *faults)
    await download.run()
    download.store.complete(download.release.digest)
    assert [asked for method, p, asked in fleet.requests if p == path] == ranges
    assert download.num_bytes == SIZE_BYTES + 2


GIVEN_UP: dict[str, tuple[list[Fault], type[AgentError], str, int]] = {
    "not found is final": ([Status(404, "not_found")], RefusedError, "not_found", 1),
    "gone is final": ([Status(410, "gone")], RefusedError, "gone", 1),
    "forbidden is final": ([Status(403, "not_desired")], RefusedError, "not_desired", 1),
    "down for longer than the budget": ([Status(503, "down")] * 9, UnavailableError, "down", 4),
    "cut at once, again and again": ([Cut(0)] * 9, UnreachableError, "server_unreachable", 4),
    "wrong bytes twice": ([WrongBytes()] * 2, DamagedError, "digest_mismatch", 2),
    "wrong ranges for ever": ([Cut(10), *[WrongRange()] * 9], UnavailableError, "wrong_range", 4),
}


@pytest.mark.parametrize("case", GIVEN_UP)
async def test_given_up(fleet, download: Download, case: str) -> None:
    faults, error, code, num_requests = GIVEN_UP[case]
    path = f"/files/{download.weights}"
    fleet.order(path, *faults)
    with pytest.raises(error) as caught:
        await download.run()
    assert caught.value.code == code
    assert fleet.count("GET", path) == num_requests
    assert not download.store.holds(download.release.digest)


async def test_a_next_attempt_goes_on_where_the_last_one_ended(fleet, download: Download) -> None:
    path = f"/files/{download.weights}"
    fleet.order(path, Cut(50_000), *[Status(503)] * 4)
    with pytest.raises(UnavailableError):
        await download.run()
    await download.run()
    assert fleet.requests[-1] == ("GET", path, "bytes=50000-")


async def test_a_part_that_is_not_ours_is_fetched_anew(fleet, download: Download) -> None:
    download.part.write_bytes(b"x" * 1000)
    await download.run()
    download.store.complete(download.release.digest)
    ranges = [asked for _, path, asked in fleet.requests if path == f"/files/{download.weights}"]
    assert ranges == ["bytes=1000-", None]


async def test_a_part_that_is_too_long_is_thrown_away(fleet, download: Download) -> None:
    download.part.write_bytes(b"x" * (SIZE_BYTES + 1))
    await download.run()
    download.store.complete(download.release.digest)


async def test_retry_after_is_obeyed(fleet, download: Download) -> None:
    fleet.order(f"/files/{download.weights}", Status(503, retry_after="1"))
    started_s = time.monotonic()
    await download.run()
    assert time.monotonic() - started_s >= 1.0


async def test_a_server_that_trickles_is_given_up(fleet, download: Download) -> None:
    fleet.order(f"/files/{download.weights}", *[Slow(0.05)] * 9)
    policy = FetchPolicy(backoff=Backoff(0.001, 0.002), max_retries=1, min_bytes_per_s=10_000_000, grace_s=0.05)
    with pytest.raises(UnavailableError) as caught:
        await download.run(policy)
    assert caught.value.code == "too_slow"


async def test_a_cancel_is_seen_in_the_middle(fleet, download: Download) -> None:
    hold = Hold(threading.Event())
    fleet.order(f"/files/{download.weights}", hold)
    task = asyncio.create_task(download.run())
    await asyncio.to_thread(hold.reached.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    hold.release.set()


async def test_a_bandwidth_limit_takes_its_time() -> None:
    pace, started_s = Pace(1_000_000), time.monotonic()
    for _ in range(5):
        await pace.take(20_000)
    assert time.monotonic() - started_s >= 0.1
