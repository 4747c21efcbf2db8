"""The running agent: what happens at boot, and what happens again and again. Each stands in one list.

Ties the parts together by events; decides nothing about updates (`updater`), requests (`host`, `local_api`) or metrics
(`recorder`, `telemetry`).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import structlog

from edge_agent.api_gate import read_token
from edge_agent.api_listener import Address, listen_on_port, listen_on_socket, serve
from edge_agent.client import FleetClient
from edge_agent.config import AgentConfig
from edge_agent.device import Device
from edge_agent.engine_child import EngineChild
from edge_agent.engine_wire import Heartbeat
from edge_agent.errors import AgentError, DiskError, FinalError, TransientError, UntrustedError
from edge_agent.host import Host
from edge_agent.journal import replace_file
from edge_agent.local_adapters import LocalAdapters
from edge_agent.local_api import LocalApi
from edge_agent.protocol import DesiredState, DeviceReport, Problem
from edge_agent.recorder import Recorder
from edge_agent.schedule import Backoff, PollSchedule
from edge_agent.state_dir import StateDir
from edge_agent.states import Entry, State
from edge_agent.store import Store
from edge_agent.telemetry import Telemetry
from edge_agent.trust_desired import DesiredVerifier
from edge_agent.trust_metadata import TrustedMetadata
from edge_agent.trust_revocation import Revocation
from edge_agent.updater import Updater
from engine.metrics import Counters, Usage

log = structlog.get_logger()

_STATUS_INTERVAL_S = 5.0
_SYNC_INTERVAL_S = 5.0
_PROGRESS_INTERVAL_S = 2.0
_GARBAGE_INTERVAL_S = 60.0
_GOODBYE_S = 3
_POLLS_PER_REPORT = 3
_POLLS_PER_BATCH = 5
_POLLS_PER_LOOK = 10


@dataclass(frozen=True, slots=True)
class Job:
    """Work that is done again and again: it returns the seconds to wait, unless `wake` comes first."""

    name: str
    work: Callable[[], Awaitable[float]]
    wake: asyncio.Event


@dataclass(frozen=True, slots=True)
class Components:
    """The parts of an agent, as `__main__` has put them together."""

    device: Device
    store: Store
    client: FleetClient
    host: Host
    updater: Updater
    telemetry: Telemetry
    recorder: Recorder
    trusted: TrustedMetadata
    revocation: Revocation


class Daemon:
    """Runs an agent until it is cancelled."""

    def __init__(self, config: AgentConfig, state_dir: StateDir, components: Components) -> None:
        self._config = config
        self._state_dir = state_dir
        self.components = components
        self._schedule = PollSchedule(
            components.device.identity.poll_interval_s, longest_s=config.longest_poll_backoff_s
        )
        components.updater.on_change = self.note_change
        components.updater.on_disk_problem = self.note_news
        components.host.on_damage = self.note_damage
        components.host.on_beat = self.note_beat
        components.host.refuses = components.revocation.problem_with
        components.host.on_quarantine = self.note_quarantine
        device_id = components.device.identity.device_id
        self._verifier = DesiredVerifier(components.trusted, device_id, state_dir.desired)
        self._etag: str | None = None
        self._server_problem: str | None = None
        self._distrust: Problem | None = None
        """Why what the server says is not believed, or can't be remembered; the fleet's people shall hear."""
        self._last_contact_s: float | None = None
        self.api: Address | None = None
        """Where the local API listens; None until it does."""
        self._is_announced = False
        """Whether `api.json` says where."""
        self._poll_due = asyncio.Event()
        self._report_due = asyncio.Event()
        self._status_due = asyncio.Event()
        self._send_due = asyncio.Event()
        self._repair_due = asyncio.Event()
        self._suspect: DesiredState | None = None

    async def run(self) -> None:
        """Boot, then work until cancelled; stops the engine on the way out."""
        boot: Sequence[Callable[[asyncio.TaskGroup], Awaitable[None]]] = (
            self._recover_telemetry,
            self._start_engine,
            self._start_api,
            self._start_updater,
            self._start_jobs,
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                for step in boot:
                    await step(tasks)
        finally:
            await self.components.host.stop()
            await self._hand_over_telemetry()

    def jobs(self) -> Sequence[Job]:
        """Everything periodic."""
        never = asyncio.Event()
        return (
            Job("poll", self._poll, self._poll_due),
            Job("report", self._report, self._report_due),
            Job("sample", self._sample, never),
            Job("sync_telemetry", self._sync_telemetry, never),
            Job("flush_telemetry", self._flush_telemetry, never),
            Job("send_telemetry", self._send_telemetry, self._send_due),
            Job("collect_garbage", self._collect_garbage, never),
            Job("look_for_revocations", self._look_for_revocations, never),
            Job("repair", self._repair, self._repair_due),
            Job("write_status", self._write_status, self._status_due),
        )

    def note_change(self, entry: Entry) -> None:
        """The update machine has moved: the fleet and people shall hear."""
        if entry.state is State.COMMITTED:
            self.components.recorder.update_committed()
        if entry.state is State.FAILED:
            self._poll_due.set()  # the server may want something else by now
        self.note_news()

    def note_news(self) -> None:
        """The fleet and people shall hear how things are now."""
        self._report_due.set()
        self._status_due.set()

    def note_damage(self, desired: DesiredState) -> None:
        """An engine found a bundle of this set damaged."""
        self._suspect = desired
        self._repair_due.set()

    def note_beat(self, child: EngineChild, heartbeat: Heartbeat) -> None:
        """An engine has sent its figures."""
        self.components.recorder.engine_beat(self.components.host, child, heartbeat)

    def note_quarantine(self) -> None:
        """An adapter is not run any more: the fleet and people shall hear."""
        self.components.recorder.adapter_quarantined()
        self.note_news()

    # Boot

    async def _recover_telemetry(self, _tasks: asyncio.TaskGroup) -> None:
        with suppress(OSError):
            await self.components.telemetry.flush()

    async def _start_engine(self, _tasks: asyncio.TaskGroup) -> None:
        self.components.host.start(self.components.updater.entry.served)

    async def _start_api(self, tasks: asyncio.TaskGroup) -> None:
        config = self._config
        token = read_token(config.api_token_file)
        listener = (
            listen_on_socket(config.api_socket.absolute())
            if config.api_socket
            else listen_on_port(config.api_host, config.api_port)
        )
        token_file = str(config.api_token_file.absolute()) if config.api_token_file else None
        self.api = replace(listener.address, token_file=token_file)
        host, store = self.components.host, self.components.store
        local = LocalAdapters(host, store, self._state_dir.local_adapters) if config.local_adapters else None
        api = LocalApi(host, self.components.recorder, self.status, local)
        app = api.app(hosts=listener.hosts, token=token)
        tasks.create_task(serve(app, listener, goodbye_s=_GOODBYE_S))
        log.info("api.listening", address=str(self.api))
        try:
            self._announce()
        except OSError as error:  # a read-only disk: it is tried again, beside the status
            log.warning("api.not_announced", error=str(error))

    def _announce(self) -> None:
        """Say in the state directory where the local API listens."""
        if self.api and not self._is_announced:
            replace_file(self._state_dir.api, json.dumps(self.api.as_document()).encode())
            self._is_announced = True

    async def _start_updater(self, tasks: asyncio.TaskGroup) -> None:
        tasks.create_task(self.components.updater.run())

    async def _start_jobs(self, tasks: asyncio.TaskGroup) -> None:
        for job in self.jobs():
            tasks.create_task(_repeat(job))

    async def _hand_over_telemetry(self) -> None:
        """What is not sent now is sent after the next start."""
        with suppress(AgentError, OSError, TimeoutError):
            async with asyncio.timeout(_GOODBYE_S):
                await self.components.telemetry.flush()
                await self.components.telemetry.send(self.components.client)
        self.components.telemetry.close()

    # Jobs: each returns the seconds until it is due again

    async def _poll(self) -> float:
        try:
            interval_s = await self._hear_desired()
        except AgentError as error:
            self._server_problem = f"{error.code}: {error}"
            is_worth_telling = isinstance(error, UntrustedError | DiskError)
            self._note_distrust(error.as_problem() if is_worth_telling else self._distrust)
            log.warning("poll.failed", code=error.code, error=str(error))
            return self._schedule.failed(error)
        if self._server_problem:
            self._report_due.set()
            self._send_due.set()
        self._server_problem, self._last_contact_s = None, time.time()
        self._note_distrust(None)
        return self._schedule.succeeded(interval_s)

    async def _hear_desired(self) -> float | None:
        """Ask, verify, and pass on what the fleet wants; the seconds until it wants to be asked again."""
        answer = await self.components.client.desired(self._etag)
        if answer.signed is None:
            self._verifier.check_unchanged()
            return answer.poll_after_s
        desired = await self._verifier.open(answer.signed)
        self.components.updater.want(desired)
        self._etag = answer.etag
        return answer.poll_after_s or desired.poll_interval_s

    def _note_distrust(self, problem: Problem | None) -> None:
        if (problem and problem.code) != (self._distrust and self._distrust.code):
            self._distrust = problem
            self.note_news()

    async def _report(self) -> float:
        await self.components.client.report(self._make_report())
        is_downloading = self.components.updater.progress is not None
        return _PROGRESS_INTERVAL_S if is_downloading else self._schedule.interval_s * _POLLS_PER_REPORT

    def _make_report(self) -> DeviceReport:
        components = self.components
        report = components.device.report(
            components.updater.entry, components.updater.progress, components.host, components.store.free_bytes()
        )
        present = components.updater.disk_problem or report.problem or self._distrust or self._forbidden()
        return replace(report, problem=present)

    async def _sample(self) -> float:
        self.components.recorder.look_at(self.components.host)
        return self._config.sample_interval_s

    async def _sync_telemetry(self) -> float:
        await self.components.telemetry.sync()
        return _SYNC_INTERVAL_S

    async def _flush_telemetry(self) -> float:
        await self.components.telemetry.flush()
        self._send_due.set()
        return self._telemetry_interval_s

    @property
    def _telemetry_interval_s(self) -> float:
        return self._config.telemetry_interval_s or min(60.0, _POLLS_PER_BATCH * self._schedule.interval_s)

    async def _send_telemetry(self) -> float:
        await self.components.telemetry.send(self.components.client)
        return self._telemetry_interval_s

    async def _look_for_revocations(self) -> float:
        before = self._forbidden()
        try:
            await self.components.revocation.look()
        except UntrustedError as error:
            log.warning("trust.not_refreshed", code=error.code, error=str(error))
        if self._forbidden() != before:
            self.note_news()
        return self._config.trust_interval_s or _POLLS_PER_LOOK * self._schedule.interval_s

    def _forbidden(self) -> Problem | None:
        """Why something of the served set must not run."""
        served = self.components.updater.entry.served
        return self.components.revocation.problem_with({ref.digest for ref in served.releases}) if served else None

    async def _collect_garbage(self) -> float:
        self.components.updater.collect_garbage()
        return _GARBAGE_INTERVAL_S

    async def _repair(self) -> float:
        """Drop what doesn't verify any more, so that it is fetched again."""
        suspect, self._suspect = self._suspect, None
        if suspect:
            digests = [ref.digest for ref in suspect.releases]
            await asyncio.to_thread(self.components.store.drop_damaged, digests)
            self.components.updater.poke()
        return _GARBAGE_INTERVAL_S

    async def _write_status(self) -> float:
        self._announce()
        data = json.dumps(self.status(), ensure_ascii=False, indent=1).encode()
        replace_file(self._state_dir.status, data, is_durable=False)  # often, and worth nothing after a power loss
        return _STATUS_INTERVAL_S

    def status(self) -> dict[str, Any]:
        """All that a person may want to know, as plain JSON."""
        components = self.components
        found = components.device.status(components.updater.entry, components.updater.progress, components.host)
        if disk := components.updater.disk_problem:
            found["problem"] = asdict(disk)
        return found | {
            "written_at_s": time.time(),
            "api": str(self.api or ""),
            "downloads_held_up_by": components.updater.held_up_by,
            "server": {
                "url": components.device.identity.server,
                "last_contact_at_s": self._last_contact_s,
                "problem": self._server_problem,
            },
            "speed": _speed(components.recorder.last_usage),
            "requests": {name: _figures(counters) for name, counters in components.recorder.by_business().items()},
            "telemetry": {"batches": components.telemetry.num_batches, "spool_bytes": components.telemetry.spool_bytes},
        }


