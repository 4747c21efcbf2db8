"""One request for the bytes that a run of chunks still lacks, in a thread of its own, and how it is stopped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from edge_agent.errors import UnavailableError
from edge_agent.file_client import FileClient, FileStream
from edge_agent.gate import Gate
from edge_agent.landing import Landing
from edge_agent.patience import Floor, Pace
from engine.chunk_index import IndexedFile, PlacedChunk

_LET_GO_S: Final = 1.0
"""A thread that waits for an answer's head can't be woken: it is left alone and touches nothing any more."""


@dataclass(slots=True)
class Download:
    """From the server to the chunks' places, as fast as `pace` allows, until the gate shuts."""

    files: FileClient
    file: IndexedFile
    landing: Landing
    pace: Pace
    floor: Floor
    gate: Gate
    _stream: FileStream | None = None
    _is_stopped: threading.Event = field(default_factory=threading.Event)

    async def run(self) -> None:
        """Raises `TransientError` if it ends early, `RefusedError`, and `OSError` of the disk."""
        done = asyncio.wrap_future(_in_thread(self))
        done.add_done_callback(lambda ended: ended.exception())  # nobody else may want it once this is cancelled
        try:
            await asyncio.wait([done], timeout=self.floor.grace_s)
            if not (done.done() or self._stream):  # the answer's head drips
                raise self.floor.error()
            await asyncio.shield(done)
        finally:
            if not done.done():
                self.stop()
                await asyncio.wait([done], timeout=_LET_GO_S)

    def stop(self) -> None:
        """Let the thread end soon."""
        self._is_stopped.set()
        if self._stream:
            self._stream.interrupt()

    def work(self) -> None:
        """As `run`, blocking. While one chunk is verified and written the next one comes in, so two are in memory."""
        landed: Future[None] = Future()
        landed.set_result(None)
        with ThreadPoolExecutor(1, "landing") as worker:
            try:
                for place, pieces in self._chunks():
                    landed.result()
                    landed = worker.submit(self.landing.land, place, pieces)
            finally:
                landed.result()

    def _chunks(self) -> Iterator[tuple[PlacedChunk, list[memoryview]]]:
        """As they come in, until the last one or the gate shuts."""
        start, stop, size_bytes = self.landing.start, self.landing.stop, self.file.object_bytes
        with self.files.open(self.file.object_sha256, start=start, stop=stop, size_bytes=size_bytes) as stream:
            self._stream = stream
            num_unwanted = start - stream.start  # of a server that sends the whole object all the same
            while self.landing.start < stop and not self._must_end:
                data = self._read(stream)
                yield from self.landing.cut(memoryview(data)[num_unwanted:])
                num_unwanted = max(0, num_unwanted - len(data))

    @property
    def _must_end(self) -> bool:
        return bool(self.gate.reason) or self._is_stopped.is_set()

    def _read(self, stream: FileStream) -> bytes:
        try:
            data = stream.read()
        except TimeoutError as error:
            raise self.floor.error() from error
        if not data:
            missing = self.landing.stop - self.landing.start
            raise UnavailableError(f"{self.file.path} ended {missing} bytes too early", code="cut_off")
        delay_s = self.pace.delay_s(len(data))
        self._is_stopped.wait(delay_s)
        self.floor.note(len(data), delay_s)
        return data


def _in_thread(download: Download) -> Future[None]:
    """Its work, in a daemon: one that can't be woken must not keep the process alive."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            download.work()
        except BaseException as error:  # noqa: BLE001 - whoever waits for the future gets it
            future.set_exception(error)
        else:
            future.set_result(None)

    future.set_running_or_notify_cancel()
    threading.Thread(target=run, name="download", daemon=True).start()
    return future
