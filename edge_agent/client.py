"""The fleet server as seen from the device, but for the bytes of files, which `file_client` brings.

Takes and gives records of `edge_agent.protocol` and bytes; raises `TransientError` for what may work later and
`RefusedError` for what will not. Doesn't retry, doesn't write.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import httpx2

from edge_agent import protocol
from edge_agent.errors import UnavailableError, UnreachableError
from edge_agent.server_errors import MAX_ANSWER_BYTES, error_of, seconds
from edge_agent.trust import Signer
from engine.artifact import MAX_MANIFEST_BYTES
from engine.chunk_index import MAX_INDEX_BYTES
from engine.strict_json import DecodeError, decode, encode

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DesiredAnswer:
    """What a poll brought, not verified yet. `signed` is None if nothing has changed since `etag`."""

    signed: protocol.SignedDesired | None
    etag: str | None
    poll_after_s: float | None


@dataclass(frozen=True, slots=True)
class Patience:
    """How slow an answer may come: `grace_s` for nothing, and a second more for so many bytes."""

    grace_s: float
    min_bytes_per_s: int


class FleetClient:
    """Calls `/device/v1/` of one server."""

    def __init__(self, server: str, signer: Signer, http: httpx2.AsyncClient) -> None:
        self._base = httpx2.URL(server.rstrip("/") + protocol.API_PREFIX + "/")
        self._signer = signer
        self._http = http

    async def enrol(self, request: protocol.EnrolRequest) -> protocol.EnrolResponse:
        """Trade a one-time token for an identity."""
        _, body = await self._call("POST", "enrol", encode(request))
        return _decoded(protocol.EnrolResponse, body)

    async def rotate_key(self, rotation: protocol.KeyRotation) -> None:
        """Say which key the device uses from now on."""
        await self._call("POST", "key", encode(rotation))

    async def desired(self, etag: str | None) -> DesiredAnswer:
        """Poll the desired state."""
        headers = {"If-None-Match": etag} if etag else {}
        answer, body = await self._call("GET", "desired", headers=headers)
        poll_after_s = seconds(answer.headers.get(protocol.HEADER_POLL_AFTER))
        if answer.status_code == 304:
            return DesiredAnswer(None, etag, poll_after_s)
        return DesiredAnswer(_decoded(protocol.SignedDesired, body), answer.headers.get("ETag"), poll_after_s)

    async def manifest(self, digest: str) -> bytes:
        """The manifest of a release, not verified yet."""
        _, body = await self._call("GET", f"releases/{digest}", limit_bytes=MAX_MANIFEST_BYTES)
        return body

    async def index(self, digest: str) -> bytes:
        """The chunk index of a release, not verified yet."""
        _, body = await self._call("GET", f"releases/{digest}/index", limit_bytes=MAX_INDEX_BYTES)
        return body

    @property
    def metadata_url(self) -> str:
        """Where the TUF metadata lies."""
        return str(self._base.join("trust/metadata/"))

    @property
    def targets_url(self) -> str:
        """Where the TUF targets lie."""
        return str(self._base.join("trust/targets/"))

    async def small_file(self, url: str, *, limit_bytes: int, patience: Patience) -> bytes:
        """A file of at most so many bytes, not verified yet; codes `endless_data` and `slow_retrieval` say what hurt.

        Taken as it travels: what a server packs is not unpacked here.
        """
        headers, body = {"Accept-Encoding": "identity"}, bytearray()
        try:
            async with asyncio.timeout(patience.grace_s) as limit, self._answer("GET", url, b"", headers) as answer:
                async for chunk in answer.aiter_raw():
                    body += chunk
                    if len(body) > limit_bytes:
                        raise UnavailableError(f"{url} is longer than {limit_bytes} bytes", code="endless_data")
                    limit.reschedule((limit.when() or 0.0) + len(chunk) / patience.min_bytes_per_s)
        except TimeoutError as error:
            raise UnavailableError(f"{url} comes in too slowly", code="slow_retrieval") from error
        return bytes(body)

    async def report(self, report: protocol.DeviceReport) -> None:
        """Say what the device has."""
        await self._call("POST", "report", encode(report))

    async def telemetry(self, gzipped: bytes) -> None:
        """Hand over an encoded and gzipped `TelemetryBatch`."""
        await self._call("POST", "telemetry", gzipped, headers={"Content-Encoding": "gzip"})

    async def _call(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        limit_bytes: int = MAX_ANSWER_BYTES,
    ) -> tuple[httpx2.Response, bytes]:
        typed = {"Content-Type": "application/json", **(headers or {})} if body else dict(headers or {})
        async with self._answer(method, path, body, typed) as answer:
            return answer, await _read_at_most(answer, limit_bytes)

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str]
    ) -> AsyncIterator[httpx2.Response]:
        """A signed request's answer, its body still to come; raises for everything but 2xx and 304."""
        url = self._base.join(path)
        signature = self._signer.headers(method, url.raw_path.decode(), body)
        request = self._http.build_request(method, url, content=body or None, headers={**headers, **signature})
        try:
            answer = await self._http.send(request, stream=True)
            try:
                if not (answer.is_success or answer.status_code == 304):
                    body = await _read_at_most(answer, MAX_ANSWER_BYTES)
                    raise error_of(answer.status_code, answer.headers, body, self._signer)
                yield answer
            finally:
                await answer.aclose()
        except httpx2.HTTPError as error:
            raise UnreachableError(
                f"{self._base.host} did not answer {method} {path} ({type(error).__name__}: {error}): "
                "look at the network and at the server"
            ) from error


async def _read_at_most(answer: httpx2.Response, limit_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in answer.aiter_bytes():
        body += chunk
        if len(body) > limit_bytes:
            raise UnavailableError(f"the server's answer is longer than {limit_bytes} bytes", code="bad_answer")
    return bytes(body)


def _decoded(cls: type[T], body: bytes) -> T:
    """A record from an answer. What we can't read today may be mended on the server, so it is no final error."""
    try:
        return decode(cls, body)
    except DecodeError as error:
        raise UnavailableError(
            f"the server's {cls.__name__} can't be read ({error}): update the agent or mend the server",
            code="bad_answer",
        ) from error