def _speed(usage: Usage | None) -> dict[str, float | None]:
    """Of the last answer."""
    if usage is None:
        return {"decode_tokens_per_s": None, "ttft_s": None}
    return {"decode_tokens_per_s": usage.decode_tokens_per_s or None, "ttft_s": usage.ttft_s}


def _figures(counters: Counters) -> dict[str, float]:
    """Of one business since the start."""
    return {
        "requests": counters.requests,
        "failed": counters.failed,
        "cancelled": counters.cancelled,
        "refused": counters.refused,
        "prefill_tokens": counters.prefill_tokens,
        "cached_tokens": counters.cached_tokens,
        "decode_tokens": counters.decode_tokens,
        "ttft_p50_s": counters.ttft_s.quantile(0.5),
        "ttft_p99_s": counters.ttft_s.quantile(0.99),
    }


async def _repeat(job: Job) -> None:
    """For ever. A failure that may pass is waited out; anything else is a bug and ends the agent."""
    backoff, num_failures = Backoff(1.0, 60.0), 0
    while True:
        job.wake.clear()
        try:
            delay_s = await job.work()
            num_failures = 0
        except (TransientError, FinalError, OSError) as error:
            num_failures += 1
            retry_after_s = getattr(error, "retry_after_s", None)
            delay_s = backoff.delay_s(num_failures)
            log.warning("job.failed", job=job.name, error=str(error), delay_s=delay_s)
            await asyncio.sleep(retry_after_s or 0.0)  # a wake-up must not get around the server's word
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_s):  # not wait_for: in Python 3.11 it can swallow a cancellation
                await job.wake.wait()
