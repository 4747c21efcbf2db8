"""Bytes of files from the fleet server. Blocks: to be called in a thread.

Payload stays out of the event loop: there each byte is copied three times on its way through the HTTP library's buffers
and handed from thread to thread, which takes three times the processor time (1.5 s instead of 0.5 s for 257 MiB, hashed
and written).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

import httpx2
import urllib3
from urllib3.exceptions import HTTPError, ReadTimeoutError

from edge_agent import protocol
from edge_agent.errors import UnavailableError, UnreachableError
from edge_agent.server_errors import MAX_ANSWER_BYTES, error_of
from edge_agent.trust import Signer

_READ_BYTES: Final = 256 << 10
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class FileStream:
    """Bytes of a file from `start` on, as the server chose to send them; 0 where it ignored the range."""

    start: int
    _answer: urllib3.BaseHTTPResponse

    def read(self) -> bytes:
        """The bytes that have come, b"" after the last one.

        Raises `TimeoutError` when none come for as long as the client waits, and `UnreachableError`.
        """
        try:
            return self._answer.read1(_READ_BYTES, decode_content=False)
        except ReadTimeoutError as error:
            raise TimeoutError from error
        except HTTPError as error:
            raise UnreachableError(f"the server's answer was cut off ({error}): look at the network") from error

    def interrupt(self) -> None:
        """End a `read` that waits in another thread."""
        with suppress(OSError, ValueError, RuntimeError):  # it has ended by itself meanwhile
            self._answer.shutdown()


class FileClient:
    """Calls `files` of one server; threads may share it."""

    def __init__(self, server: str, signer: Signer, *, timeout_s: float, proxy: str | None = None) -> None:
        """`timeout_s`: how long to wait for a connection, and for the next byte."""
        self._files = httpx2.URL(server.rstrip("/") + protocol.API_PREFIX + "/files/")
        self._signer = signer
        self._pool = _pool(timeout_s, proxy)

    @contextmanager
    def open(self, sha256: str, *, start: int, stop: int, size_bytes: int) -> Iterator[FileStream]:
        """Ask for bytes `start` to before `stop` of a file or object that has `size_bytes` in all.

        Raises `TransientError` and `RefusedError`, and `UnavailableError` for a range that was not asked for.
        """
        url = self._files.join(sha256)
        headers = {"Accept-Encoding": "identity", **self._signer.headers("GET", url.raw_path.decode(), b"")}
        if (start, stop) != (0, size_bytes):
            headers["Range"] = f"bytes={start}-{stop - 1}"
        answer = self._get(str(url), headers)
        try:
            yield FileStream(_start_of(answer, start, stop, size_bytes), answer)
        finally:
            answer.close()

    def _get(self, url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
        try:
            answer = self._pool.request(
                "GET", url, headers=headers, preload_content=False, redirect=False, retries=False
            )
            if answer.status in (200, 206):
                return answer
            with answer:
                body = answer.read(MAX_ANSWER_BYTES, decode_content=False)
        except HTTPError as error:
            raise UnreachableError(
                f"{self._files.host} did not answer GET {url} ({type(error).__name__}: {error}): "
                "look at the network and at the server"
            ) from error
        raise error_of(answer.status, answer.headers, body, self._signer)


def _pool(timeout_s: float, proxy: str | None) -> urllib3.PoolManager:
    # The environment is not read: whom a device talks through is a setting like any other.
    trusted = httpx2.create_ssl_context(trust_env=False)
    if proxy is None:
        return urllib3.PoolManager(timeout=timeout_s, ssl_context=trusted)
    its_user = urllib3.util.parse_url(proxy).auth
    headers = urllib3.make_headers(proxy_basic_auth=its_user) if its_user else None
    return urllib3.ProxyManager(
        proxy, proxy_headers=headers, proxy_ssl_context=trusted, timeout=timeout_s, ssl_context=trusted
    )


def _start_of(answer: urllib3.BaseHTTPResponse, start: int, stop: int, size_bytes: int) -> int:
    """Where the bytes of the answer begin; raises `UnavailableError` for a range that was not asked for."""
    if answer.status == 200:
        return 0
    given = answer.headers.get("Content-Range", "")
    found = _CONTENT_RANGE.fullmatch(given)
    if not found or tuple(map(int, found.groups())) != (start, stop - 1, size_bytes):
        raise UnavailableError(
            f"bytes {start}-{stop - 1}/{size_bytes} were asked for, the server answered {answer.status} "
            f"with {given or 'no range'!r:.80}",
            code="wrong_range",
        )
    return start
