"""Hosts the served set: which engine process runs, what models' names stand for, and how one set follows another.

A set is staged beside the served one, probed, and then either activated by exchanging one reference or discarded.
Requests that run keep the process and the adapter that they began with; what nobody uses any more is unloaded or
stopped afterwards. A process that dies or hangs is started again with the committed set. Knows digests, names and
bundle directories; nothing of HTTP, downloads or the journal.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from edge_agent.answers import Answers
from edge_agent.business import Profile, profile_of
from edge_agent.checks import memory_bytes
from edge_agent.engine_child import ChildSettings, EngineChild
from edge_agent.engine_wire import Heartbeat, Prompt
from edge_agent.errors import (
    AgentError,
    EngineGoneError,
    NotServingError,
    QuarantinedError,
    TransientError,
    problem_of,
)
from edge_agent.memory import available_bytes, engine_budget_bytes
from edge_agent.protocol import DesiredState, Problem, ReleaseRef
from edge_agent.quarantine import MOST_CRASHES, Quarantine
from edge_agent.schedule import Backoff
from edge_agent.served import Model, Served, Staged
from edge_agent.store import Store
from engine.artifact import AdapterManifest, Manifest

log = structlog.get_logger()

NO_ROOM = "one base makes way for the next, since memory has no room for both"


@dataclass(frozen=True, slots=True)
class HostSettings:
    """Limits and patience."""

    child: ChildSettings
    max_in_flight: int = 64
    ready_wait_s: float = 5.0
    drain_timeout_s: float = 120.0
    businesses: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What this device says of businesses, by the names of their models; it overrides what ships with adapters."""
    restart: Backoff = field(default_factory=lambda: Backoff(0.5, 60.0))
    stable_s: float = 60.0
    """A process that has lived so long is started again at once; one that died sooner waits longer each time."""


