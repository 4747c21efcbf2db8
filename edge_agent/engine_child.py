"""One engine process as seen from the agent: start, calls, streams of answers, heartbeats, and its end.

When the process dies or stops beating, every caller gets `EngineGoneError` and `on_gone` is told; whether to start
another is `edge_agent.host`'s decision. Knows no releases and no names, only digests and paths.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil
import structlog

from edge_agent.answers import Answers
from edge_agent.business import Profile
from edge_agent.crash_marker import CrashMarker
from edge_agent.engine_wire import (
    MAX_LINE_BYTES,
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
    Prompt,
    UnloadAdapter,
    from_line,
    to_line,
)
from edge_agent.errors import AgentError, EngineGoneError, EngineRefusedError, TransientError
from engine.strict_json import DecodeError

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ChildSettings:
    """How to start an engine process, and how long to wait for it."""

    command: tuple[str, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    open_timeout_s: float = 300.0
    call_timeout_s: float = 120.0
    heartbeat_interval_s: float = 1.0
    hang_timeout_s: float = 20.0
    stop_timeout_s: float = 5.0


class Watcher(Protocol):
    """Who hears of a process."""

    def child_beat(self, child: EngineChild, heartbeat: Heartbeat) -> None:
        """It has sent its figures."""

    def child_gone(self, child: EngineChild) -> None:
        """It has ended, for whatever reason."""


class EngineChild:
    """A running engine process; made by `start`."""

    def __init__(
        self, process: asyncio.subprocess.Process, settings: ChildSettings, marker: CrashMarker, watcher: Watcher
    ) -> None:
        self.base = ""
        self.backend = ""
        self.memory_bytes: Mapping[str, int] = {}
        """What was resident when the engine looked last, by kind."""
        self.num_running = self.num_waiting = 0
        self.loaded: set[str] = set()
        """Digests of the adapters that it knows, or will know when it has read its input."""
        self._leaving: set[str] = set()
        self._process = process
        self._settings = settings
        self._marker = marker
        self._watcher = watcher
        self._is_stopping = False
        self._call_ids = itertools.count(1)
        self._opened: asyncio.Future[Opened] = asyncio.get_running_loop().create_future()
        self._calls: dict[str, asyncio.Future[str]] = {}
        self._streams: dict[str, asyncio.Queue[Piece | AgentError]] = {}
        self._in_flight: Counter[str | None] = Counter()
        self._changed = asyncio.Event()
        self._last_beat_s = time.monotonic()
        self._gone: EngineGoneError | None = None
        self._suspects: frozenset[str] = frozenset()
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def start(cls, bundle: Path, settings: ChildSettings, watcher: Watcher) -> EngineChild:
        """Start a process; raises `EngineRefusedError` if the base can't be opened, else `EngineGoneError`."""
        marker = CrashMarker.make()
        try:
            process = await asyncio.create_subprocess_exec(
                *settings.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=MAX_LINE_BYTES,
                pass_fds=(marker.descriptor,),
            )
        except OSError as error:
            marker.close()
            raise EngineGoneError(
                f"the engine process can't be started ({error}): look at the device's memory and at engine_command",
                code="engine_not_started",
            ) from error
        except BaseException:
            marker.close()
            raise
        child = cls(process, settings, marker, watcher)
        reader = asyncio.create_task(child._read())
        child._tasks = [reader, asyncio.create_task(child._watch())]
        try:
            await child._open(bundle)
        except BaseException:
            await child.stop()
            raise
        reader.add_done_callback(lambda _: watcher.child_gone(child))
        return child

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can take requests."""
        return self._gone is None

    @property
    def num_in_flight(self) -> int:
        """Requests that are running or queued."""
        return self._in_flight.total()

    @property
    def releases_in_use(self) -> set[str]:
        """Digests of all bundles that it may still read, a load that it has not got to included."""
        return {self.base} | self.loaded | self._leaving

    def pss_bytes(self) -> int:
        """Memory of the process, shared pages counted by share; 0 if it is gone."""
        with suppress(psutil.Error):
            return int(psutil.Process(self.pid).memory_full_info().pss)
        return 0

    async def load_adapter(self, bundle: Path, digest: str) -> None:
        """Make an adapter usable; does nothing if it is loaded."""
        if digest in self.loaded:
            return
        self.loaded.add(digest)
        try:
            found = await self._call(LoadAdapter(self._next_id(), str(bundle), digest))
            if found != digest:
                raise EngineRefusedError(f"{bundle} holds {found[:12]}, not {digest[:12]}", code="bad_bundle")
        except AgentError:
            self.loaded.discard(digest)
            raise

    async def unload_adapter(self, digest: str) -> None:
        """Forget an adapter; raises `TransientError` while a request still uses it."""
        self.loaded.discard(digest)
        self._leaving.add(digest)
        try:
            await self._call(UnloadAdapter(self._next_id(), digest))
        except TransientError:
            self.loaded.add(digest)
            raise
        finally:
            self._leaving.discard(digest)

    def submit(
        self, prompts: Sequence[Prompt], *, adapter: str | None, profile: Profile, num_answers: int = 1
    ) -> Answers:
        """Start requests: `num_answers` to each prompt, who share the work on it; close the answers when done.

        With a seed the i-th answer to a prompt is that of the seed + i.
        """
        starts = [self._generate(prompt, adapter, profile, num_answers) for prompt in prompts]
        for start in starts:
            self._send(start)
        call_ids = [call_id for start in starts for call_id in start.call_ids]
        queue: asyncio.Queue[Piece | AgentError] = asyncio.Queue()
        self._streams |= dict.fromkeys(call_ids, queue)
        self._in_flight[adapter] += len(call_ids)
        return Answers(call_ids, queue, lambda unfinished: self._release(call_ids, adapter, unfinished))

    def _generate(self, prompt: Prompt, adapter: str | None, profile: Profile, num_answers: int) -> Generate:
        first, *others = [_with_seed(profile.sampling, place) for place in range(num_answers)]
        siblings = {self._next_id(): sampling for sampling in others}
        return Generate(self._next_id(), prompt, adapter, first, profile.business, siblings)

    def _release(self, call_ids: Collection[str], adapter: str | None, unfinished: Collection[str]) -> None:
        for call_id in call_ids:
            del self._streams[call_id]
        self._in_flight[adapter] -= len(call_ids)
        self._changed.set()
        with suppress(EngineGoneError):
            for call_id in unfinished:
                self._send(Cancel(call_id))

    def is_used(self, adapter: str | None) -> bool:
        """Whether requests with this adapter are in flight."""
        return self._in_flight[adapter] > 0

    async def drained(self) -> None:
        """Return once no request is in flight, or the process is gone."""
        while self.num_in_flight and self.is_alive:
            await self.change()

    async def change(self) -> None:
        """Return once a request has ended, or the process has."""
        self._changed.clear()
        if self.is_alive:
            await self._changed.wait()

    @property
    def suspects(self) -> frozenset[str]:
        """Digests of the adapters that it ran or loaded last: if it died on its own, one of them may be why."""
        return frozenset() if self._is_stopping else self._suspects

    async def stop(self) -> None:
        """Let it go at the end of its input, kill it if it does not."""
        self._is_stopping = True
        with suppress(OSError, RuntimeError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            async with asyncio.timeout(self._settings.stop_timeout_s):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()
        self._end("the engine was stopped")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def kill(self) -> None:
        """End the process at once."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def _open(self, bundle: Path) -> None:
        settings = self._settings
        self._send(OpenEngine(str(bundle), settings.config, settings.heartbeat_interval_s, self._marker.descriptor))
        try:
            async with asyncio.timeout(settings.open_timeout_s):
                opened = await asyncio.shield(self._opened)
        except TimeoutError as error:
            raise EngineGoneError(
                f"the engine did not open within {settings.open_timeout_s:.0f} s: look at its log, or raise "
                "engine_open_timeout_s",
                code="engine_open_timeout",
            ) from error
        self.base, self.backend = opened.base, opened.backend

    async def _call(self, command: LoadAdapter | UnloadAdapter) -> str:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._calls[command.call_id] = future
        try:
            self._send(command)
            async with asyncio.timeout(self._settings.call_timeout_s):
                return await future
        except TimeoutError as error:
            raise EngineGoneError(f"the engine did not answer {type(command).__name__}", code="engine_hangs") from error
        finally:
            self._calls.pop(command.call_id, None)

    def _next_id(self) -> str:
        return str(next(self._call_ids))

    def _send(self, command: Command) -> None:
        if self._gone:
            raise self._gone
        assert self._process.stdin is not None
        self._process.stdin.write(to_line(command))

    async def _read(self) -> None:
        """Until the process closes its output; then nobody is left waiting."""
        assert self._process.stdout is not None
        try:
            while line := await self._process.stdout.readline():
                self._last_beat_s = time.monotonic()
                self._take(from_line(line))
        except (DecodeError, ValueError) as error:
            log.warning("engine.bad_line", pid=self.pid, error=str(error))
            self.kill()
        finally:
            self._end(f"the engine process ended with {_spell(await self._process.wait())}")

    def _take(self, message: Message) -> None:
        match message:
            case Opened() if not self._opened.done():
                self._opened.set_result(message)
            case Heartbeat():
                self._take_heartbeat(message)
            case Piece():
                self._take_piece(message)
            case Done():
                self._end_call(message.call_id, message.value)
            case Failed():
                self._take_failure(message)

    def _take_piece(self, piece: Piece) -> None:
        queue = self._streams.get(piece.call_id)
        if queue is None:  # cancelled, and this was under way
            return
        queue.put_nowait(piece if piece.failure is None else _error_of(piece.failure))

    def _take_heartbeat(self, heartbeat: Heartbeat) -> None:
        self.num_running, self.num_waiting = heartbeat.num_running, heartbeat.num_waiting
        self.memory_bytes = heartbeat.memory_bytes or self.memory_bytes
        self._watcher.child_beat(self, heartbeat)

    def _take_failure(self, failed: Failed) -> None:
        error = _error_of(failed)
        if not failed.call_id and not self._opened.done():
            self._opened.set_exception(error)
        elif failed.call_id in self._streams:
            self._streams[failed.call_id].put_nowait(error)
        else:
            self._end_call(failed.call_id, error)

    def _end_call(self, call_id: str, result: str | AgentError) -> None:
        """Give a call its result, unless its caller has left."""
        future = self._calls.get(call_id)
        if future is None or future.done():
            return
        if isinstance(result, AgentError):
            future.set_exception(result)
        else:
            future.set_result(result)

    async def _watch(self) -> None:
        """Kill a process that has stopped beating; `_read` then tells everybody."""
        while self.is_alive:
            await asyncio.sleep(self._settings.heartbeat_interval_s)
            silent_s = time.monotonic() - self._last_beat_s
            if self._opened.done() and silent_s > self._settings.hang_timeout_s:
                log.error("engine.hangs", pid=self.pid, silent_s=silent_s)
                self.kill()
                return

    def _end(self, reason: str) -> None:
        """Give everybody who waits a clean error."""
        if self._gone:
            return
        self._gone = EngineGoneError(f"{reason}; send the request again")
        self._suspects = self._marker.read()
        self._marker.close()
        if not self._opened.done():
            self._opened.set_exception(self._gone)
            self._opened.exception()  # whoever has started it may have left
        for call_id in self._calls:
            self._end_call(call_id, self._gone)
        for queue in self._streams.values():
            queue.put_nowait(self._gone)
        self._changed.set()


def _error_of(failed: Failed) -> AgentError:
    if failed.is_transient:
        return TransientError(failed.message, code=failed.code, retry_after_s=failed.retry_after_s)
    return EngineRefusedError(failed.message, code=failed.code)


def _with_seed(sampling: Mapping[str, Any], place: int) -> Mapping[str, Any]:
    """Seeds stay within 63 bits, as far as the wire carries numbers."""
    seed = sampling.get("seed")
    return sampling if seed is None else {**sampling, "seed": (seed + place) % 2**63}


def _spell(code: int) -> str:
    return f"exit status {code}" if code >= 0 else f"signal {-code}"
