"""Where the local API listens: a port, loopback's by default, or a Unix socket. Knows sockets, not what is asked."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Collection
from contextlib import closing, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette

from edge_agent.errors import UserError

USUAL_PORT: Final = 8455
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost"})


@dataclass(frozen=True, slots=True)
class Address:
    """How to reach the API. `url`: through the Unix socket at `socket`, if there is one, else as it stands."""

    url: str
    port: int | None = None
    socket: str | None = None
    token_file: str | None = None

    def __str__(self) -> str:
        return f"unix:{self.socket}" if self.socket else self.url

    def as_document(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket. `hosts`: names to call it by, None for any."""

    socket: socket.socket
    address: Address
    hosts: Collection[str] | None

    def close(self) -> None:
        """Listen no more; a Unix socket's file goes as well."""
        self.socket.close()
        if self.address.socket:
            Path(self.address.socket).unlink(missing_ok=True)


def listen_on_port(host: str, port: int | None) -> Listener:
    """Listen on a port; raises `UserError` if it is taken. None prefers `USUAL_PORT`, 0 takes any free one.

    On loopback only its own names count, so that no web page reaches it by a name of its own.
    """
    found = _bound_to_port(host, port)
    name, number = found.getsockname()[:2]
    return Listener(found, Address(f"http://{name}:{number}", number), _LOOPBACK if host in _LOOPBACK else None)


def listen_on_socket(path: Path) -> Listener:
    """Listen on a Unix socket that its owner alone can use; raises `UserError` if that can't be made."""
    found = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        _remove_stale(path)
        found.bind(str(path))
        found.listen(128)
    except OSError as error:
        found.close()
        raise UserError(f"the local API can't listen on {path} ({error}): choose another --api-socket") from error
    finally:
        os.umask(umask)
    return Listener(found, Address("http://localhost", socket=str(path)), None)


def _bound_to_port(host: str, port: int | None) -> socket.socket:
    if port is None:
        with suppress(OSError):
            return socket.create_server((host, USUAL_PORT))
    try:
        return socket.create_server((host, port or 0))
    except OSError as error:
        raise UserError(
            f"the local API can't listen on {host}:{port} ({error.strerror}): choose another --api-port, 0 takes any"
        ) from error


def _remove_stale(path: Path) -> None:
    """A killed agent leaves its socket's file behind; one that answers, or another kind of file, stays."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()


class _Server(uvicorn.Server):
    """Leaves signals to the agent."""

    def capture_signals(self) -> Any:
        return nullcontext()


async def serve(app: Starlette, listener: Listener, *, goodbye_s: int) -> None:
    """Until cancelled; answers that are under way then get `goodbye_s` to end."""
    options: dict[str, Any] = {"log_config": None, "access_log": False, "lifespan": "off"}
    server = _Server(uvicorn.Config(app, timeout_graceful_shutdown=goodbye_s, **options))
    with closing(listener):
        serving = asyncio.ensure_future(server.serve(sockets=[listener.socket]))
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            server.should_exit = True
            await serving
            raise
