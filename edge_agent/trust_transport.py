"""How TUF metadata comes in: the TUF library's fetcher interface over our own client, with its limits and signatures.

The library is synchronous and runs in a thread; each download is done by the agent's event loop. Verifies nothing.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

from edge_agent.client import FleetClient, Patience
from edge_agent.errors import AgentError, RefusedError

MAX_BYTES = 5_000_000
"""Nothing that TUF downloads is larger."""


class AgentDownloadError(DownloadError):
    """A download failed; `cause` says how, in the agent's own terms."""

    def __init__(self, cause: AgentError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class ClientFetcher(FetcherInterface):
    """Downloads by a `FleetClient`. Make it inside the event loop, use it outside."""

    def __init__(self, client: FleetClient, patience: Patience) -> None:
        self._client = client
        self._patience = patience
        self._loop = asyncio.get_running_loop()

    @contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        """The file, never more than `max_length` of it; raises `DownloadError`s of the library."""
        yield io.BytesIO(self._get(url, max_length))

    def _fetch(self, url: str) -> Iterator[bytes]:
        yield self._get(url, MAX_BYTES)

    def _get(self, url: str, max_length: int) -> bytes:
        work = self._client.small_file(url, limit_bytes=min(max_length, MAX_BYTES), patience=self._patience)
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()
        except RefusedError as error:
            raise DownloadHTTPError(str(error), error.status) from error
        except AgentError as error:
            raise AgentDownloadError(error) from error
