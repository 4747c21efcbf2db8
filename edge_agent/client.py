"""The fleet server as seen from the device: the only place that knows URLs and status codes.

Takes and gives records of `edge_agent.protocol` and bytes; raises `TransientError` for what may work later and
`RefusedError` for what will not. Doesn't retry, doesn't write.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import httpcore2
import httpx2

from edge_agent import protocol
from edge_agent.errors import AgentError, RefusedError, UnavailableError, UnreachableError
from edge_agent.trust import Signer
from engine.artifact import MAX_MANIFEST_BYTES
from engine.chunk_index import MAX_INDEX_BYTES
from engine.strict_json import DecodeError, decode, encode

# Each piece that is read passes some ten layers of calls: with 64 KiB, the library's choice, a download takes twice the
# processor time.
httpcore2.AsyncHTTP11Connection.READ_NUM_BYTES = 256 << 10

T = TypeVar("T")

_TRY_LATER = frozenset({408, 425, 429})
_MAX_ANSWER_BYTES = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class DesiredAnswer:
    """What a poll brought, not verified yet. `signed` is None if nothing has changed since `etag`."""

    signed: protocol.SignedDesired | None
    etag: str | None
    poll_after_s: float | None


@dataclass(frozen=True, slots=True)
class FileStream:
    """Bytes of a file from `start` on, as the server chose to send them; 0 where it ignored the range."""

    start: int
    chunks: AsyncIterator[bytes]


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
        poll_after_s = _seconds(answer.headers.get(protocol.HEADER_POLL_AFTER))
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

    @asynccontextmanager
    async def file(self, sha256: str, *, start: int, stop: int, size_bytes: int) -> AsyncIterator[FileStream]:
        """Bytes `start` to before `stop` of a file or object that has `size_bytes` in all."""
        headers = {"Accept-Encoding": "identity"}
        if (start, stop) != (0, size_bytes):
            headers["Range"] = f"bytes={start}-{stop - 1}"
        async with self._answer("GET", f"files/{sha256}", b"", headers) as answer:
            yield FileStream(_start_of(answer, start, stop, size_bytes), _chunks(answer))

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
        limit_bytes: int = _MAX_ANSWER_BYTES,
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
                    raise self._error_of(answer, await _read_at_most(answer, _MAX_ANSWER_BYTES))
                yield answer
            finally:
                await answer.aclose()
        except httpx2.HTTPError as error:
            raise UnreachableError(
                f"{self._base.host} did not answer {method} {path} ({type(error).__name__}: {error}): "
                "look at the network and at the server"
            ) from error

    def _error_of(self, answer: httpx2.Response, body: bytes) -> AgentError:
        """As `_error_of`; a device whose clock is wrong sets it by the server's and may try again."""
        error = _error_of(answer, body)
        server_now = _http_date(answer.headers.get("Date"))
        if error.code == "clock_skew" and server_now:
            self._signer.set_clock(server_now.timestamp())
            return UnavailableError(str(error), code=error.code)
        return error


async def _chunks(answer: httpx2.Response) -> AsyncIterator[bytes]:
    async for chunk in answer.aiter_raw():
        yield chunk


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


def _start_of(answer: httpx2.Response, start: int, stop: int, size_bytes: int) -> int:
    """Where the bytes of the answer begin; raises `UnavailableError` for a range that was not asked for."""
    if answer.status_code == 200:
        return 0
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if answer.status_code != 206 or not found or tuple(map(int, found.groups())) != (start, stop - 1, size_bytes):
        raise UnavailableError(
            f"bytes {start}-{stop - 1}/{size_bytes} were asked for, the server answered {answer.status_code} "
            f"with {answer.headers.get('Content-Range', 'no range')!r:.80}",
            code="wrong_range",
        )
    return start


def _error_of(answer: httpx2.Response, body: bytes) -> UnavailableError | RefusedError:
    """The error that a status code and a problem document stand for."""
    problem = _problem(body)
    code = str(problem.get("code") or f"http_{answer.status_code}")
    detail = str(problem.get("detail") or problem.get("title") or f"the server answered {answer.status_code}")[:500]
    if answer.status_code >= 500 or answer.status_code in _TRY_LATER:
        return UnavailableError(detail, code=code, retry_after_s=_retry_after_s(answer.headers.get("Retry-After")))
    return RefusedError(detail, status=answer.status_code, code=code)


def _problem(body: bytes) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        problem = json.loads(body)
        if isinstance(problem, dict):
            return problem
    return {}


def _retry_after_s(value: str | None) -> float | None:
    """Seconds from a Retry-After header in either of its forms."""
    if (seconds := _seconds(value)) is not None:
        return seconds
    at = _http_date(value)
    return max(0.0, (at - datetime.now(UTC)).total_seconds()) if at else None


def _http_date(value: str | None) -> datetime | None:
    with suppress(TypeError, ValueError):
        return email.utils.parsedate_to_datetime(value or "").replace(tzinfo=UTC)  # HTTP's dates are all in GMT
    return None


def _seconds(value: str | None) -> float | None:
    return float(value) if value and re.fullmatch(r"\d{1,9}(\.\d{1,6})?", value) else None
