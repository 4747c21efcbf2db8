"""The inside of the engine's process: commands in as lines on standard input, messages out on standard output.

One thread reads; the main thread owns the engine and does nothing but commands and steps, so the engine stays
single-threaded. When the agent goes away, input ends and the process leaves at once, even out of a hanging step: no
engine outlives its agent. Knows `edge_agent.engine_wire` and the little interface `ServedEngine`; nothing of releases,
HTTP or disks.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from edge_agent.crash_marker import CrashMarker
from edge_agent.engine_wire import (
    Cancel,
    Command,
    Done,
    Failed,
    Generate,
    Heartbeat,
    LoadAdapter,
    Message,
    Opened,
    OpenEngine,
    Piece,
    UnloadAdapter,
    from_line,
    to_line,
)
from engine.errors import CapacityError, EngineError, RequestTimeoutError

Send = Callable[[Message], None]
_HEARTBEATS_PER_MEMORY = 10


class ServedEngine(Protocol):
    """What this process needs of an engine; `edge_agent.engine_process` gives the real one."""

    base_digest: str
    backend: str

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""

    def load_adapter(self, bundle: Path) -> str:
        """Make an adapter usable; returns its digest."""

    def unload_adapter(self, digest: str) -> None:
        """Forget an adapter."""

    def submit(self, call: Generate) -> None:
        """Queue a request."""

    def cancel(self, call_id: str) -> None:
        """Drop a request, if it is still there."""

    def step(self) -> Iterable[Piece]:
        """Run one step."""

    def heartbeat(self, *, with_memory: bool) -> Heartbeat:
        """What was counted since the last one; a look at the memory takes longer than all else."""


class Marker(Protocol):
    """Where an engine notes which adapters it is about to run."""

    def note(self, adapters: Collection[str]) -> None:
        """These, or none."""


class NoMarker:
    """Nobody will read it."""

    def note(self, adapters: Collection[str]) -> None:
        """Forget it."""


NO_MARKER = NoMarker()
OpenServed = Callable[[Path, Mapping[str, Any], Marker], ServedEngine]


class EngineLoop:
    """Commands in, steps in between, messages out."""

    def __init__(
        self, engine: ServedEngine, send: Send, heartbeat_interval_s: float, marker: Marker = NO_MARKER
    ) -> None:
        self._engine = engine
        self._send = send
        self._marker = marker
        self._heartbeat_interval_s = heartbeat_interval_s
        self._next_heartbeat_s = self._next_memory_s = time.monotonic()
        self._pause_s = self._longest_pause_s = 0.0
        """How long adapters have come and gone since the last step; the longest such time since the last heartbeat."""

    def run(self, commands: queue.SimpleQueue[Command]) -> None:
        """For ever: the process ends when its input does."""
        while True:
            self._beat()
            self._pause_s = 0.0
            self._obey_waiting(commands)
            self._longest_pause_s = max(self._longest_pause_s, self._pause_s)
            for piece in self._engine.step() if self._engine.has_work else ():
                self._send(piece)
            self._marker.note(())

    def _beat(self) -> None:
        now_s = time.monotonic()
        if now_s < self._next_heartbeat_s:
            return
        with_memory = now_s >= self._next_memory_s
        heartbeat = self._engine.heartbeat(with_memory=with_memory)
        self._send(replace(heartbeat, update_pause_s=self._longest_pause_s))
        self._longest_pause_s = 0.0
        self._next_heartbeat_s = now_s + self._heartbeat_interval_s
        if with_memory:
            self._next_memory_s = now_s + _HEARTBEATS_PER_MEMORY * self._heartbeat_interval_s

    def _obey_waiting(self, commands: queue.SimpleQueue[Command]) -> None:
        """All commands that are there; if there is nothing else to do, wait for one until the next heartbeat.

        Between two that change adapters there is a step, so that an update of many holds answers up for one at a time.
        """
        try:
            if not self._engine.has_work:
                self._obey(commands.get(timeout=max(0.0, self._next_heartbeat_s - time.monotonic())))
            while not (self._pause_s and self._engine.has_work):
                self._obey(commands.get_nowait())
        except queue.Empty:
            return

    def _obey(self, command: Command) -> None:
        if isinstance(command, Cancel):
            self._engine.cancel(command.call_id)
            return
        assert not isinstance(command, OpenEngine)
        started_s = time.monotonic()
        for call in command.each() if isinstance(command, Generate) else (command,):
            try:
                self._call(call)
            except EngineError as error:
                self._send(failure_of(call.call_id, error))
        if not isinstance(command, Generate):
            self._pause_s += time.monotonic() - started_s

    def _call(self, command: LoadAdapter | UnloadAdapter | Generate) -> None:
        match command:
            case LoadAdapter():
                self._marker.note((command.digest,))
                self._send(Done(command.call_id, self._engine.load_adapter(Path(command.bundle))))
            case UnloadAdapter():
                self._engine.unload_adapter(command.digest)
                self._send(Done(command.call_id))
            case Generate():
                self._engine.submit(command)


def failure_of(call_id: str, error: EngineError) -> Failed:
    """An error of the engine as the agent hears of it."""
    is_transient = isinstance(error, CapacityError | RequestTimeoutError)
    return Failed(call_id, error.code, str(error), is_transient, getattr(error, "retry_after_s", None))


def serve(open_engine: OpenServed) -> None:
    """Run an engine on this process's standard input and output until the input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # both may reach the whole group; the agent decides when we go
        signal.signal(number, signal.SIG_IGN)
    source, sink = _claim_pipes()

    def send(message: Message) -> None:
        sink.write(to_line(message))
        sink.flush()

    command = from_line(source.readline() or b"null")
    assert isinstance(command, OpenEngine)
    marker = NO_MARKER if command.marker_descriptor is None else CrashMarker(command.marker_descriptor)
    commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
    threading.Thread(target=_read_commands, args=(source, commands), daemon=True).start()
    try:
        engine = open_engine(Path(command.bundle), command.config, marker)
    except EngineError as error:
        send(failure_of("", error))
        return
    with suppress(BrokenPipeError):  # the agent is gone
        send(Opened(engine.base_digest, engine.backend))
        EngineLoop(engine, send, command.heartbeat_interval_s, marker).run(commands)


def _claim_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Private copies of input and output; what libraries print goes to standard error, never between our lines."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return source, sink


def _read_commands(source: BinaryIO, commands: queue.SimpleQueue[Command]) -> None:
    for line in source:
        commands.put(from_line(line))
    os._exit(0)  # the agent is gone or wants us gone; nothing here needs saving
