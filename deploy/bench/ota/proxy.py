"""A proxy that spoils the answers to downloads in the way that was ordered, and counts the bytes that it passes on."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import deque
from dataclasses import dataclass
from typing import Final

_PIECE_BYTES: Final = 64 << 10
_HEAD_BYTES: Final = 64 << 10
_CONTENT_RANGE: Final = re.compile(rb"(?i)content-range: bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one answer; several may happen at once.

    status: this answer instead, with `retry_after_s` if that is given. cut_at: the connection is dropped after so many
    bytes. flip_at: a bit of this byte is wrong. bytes_per_s: no faster than this. is_wrong_range: Content-Range names
    other bytes.
    """

    status: int = 0
    retry_after_s: int | None = None
    cut_at: int | None = None
    flip_at: int | None = None
    bytes_per_s: int | None = None
    is_wrong_range: bool = False


NONE: Final = Fault()


class Proxy:
    """Listens on loopback in a thread of its own, in front of a server on loopback."""

    def __init__(self, port: int) -> None:
        """Start; `port` is the server's."""
        self._server_port = port
        self._faults: deque[Fault] = deque()
        self._tasks: set[asyncio.Task[None] | None] = set()
        self.num_requests = 0
        """For files, not counting manifests and indexes."""
        self.num_bytes = 0
        """Of the bodies of files, as they went to the device."""
        self.port = 0
        self._loop = asyncio.new_event_loop()
        listening = threading.Event()
        threading.Thread(target=self._run, args=(listening,), daemon=True).start()
        listening.wait()

    def order(self, *faults: Fault) -> None:
        """For the next requests for files, one each; forgets what was ordered and counted before."""
        self._faults = deque(faults)
        self.num_requests = self.num_bytes = 0

    def close(self) -> None:
        """Stop listening."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self, listening: threading.Event) -> None:
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        listening.set()
        self._loop.run_forever()

    async def _serve(self, device: asyncio.StreamReader, to_device: asyncio.StreamWriter) -> None:
        """One request, then the connection ends."""
        task = asyncio.current_task()
        self._tasks.add(task)  # or nobody holds it, once the device is gone
        try:
            request = await device.readuntil(b"\r\n\r\n")
            is_file = b"/files/" in request.split(b"\r\n", 1)[0]
            fault = self._faults.popleft() if is_file and self._faults else NONE
            self.num_requests += is_file
            if fault.status:
                to_device.write(_refusal(fault))
            else:
                await self._pass_on(request, to_device, fault, is_file=is_file)
            await to_device.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            to_device.close()
            self._tasks.discard(task)

    async def _pass_on(self, request: bytes, to_device: asyncio.StreamWriter, fault: Fault, *, is_file: bool) -> None:
        answers, to_server = await asyncio.open_connection("127.0.0.1", self._server_port, limit=_HEAD_BYTES)
        to_server.write(_closing(request))
        try:
            head = _closing(await answers.readuntil(b"\r\n\r\n"))
            to_device.write(_shifted(head) if fault.is_wrong_range else head)
            position = 0
            while data := await answers.read(_PIECE_BYTES if fault.bytes_per_s is None else 1024):
                data = _spoilt(data, position, fault)
                to_device.write(data)
                await to_device.drain()
                position += len(data)
                self.num_bytes += len(data) * is_file
                if fault.cut_at is not None and position >= fault.cut_at:
                    break
                if fault.bytes_per_s is not None:
                    await asyncio.sleep(len(data) / fault.bytes_per_s)
        finally:
            to_server.close()


def _spoilt(data: bytes, position: int, fault: Fault) -> bytes:
    if fault.flip_at is not None and position <= fault.flip_at < position + len(data):
        copy = bytearray(data)
        copy[fault.flip_at - position] ^= 1
        data = bytes(copy)
    return data if fault.cut_at is None else data[: fault.cut_at - position]


def _closing(head: bytes) -> bytes:
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([lines[0], b"Connection: close", *lines[1:]])


def _shifted(head: bytes) -> bytes:
    return _CONTENT_RANGE.sub(lambda m: b"Content-Range: bytes %d-%d/%s" % (int(m[1]) + 1, int(m[2]), m[3]), head)


def _refusal(fault: Fault) -> bytes:
    retry = f"Retry-After: {fault.retry_after_s}\r\n" if fault.retry_after_s is not None else ""
    return f"HTTP/1.1 {fault.status} Ordered\r\n{retry}Content-Length: 0\r\nConnection: close\r\n\r\n".encode()