class Host:
    """Serves the committed set, and stages the next."""

    def __init__(self, store: Store, settings: HostSettings, quarantine: Quarantine) -> None:
        self.on_damage: Callable[[DesiredState], None] = lambda _: None
        self.on_beat: Callable[[EngineChild, Heartbeat], None] = lambda _child, _heartbeat: None
        self.on_quarantine: Callable[[], None] = lambda: None
        self.refuses: Callable[[Collection[str]], Problem | None] = lambda _: None
        """Why releases must not run, asked before each request."""
        self.num_restarts = 0
        self.problem: Problem | None = None
        self.why_down = ""
        """Why nothing is served for a moment on purpose."""
        self.quarantine = quarantine
        self._store = store
        self._settings = settings
        self._committed: DesiredState | None = None
        self._served: Served | None = None
        self._staged: Staged | None = None
        self._children: set[EngineChild] = set()
        self._fresh: EngineChild | None = None
        """A process that was started for a set that is not active yet."""
        self._ready = asyncio.Event()
        self._revival: asyncio.Task[None] | None = None
        self._num_failures = 0
        """Crashes and failed starts that followed each other closely."""
        self._isolates = False
        """Whether adapters run in steps of their own for a while, to find out which one takes the engine down."""
        self._background: set[asyncio.Task[None]] = set()

    @property
    def served(self) -> Served | None:
        """What answers requests now; None while nothing does."""
        return self._served

    @property
    def models(self) -> Collection[Model]:
        """What can be asked for now."""
        return self._served.models.values() if self._served else ()

    @property
    def num_in_flight(self) -> int:
        """Requests on the process that serves."""
        return self._served.child.num_in_flight if self._served else 0

    def start(self, committed: DesiredState | None) -> None:
        """Begin to serve a set that was committed before; comes up in the background."""
        self._committed = committed
        if committed and committed.base:
            self._revive()

    async def resolve(self, name: str) -> Model | None:
        """What a model's name stands for, None if it is none of ours; waits a moment for an engine that is starting."""
        if self._committed is None or self._committed.base is None:
            raise NotServingError("no model is active on this device yet: roll one out to it", retry_after_s=10)
        if self._served is None:
            await self._wait_until_ready()
        served = self._served
        if served is None:
            raise NotServingError(
                f"{self.why_down or 'the engine is starting'}: try again in a moment", retry_after_s=2
            )
        return served.models.get(name)

    @property
    def max_in_flight(self) -> int:
        """The most answers that may be on their way."""
        return self._settings.max_in_flight

    def submit(
        self, model: Model, prompts: Sequence[Prompt], sampling: Mapping[str, Any], num_answers: int = 1
    ) -> Answers:
        """Start requests, with `sampling` over what their business says; see `EngineChild.submit`.

        Raises `NotServingError` if there are too many, `QuarantinedError` if the adapter must not run.
        """
        if problem := self.refuses({model.base.digest, model.release.digest}):
            raise NotServingError(problem.detail, code=problem.code)
        if model.adapter in self.quarantine:
            raise QuarantinedError(
                f"{model.name} {model.release.version} is not run on this device any more, since the engine crashed "
                f"{MOST_CRASHES} times while it ran it: roll out another version"
            )
        if model.child.num_in_flight + len(prompts) * num_answers > self.max_in_flight:
            raise NotServingError(
                f"{model.child.num_in_flight} requests are in flight already: try again in a moment",
                code="queue_full",
                retry_after_s=1,
            )
        profile = replace(model.profile, sampling={**model.profile.sampling, **sampling})
        return model.child.submit(prompts, adapter=model.adapter, profile=profile, num_answers=num_answers)

    async def stage(self, desired: DesiredState) -> None:
        """Make a set ready to be probed; the served one goes on, unless memory has no room for two bases."""
        if desired.base is None:
            self._staged = Staged(desired, None)
            return
        running = await self._child_running(desired.base)
        child = running or await self._start_fresh(desired, desired.base)
        self._staged = Staged(desired, self._served_on(child, desired), is_in_place=running is not None)
        await self._load_adapters(child, desired)

    @property
    def staged(self) -> Staged | None:
        """The set on trial."""
        return self._staged

    async def activate(self, desired: DesiredState) -> None:
        """Serve the set that was journalled as committed; on the staged process if it still lives."""
        staged, old = self._staged, self._served
        if staged is None and self._committed == desired and (old is None or old.desired == desired):
            return  # after a restart: `start` has begun already
        self._committed = desired
        self._num_failures, self._isolates = 0, False
        self.quarantine.keep_only({ref.digest for ref in desired.adapters})
        await self._stop_reviving()
        if staged and staged.desired == desired and (staged.served is None or staged.served.child.is_alive):
            self._exchange(staged.served)
        else:
            self._exchange(None)
            self.start(desired)
        self._staged = self._fresh = None
        if old and not (self._served and self._served.child is old.child):
            self._spawn(self._retire(old.child))
        if self._served:
            self._spawn(self._tidy(self._served.child))

    async def discard(self) -> None:
        """Forget the staged set and see to it that the committed one is served."""
        self._staged = None
        fresh, self._fresh = self._fresh, None
        if fresh:
            await fresh.stop()
        if self._served:
            self._spawn(self._tidy(self._served.child))
        elif self._committed and self._committed.base and not self._is_reviving:
            self._revive()

    async def stop(self) -> None:
        """Stop all processes; requests in flight get a clean error."""
        await self._stop_reviving()
        self._committed, self._fresh = None, None
        self._exchange(None)
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await asyncio.gather(*(child.stop() for child in self._children))

    def exchange_models(self, served: Served) -> None:
        """Serve other models on the process that serves; adapters that none of them names any more are unloaded."""
        assert self._served is not None
        assert served.child is self._served.child
        self._exchange(served)
        self._spawn(self._tidy(served.child))

    def digests_in_use(self) -> set[str]:
        """Releases whose files an engine process may still read, those on their way out included."""
        return {digest for child in self._children for digest in child.releases_in_use}

    # Staging

    async def _child_running(self, base: ReleaseRef) -> EngineChild | None:
        """The process that serves, if it runs on this base; one that is just starting is waited for."""
        if (
            self._committed
            and self._committed.base
            and self._committed.base.digest == base.digest
            and self._is_reviving
        ):
            await self._wait_until_ready()
        child = self._served.child if self._served else None
        return child if child and child.is_alive and child.base == base.digest else None

    async def _start_fresh(self, desired: DesiredState, base: ReleaseRef) -> EngineChild:
        """A second process for a new base; the first one goes before, if memory doesn't hold both."""
        if not self._has_memory_for(desired):
            await self._make_way()
        self._fresh = await self._start_child(base)
        return self._fresh

    async def _make_way(self) -> None:
        """Stop what is served; until the next set is up, or this one again, requests are told to come back."""
        await self._stop_reviving()
        if self._served:
            log.warning("host.no_room_for_two_bases", revision=self._served.desired.revision)
            old = self._served.child
            self._exchange(None)
            self.why_down = NO_ROOM
            await asyncio.shield(self._spawn(self._retire(old)))

    def _has_memory_for(self, desired: DesiredState) -> bool:
        return memory_bytes(self._manifests(desired)) <= available_bytes()

    def _manifests(self, desired: DesiredState) -> list[Manifest]:
        found = (self._store.manifest(ref.digest) for ref in desired.releases)
        return [manifest for manifest in found if manifest]

    async def _load_adapters(self, child: EngineChild, desired: DesiredState) -> None:
        for ref in desired.adapters:
            if ref.digest not in self.quarantine:
                await child.load_adapter(self._store.bundle(ref.digest), ref.digest)

    def _served_on(self, child: EngineChild, desired: DesiredState) -> Served:
        base = desired.base
        assert base is not None
        models = {base.name: Model(base.name, base, base, None, self._profile(base), child)}
        for ref in desired.adapters:
            models[ref.name] = Model(ref.name, ref, base, ref.digest, self._profile(ref), child)
        return Served(desired, child, models)

    def _profile(self, ref: ReleaseRef) -> Profile:
        manifest = self._store.manifest(ref.digest)
        shipped = manifest.business if isinstance(manifest, AdapterManifest) else {}
        return profile_of(ref.name, shipped, self._settings.businesses.get(ref.name))

    # The exchange, and what it leaves behind

    def _exchange(self, served: Served | None) -> None:
        """The one place where what is served changes."""
        self._served = served
        self.why_down = ""
        if served:
            self.problem = None
            self._ready.set()
        else:
            self._ready.clear()

    async def _retire(self, child: EngineChild) -> None:
        """Stop a process when its last request has ended, or when that takes too long."""
        try:
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await child.drained()
        except TimeoutError:
            log.warning("host.drain_timeout", pid=child.pid, in_flight=child.num_in_flight)
        await child.stop()

    async def _tidy(self, child: EngineChild) -> None:
        """Unload the adapters that neither the served nor the staged set names, as their requests end."""
        while child.is_alive and (idle := child.loaded - self._named_on(child)):
            for digest in sorted(idle):
                if not child.is_used(digest):
                    await self._unload(child, digest)
            if child.loaded - self._named_on(child):
                await child.change()

    async def _unload(self, child: EngineChild, digest: str) -> None:
        try:
            await child.unload_adapter(digest)
        except TransientError as error:
            log.warning("host.adapter_in_use", digest=digest, error=str(error))
            await asyncio.sleep(0.2)
        except AgentError as error:
            log.warning("host.unload_failed", digest=digest, error=str(error))

    def _named_on(self, child: EngineChild) -> frozenset[str]:
        sets = (self._served, self._staged.served if self._staged else None)
        return frozenset(digest for s in sets if s and s.child is child for digest in s.adapters)

    # Keeping the committed set alive

    async def _start_child(self, base: ReleaseRef) -> EngineChild:
        settings = self._settings.child
        config = {"memory_budget_bytes": engine_budget_bytes(), **settings.config}
        if self._isolates:
            config["mixes_adapters"] = False
        settings = replace(settings, config=config)
        child = await EngineChild.start(self._store.bundle(base.digest), settings, self)
        self._children.add(child)
        return child

    def child_beat(self, child: EngineChild, heartbeat: Heartbeat) -> None:
        """A process has sent its figures."""
        self.on_beat(child, heartbeat)

    def child_gone(self, child: EngineChild) -> None:
        """A process has ended; if it served, another one is started."""
        self._children.discard(child)
        self._note_suspects(child)
        if self._served and self._served.child is child:
            lived_s = time.time() - self._served.since_s
            self._num_failures = 1 if lived_s > self._settings.stable_s else self._num_failures + 1
            log.error("host.engine_gone", pid=child.pid, lived_s=lived_s, failures=self._num_failures)
            self.num_restarts += 1
            self._exchange(None)
            self._revive()

    def _note_suspects(self, child: EngineChild) -> None:
        """Count the crash against the adapters that ran; if there were several, from now on each runs by itself."""
        if not child.suspects:
            return
        self._isolates = self._isolates or len(child.suspects) > 1
        quarantined = self.quarantine.note_crash(child.suspects)
        log.error("host.adapters_suspected", digests=sorted(child.suspects), quarantined=sorted(quarantined))
        if quarantined:
            self.on_quarantine()

    @property
    def _is_reviving(self) -> bool:
        return self._revival is not None and not self._revival.done()

    def _revive(self) -> None:
        self._revival = asyncio.create_task(self._bring_up())

    async def _stop_reviving(self) -> None:
        if self._revival:
            self._revival.cancel()
            await asyncio.gather(self._revival, return_exceptions=True)
            self._revival = None

    async def _bring_up(self) -> None:
        """Start the committed set: at once after one failure, then again and again with longer and longer pauses."""
        while self._committed and self._committed.base and self._served is None:
            if self._num_failures > 1:
                await asyncio.sleep(self._settings.restart.delay_s(self._num_failures - 1))
            try:
                await self._bring_up_once(self._committed, self._committed.base)
            except (AgentError, OSError) as error:
                self._num_failures += 1
                self._note_failure(self._committed, error)

    async def _bring_up_once(self, desired: DesiredState, base: ReleaseRef) -> None:
        child = await self._start_child(base)
        try:
            await self._load_adapters(child, desired)
            if not child.is_alive:
                raise EngineGoneError("the engine died as soon as it was up")  # noqa: TRY301 - stopped below
            self._exchange(self._served_on(child, desired))
        except BaseException:
            await child.stop()
            raise
        log.info("host.serving", revision=desired.revision, pid=child.pid, backend=child.backend)

    def _note_failure(self, desired: DesiredState, error: AgentError | OSError) -> None:
        self.problem = problem_of(error)
        log.warning("host.start_failed", code=self.problem.code, error=str(error))
        if self.problem.code == "bad_bundle":
            self.on_damage(desired)

    async def _wait_until_ready(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.ready_wait_s):
                await self._ready.wait()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task
