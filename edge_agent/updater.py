"""Drives the update machine: performs the effect of each state, journals what it led to, and tells who listens.

Effects post events and never pick the next state; `edge_agent.states` does. A newer desired state interrupts an effect
wherever the table lists `SUPERSEDED`. Knows the steps of an update, nothing of polling or reports.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import structlog

from edge_agent import checks
from edge_agent.client import FleetClient
from edge_agent.errors import AgentError, EngineGoneError, TransientError, UntrustedError, problem_of
from edge_agent.fetcher import Fetcher
from edge_agent.host import Host
from edge_agent.journal import Journal
from edge_agent.patience import Pace
from edge_agent.probe import Floors, Trial, probe
from edge_agent.protocol import DesiredState, Problem, Progress
from edge_agent.schedule import Backoff
from edge_agent.served import Served
from edge_agent.states import (
    DEADLINE_S,
    RISKY,
    TRANSITIONS,
    Entry,
    Event,
    Happening,
    State,
    advance,
    deadline_exceeded,
    may_retry,
    resume,
)
from edge_agent.store import Store
from edge_agent.trust_metadata import TrustedMetadata
from engine.artifact import Manifest
from engine.errors import BundleError

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class UpdaterSettings:
    """Patience and reserves."""

    disk_reserve_bytes: int = 256 << 20
    spare_adapter_bytes: int = 0
    download_bytes_per_s: int | None = None
    deadline_s: Mapping[State, float] = field(default_factory=lambda: DEADLINE_S)
    floors: Floors = field(default_factory=Floors)
    retry: Backoff = field(default_factory=lambda: Backoff(5.0, 600.0))


@dataclass(frozen=True, slots=True)
class Parts:
    """Those who do the work."""

    journal: Journal
    store: Store
    client: FleetClient
    fetcher: Fetcher
    host: Host
    total_memory_bytes: Callable[[], int]
    trusted: TrustedMetadata


class Updater:
    """Takes the device from the set that it serves to the one that is wanted."""

    def __init__(self, parts: Parts, settings: UpdaterSettings) -> None:
        self.on_change: Callable[[Entry], None] = lambda _: None
        self.on_disk_problem: Callable[[], None] = lambda: None
        self.disk_problem: Problem | None = None
        """Why the journal can't be written just now: the update waits, what is served goes on."""
        self.progress: Progress | None = None
        self._parts = parts
        self._settings = settings
        self._entry = resume(parts.journal.read())
        self._wanted = self._entry.served if self._entry.state is State.IDLE else self._entry.target
        self._poked = asyncio.Event()
        self._num_untrusted = 0
        """Times in a row that the fleet's metadata did not come or did not verify."""
        self._index_sha256: dict[str, str] = {}
        self._effects: Mapping[State, Callable[[], Awaitable[Happening]]] = {
            State.IDLE: self._wait_for_work,
            State.FETCHING: self._fetch_manifests,
            State.ADMITTING: self._admit,
            State.DOWNLOADING: self._download,
            State.VERIFYING: self._verify,
            State.SWITCHING: self._switch,
            State.PROBING: self._probe,
            State.COMMITTED: self._settle,
            State.ROLLING_BACK: self._roll_back,
            State.FAILED: self._wait_for_change_of_mind,
        }

    @property
    def entry(self) -> Entry:
        """Where the machine is."""
        return self._entry

    @property
    def held_up_by(self) -> str:
        """Why no bytes may come now, as `Gate.reason` says it; "" if they may."""
        return self._parts.fetcher.gate.reason

    def want(self, desired: DesiredState) -> None:
        """Hear what the fleet wants, verified and newest."""
        if desired != self._wanted:
            log.info("update.wanted", revision=desired.revision)
            self._wanted = desired
            self._poked.set()

    def poke(self) -> None:
        """Look again at whether there is work, for instance after a bundle was found damaged."""
        self._poked.set()

    async def run(self) -> None:
        """For ever."""
        await self._journal()
        num_repeats = 0
        while True:
            before, happening = self._entry.state, await self._perform()
            self._entry = advance(self._entry, happening)
            await self._journal()
            log.info("update.state", state=self._entry.state, after=happening.event, **self._ids())
            self.on_change(self._entry)
            num_repeats = num_repeats + 1 if (before, happening.event) == (self._entry.state, Event.GAVE_UP) else 0
            if num_repeats:
                await asyncio.sleep(self._settings.retry.delay_s(num_repeats))

    async def _journal(self) -> None:
        """Nothing goes on before the journal knows; a disk that takes no more bytes must not end the serving."""
        for num_failures in itertools.count(1):
            try:
                self._parts.journal.write(self._entry)
            except OSError as error:
                log.warning("journal.not_written", error=str(error))
                self._note_disk(problem_of(error))
                await asyncio.sleep(self._settings.retry.delay_s(num_failures))
            else:
                self._note_disk(None)
                return

    def _note_disk(self, problem: Problem | None) -> None:
        if problem != self.disk_problem:
            self.disk_problem = problem
            self.on_disk_problem()

    def collect_garbage(self) -> None:
        """Remove bundles that nobody needs any more; only while no update is under way."""
        if self._entry.state in (State.IDLE, State.FAILED):
            self._parts.store.collect(self._digests_in_use(), self._settings.spare_adapter_bytes)

    def _ids(self) -> dict[str, object]:
        problem = self._entry.problem
        return {"target": self._entry.target and self._entry.target.revision, "problem": problem and problem.code}

    async def _perform(self) -> Happening:
        """The event that ends the present state: its effect's, or that something newer is wanted."""
        effect = asyncio.ensure_future(self._caught(self._effects[self._entry.state]))
        if Event.SUPERSEDED not in TRANSITIONS[self._entry.state]:
            return await effect
        newer = asyncio.create_task(self._superseded())
        try:
            await asyncio.wait({effect, newer}, return_when=asyncio.FIRST_COMPLETED)
            if effect.done():
                return effect.result()
            return Happening(Event.SUPERSEDED, target=self._wanted)
        finally:
            for task in (effect, newer):
                task.cancel()
            await asyncio.gather(effect, newer, return_exceptions=True)

    async def _superseded(self) -> None:
        while self._wanted == self._entry.target:
            await self._poke_or(None)

    async def _caught(self, effect: Callable[[], Awaitable[Happening]]) -> Happening:
        """Whatever goes wrong in an effect, or takes too long, becomes an event with a reason code."""
        state = self._entry.state
        deadline_s = self._settings.deadline_s[state]
        try:
            async with asyncio.timeout(deadline_s if math.isfinite(deadline_s) else None) as deadline:
                self._parts.fetcher.gate.on_wait = partial(_put_off, deadline)
                return await effect()
        except (AgentError, BundleError) as error:
            is_passing = isinstance(error, TransientError) and not self._took_the_engine_down(error)
            is_untried = isinstance(error, UntrustedError)
            return Happening(Event.GAVE_UP, problem=problem_of(error), retryable=is_passing, is_untried=is_untried)
        except OSError as error:
            if deadline.expired():
                problem, is_passing = deadline_exceeded(state, deadline_s), state not in RISKY
            else:
                problem, is_passing = problem_of(error), True
            return Happening(Event.GAVE_UP, problem=problem, retryable=is_passing)
        except Exception as error:
            if Event.GAVE_UP not in TRANSITIONS[self._entry.state]:
                raise
            log.exception("update.bug", state=self._entry.state)
            detail = f"{type(error).__name__}: {error}. This is a bug of the agent: look at its log and report it."
            return Happening(Event.GAVE_UP, problem=Problem("internal_error", detail), retryable=True)

    def _took_the_engine_down(self, error: AgentError) -> bool:
        """Whether the staged set has crashed the very process that serves: it is not tried on it a second time."""
        staged = self._parts.host.staged
        return isinstance(error, EngineGoneError) and staged is not None and staged.is_in_place

    # Effects, in the order of the machine

    async def _wait_for_work(self) -> Happening:
        while not self._has_work():
            await self._poke_or(None)
        return Happening(Event.WANTED, target=self._wanted)

    def _has_work(self) -> bool:
        if self._wanted is None or self._wanted.revision == 0:  # 0: the fleet has not decided yet
            return False
        is_whole = all(self._parts.store.holds(ref.digest) for ref in self._wanted.releases)
        return self._wanted != self._entry.served or not is_whole

    async def _fetch_manifests(self) -> Happening:
        """Only of releases that are signed; manifests that are here already are not asked for again."""
        self._num_untrusted += 1
        await self._parts.trusted.refresh()
        for ref in self._target.releases:
            signed = await self._parts.trusted.check_release(ref, self._target)
            self._index_sha256[ref.digest] = signed.index_sha256
        self._num_untrusted = 0
        for ref in self._target.releases:
            if self._parts.store.manifest(ref.digest) is None:
                await self._parts.fetcher.fetch_manifest(ref.digest)
        return Happening(Event.FETCHED)

    async def _admit(self) -> Happening:
        """All that can be known to go wrong goes wrong here, before the first byte of payload."""
        store, manifests = self._parts.store, self._manifests()
        checks.check_limits(self._target.limits)
        checks.check_set(self._target, manifests)
        in_use = self._digests_in_use()
        store.collect(in_use, self._settings.spare_adapter_bytes)
        missing = sum(store.room_needed(digest, manifest) for digest, manifest in manifests.items())
        store.make_room(missing + self._settings.disk_reserve_bytes, in_use)
        room = checks.Room(store.free_bytes(), self._settings.disk_reserve_bytes, self._parts.total_memory_bytes())
        checks.check_room(self._target, manifests, missing, room)
        return Happening(Event.ADMITTED)

    async def _download(self) -> Happening:
        manifests = self._manifests()
        total = sum(entry.size_bytes for manifest in manifests.values() for entry in manifest.files)
        missing = sum(self._parts.store.missing_bytes(d, m) for d, m in manifests.items())
        self.progress = Progress(total - missing, total)
        limits = (self._target.limits.download_bytes_per_s, self._settings.download_bytes_per_s)
        pace = Pace(min((limit for limit in limits if limit), default=None))
        try:
            with self._parts.fetcher.gate.within(checks.check_limits(self._target.limits)):
                for digest, manifest in manifests.items():
                    signed = self._index_sha256[digest]
                    await self._parts.fetcher.fetch(digest, manifest, pace, self._count_bytes, index_sha256=signed)
        finally:
            self.progress = None
        return Happening(Event.DOWNLOADED)

    def _count_bytes(self, num_bytes: int) -> None:
        if self.progress is None:
            return  # a chunk may land just after its download was called off
        self.progress = Progress(self.progress.done_bytes + num_bytes, self.progress.total_bytes)

    async def _verify(self) -> Happening:
        for ref in self._target.releases:
            try:
                await asyncio.to_thread(self._parts.store.complete, ref.digest)
            except BundleError as error:  # right when it came, wrong now: the disk's fault, so fetch it again
                raise TransientError(str(error), code=error.code) from error
        return Happening(Event.VERIFIED)

    async def _switch(self) -> Happening:
        await self._parts.host.stage(self._target)
        return Happening(Event.SWITCHED)

    async def _probe(self) -> Happening:
        staged = self._parts.host.staged
        assert staged is not None
        if staged.served:
            await probe(staged.served, self._trials(staged.served), self._floors())
        return Happening(Event.PROBED)

    def _floors(self) -> Floors:
        """The stricter of what the device's settings and the fleet demand."""
        limits, floors = self._target.limits, self._settings.floors
        speed = max(floors.decode_tokens_per_s, limits.min_decode_tokens_per_s or 0.0)
        return replace(floors, decode_tokens_per_s=speed, most_memory_bytes=limits.memory_bytes)

    def _trials(self, staged: Served) -> list[Trial]:
        """Every model of the staged set, but for those that run on the very same process already."""
        now = self._parts.host.served
        known = {m.adapter for m in now.models.values()} if now and now.child is staged.child else set()
        quarantine = self._parts.host.quarantine
        fresh = [m for m in staged.models.values() if m.adapter not in known and m.adapter not in quarantine]
        return [Trial(model, self._parts.store.manifest(model.release.digest)) for model in fresh]

    async def _settle(self) -> Happening:
        """The journal names the new set by now: serve it."""
        await self._parts.host.activate(self._target)
        return Happening(Event.SETTLED)

    async def _roll_back(self) -> Happening:
        await self._parts.host.discard()
        return Happening(Event.ROLLED_BACK if self._entry.problem else Event.CLEARED)

    async def _wait_for_change_of_mind(self) -> Happening:
        """A failed revision stays failed until a newer one comes.

        What may have been bad luck is tried a few times; what was not even tried, for ever.
        """
        num_failures = max(1, self._num_untrusted) if self._entry.is_untried else self._entry.attempt + 1
        delay_s = self._settings.retry.delay_s(num_failures) if may_retry(self._entry) else None
        deadline_s = None if delay_s is None else asyncio.get_running_loop().time() + delay_s
        while self._wanted is None or self._wanted == self._entry.target:
            if not await self._poke_or(deadline_s):
                return Happening(Event.RETRY)
        return Happening(Event.WANTED, target=self._wanted)

    # What effects share

    @property
    def _target(self) -> DesiredState:
        assert self._entry.target is not None
        return self._entry.target

    def _manifests(self) -> dict[str, Manifest]:
        """The target's manifests; `_fetch_manifests` has brought them all."""
        found = {ref.digest: self._parts.store.manifest(ref.digest) for ref in self._target.releases}
        if lost := [digest for digest, manifest in found.items() if manifest is None]:
            raise TransientError(f"the manifest of {lost[0][:12]} is gone from the disk", code="disk_error")
        return {digest: manifest for digest, manifest in found.items() if manifest}

    def _digests_in_use(self) -> set[str]:
        sets = (self._entry.served, self._entry.target)
        return self._parts.host.digests_in_use() | {ref.digest for s in sets if s for ref in s.releases}

    async def _poke_or(self, deadline_s: float | None) -> bool:
        """Wait to be poked; False if the deadline of the loop's clock came first."""
        try:
            async with asyncio.timeout_at(deadline_s):
                await self._poked.wait()
        except TimeoutError:
            return False
        self._poked.clear()
        return True


def _put_off(deadline: asyncio.Timeout, waited_s: float) -> None:
    """Time in which nothing may be downloaded is nobody's fault."""
    if (ends_at_s := deadline.when()) is not None:
        deadline.reschedule(ends_at_s + waited_s)
