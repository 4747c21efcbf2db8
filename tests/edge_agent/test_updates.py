"""Updates and what can go wrong in them: case, fault, expected chain of states, expected report."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edge_agent.host import Host
from edge_agent.part_file import Pieces
from edge_agent.protocol import DesiredState, Limits, ReleaseRef, UpdateState
from edge_agent.state_dir import StateDir
from edge_agent.states import DEADLINE_S
from tests.edge_agent.conftest import Catalogue
from tests.simulators.agent_run import running_agent
from tests.simulators.fleet_server import Cut, FleetServer, Hold, Lost, Status, WrongBytes

pytestmark = pytest.mark.anyio

TO_VERIFYING = ["fetching", "admitting", "downloading", "verifying"]
TO_PROBING = [*TO_VERIFYING, "switching", "probing"]
ALL_THE_WAY = [*TO_PROBING, "committed", "idle"]

Arrange = Callable[[FleetServer, Catalogue, ReleaseRef], ReleaseRef]


def adapter(tag: str = "home 2", **options: object) -> Arrange:
    return lambda _fleet, catalogue, _base: catalogue.adapter("home", tag, **options)


def with_faults(path: str, *faults: object) -> Arrange:
    """A good adapter, and faults before the requests for its files or its manifest."""

    def arrange(fleet: FleetServer, catalogue: Catalogue, _base: ReleaseRef) -> ReleaseRef:
        release = catalogue.adapter("home", "home 2")
        fleet.order(path, *faults)
        return release

    return arrange


def lying_manifest(fleet: FleetServer, catalogue: Catalogue, _base: ReleaseRef) -> ReleaseRef:
    return replace(catalogue.adapter("home", "home 2"), digest=catalogue.adapter("other", "other").digest[::-1])


def of_another_base(_fleet: FleetServer, catalogue: Catalogue, _base: ReleaseRef) -> ReleaseRef:
    catalogue.base("other base")
    return catalogue.adapter("home", "home 2", base="other base")


def a_base_as_adapter(_fleet: FleetServer, catalogue: Catalogue, _base: ReleaseRef) -> ReleaseRef:
    return catalogue.base("other base", name="home")


def named_like_the_base(_fleet: FleetServer, catalogue: Catalogue, _base: ReleaseRef) -> ReleaseRef:
    return catalogue.adapter("base", "home 2")


def not_a_manifest(fleet: FleetServer, _catalogue: Catalogue, _base: ReleaseRef) -> ReleaseRef:
    return fleet.publish_manifest("home", "2.0.0", b'{"kind":"adapter"}')


@dataclass(frozen=True, slots=True)
class Case:
    """How an update is spoilt, and what must come of it; `code` None: it succeeds all the same."""

    arrange: Arrange
    states: list[str]
    code: str | None = None


CASES = {
    "nothing wrong": Case(adapter(), ALL_THE_WAY),
    "file cut": Case(with_faults("/files/", Cut(50)), ALL_THE_WAY),
    "file wrong once": Case(with_faults("/files/", WrongBytes()), ALL_THE_WAY),
    "manifest cut": Case(with_faults("/releases/", Cut(50)), ALL_THE_WAY),
    "server down for a while": Case(with_faults("/releases/", *[Status(503)] * 3), ALL_THE_WAY),
    "file gone": Case(with_faults("/files/", Status(410, "gone")), [*TO_VERIFYING[:3], "failed"], "gone"),
    "file not found": Case(with_faults("/files/", Status(404, "nope")), [*TO_VERIFYING[:3], "failed"], "nope"),
    "file always wrong": Case(
        with_faults("/files/", *[WrongBytes()] * 2), [*TO_VERIFYING[:3], "failed"], "digest_mismatch"
    ),
    "manifest not found": Case(with_faults("/releases/", Status(404, "nope")), ["fetching", "failed"], "nope"),
    "manifest wrong once": Case(with_faults("/releases/", WrongBytes()), ALL_THE_WAY),
    "manifest always wrong": Case(with_faults("/releases/", *[WrongBytes()] * 2), ["fetching", "failed"], "bad_bundle"),
    "manifest of no sense": Case(not_a_manifest, ["fetching", "failed"], "bad_bundle"),
    "adapter of another base": Case(of_another_base, ["fetching", "failed"], "wrong_software"),
    "base as adapter": Case(a_base_as_adapter, ["fetching", "failed"], "wrong_software"),
    "name twice": Case(named_like_the_base, ["fetching", "admitting", "failed"], "duplicate_name"),
    "bad options": Case(
        adapter(business={"sampling": {"heat": 1}}), ["fetching", "admitting", "failed"], "bad_business_options"
    ),
    "golden prompt answered otherwise": Case(
        adapter(golden={"ping": "pong"}), [*TO_PROBING, "rolling_back", "failed"], "golden_prompt_failed"
    ),
    "golden prompt too long": Case(
        adapter(golden={"too long": "x"}), [*TO_PROBING, "rolling_back", "failed"], "context_length_exceeded"
    ),
}


@pytest.mark.parametrize("name", list(CASES))
async def test_an_update(fleet, catalogue, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    base, old = catalogue.base(), catalogue.adapter("home", "home 1")
    first = fleet.want(base, old)
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(first)
        agent.states.clear()
        second = fleet.want(base, case.arrange(fleet, catalogue, base))
        await (agent.until_serving(second) if case.code is None else agent.until_failed(second))
        assert [str(state) for state in agent.states] == case.states
        assert await agent.ask("home", "hi") == ("home 2: hi" if case.code is None else "home 1: hi")
        await agent.until(lambda: fleet.reports[-1].state == case.states[-1])
        report = fleet.reports[-1]
        assert (report.problem.code if report.problem else None) == case.code
        assert report.revision == (second if case.code is None else first)
        assert report.target_revision == second
        assert report.adapters == (fleet.desired.adapters if case.code is None else (old,))


async def test_nothing_is_downloaded_that_is_not_admitted(fleet, catalogue, tmp_path: Path) -> None:
    release = catalogue.base(size_bytes=50_000)
    fleet.want(release)
    async with running_agent(tmp_path / "state", fleet, disk_reserve_bytes=1 << 60) as agent:
        await agent.until_failed(1)
        assert agent.updater.entry.problem.code == "disk_full"
    fleet.want(release, limits=replace(fleet.desired.limits, memory_bytes=1 << 20))
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_failed(2)
        assert agent.updater.entry.problem.code == "not_enough_memory"
    assert fleet.count("GET", "/files/") == 0


async def test_evidence_says_what_the_golden_prompt_got(fleet, catalogue, tmp_path: Path) -> None:
    base = catalogue.base()
    fleet.want(base, catalogue.adapter("home", "home 1", golden={"ping": "pong"}))
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_failed(1)
        evidence = agent.updater.entry.problem.evidence
        assert evidence == {"model": "home", "prompt": "ping", "expected": "pong", "got": "home 1: ping"}


async def test_a_failed_revision_is_not_tried_again_and_a_newer_one_is(fleet, catalogue, tmp_path: Path) -> None:
    base = catalogue.base()
    fleet.want(base, catalogue.adapter("home", "bad", golden={"ping": "pong"}))
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_failed(1)
        polls = fleet.count("GET", "/desired")
        await agent.until(lambda: fleet.count("GET", "/desired") > polls + 5)
        assert agent.states.count("probing") == 1
        second = fleet.want(base, catalogue.adapter("home", "good"))
        await agent.until_serving(second)


async def test_a_passing_failure_is_tried_a_few_times(fleet, catalogue, tmp_path: Path) -> None:
    fleet.want(catalogue.base())
    fleet.order("/files/", *[Status(503)] * 20)
    async with running_agent(tmp_path / "state", fleet, download_max_retries=3) as agent:
        await agent.until_serving(1)
        assert agent.states.count("failed") >= 2


async def test_an_adapter_too_big_for_now_keeps_the_old_one(fleet, catalogue, tmp_path: Path) -> None:
    base = catalogue.base()
    fleet.want(base, catalogue.adapter("home", "home 1"))
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        fleet.want(base, catalogue.adapter("home", "too big"))
        await agent.until(lambda: agent.updater.entry.attempt == 2)
        assert agent.updater.entry.target.revision == 2
        assert await agent.ask("home", "hi") == "home 1: hi"


OVERTAKEN = {
    "while fetching": ("/releases/", ["fetching", "fetching", *ALL_THE_WAY[1:]]),
    "while downloading": ("/files/", ["fetching", "admitting", "downloading", "fetching", *ALL_THE_WAY[1:]]),
}


@pytest.mark.parametrize("name", list(OVERTAKEN))
async def test_a_newer_desired_state_overtakes(fleet, catalogue, tmp_path: Path, name: str) -> None:
    path, states = OVERTAKEN[name]
    base, stuck, wanted = catalogue.base(), catalogue.adapter("home", "stuck"), catalogue.adapter("home", "wanted")
    fleet.want(base)
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        agent.states.clear()
        hold = Hold(threading.Event())
        fleet.order(path, hold)
        fleet.want(base, stuck)
        await asyncio.to_thread(hold.reached.wait)
        third = fleet.want(base, wanted)
        await agent.until_serving(third)
        hold.release.set()
        assert [str(state) for state in agent.states] == states
        assert await agent.ask("home", "hi") == "wanted: hi"


async def test_a_switch_that_is_overtaken_is_cleared_away(fleet, catalogue, tmp_path: Path) -> None:
    base, old = catalogue.base(), catalogue.adapter("home", "old")
    fleet.want(base, old)
    async with running_agent(tmp_path / "state", fleet, engine={"load_s": 0.5}) as agent:
        await agent.until_serving(1)
        agent.states.clear()
        fleet.want(base, catalogue.adapter("home", "overtaken"))
        await agent.until(lambda: "switching" in agent.states)
        third = fleet.want(base, old, catalogue.adapter("car", "car"))
        await agent.until_serving(third)
        assert agent.states[4:7] == ["switching", "rolling_back", "idle"]
        assert await agent.ask("home", "hi") == "old: hi"
        await agent.until(lambda: len(agent.host.served.child.loaded) == 2)


async def test_only_what_is_new_is_downloaded(fleet, catalogue, tmp_path: Path) -> None:
    base, home = catalogue.base(), catalogue.adapter("home", "home")
    fleet.want(base, home)
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        before = fleet.count("GET", "/files/")
        second = fleet.want(base, home, catalogue.adapter("car", "car"))
        await agent.until_serving(second)
        assert fleet.count("GET", "/files/") == before + 1
        assert fleet.count("GET", "/releases/") == 2 * 3  # a manifest and an index each
        fourth = fleet.want(base) and fleet.want(base, home)
        await agent.until_serving(fourth)
        assert fleet.count("GET", "/files/") == before + 1


async def test_what_nobody_needs_leaves_the_disk(fleet, catalogue, tmp_path: Path) -> None:
    base = catalogue.base()
    home, car = catalogue.adapter("home", "home"), catalogue.adapter("car", "car")
    fleet.want(base, home)
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        await agent.until_serving(fleet.want(base, car))
        await agent.until(lambda: agent.host.digests_in_use() == {base.digest, car.digest})
        agent.updater.collect_garbage()
        kept = {path.name for path in (tmp_path / "state" / "bundles").iterdir()}
        assert kept == {base.digest, car.digest}


async def test_an_adapter_that_comes_back_is_not_downloaded_again(fleet, catalogue, tmp_path: Path) -> None:
    base = catalogue.base()
    home, car = catalogue.adapter("home", "home"), catalogue.adapter("car", "car")
    fleet.want(base, home)
    async with running_agent(tmp_path / "state", fleet, spare_adapter_bytes=1 << 20) as agent:
        await agent.until_serving(1)
        await agent.until_serving(fleet.want(base, car))
        await agent.until(lambda: agent.host.digests_in_use() == {base.digest, car.digest})
        agent.updater.collect_garbage()
        before = fleet.count("GET", "/files/")
        await agent.until_serving(fleet.want(base, home))
        assert fleet.count("GET", "/files/") == before


async def test_a_pause_holds_a_download_up_and_status_says_so(fleet, catalogue, tmp_path: Path) -> None:
    state_dir = StateDir(tmp_path / "state")
    state_dir.make()
    state_dir.paused.touch()
    fleet.want(catalogue.base())
    async with running_agent(state_dir.root, fleet) as agent:
        await agent.until(lambda: agent.updater.progress)
        assert agent.daemon.status()["downloads_held_up_by"] == "paused"
        await agent.until(lambda: fleet.count("GET", "/desired") > 5)
        assert fleet.count("GET", "/files/") == 0
        state_dir.paused.unlink()
        await agent.until_serving(1)


async def test_time_in_which_nothing_may_come_does_not_count_against_the_deadline(
    fleet, catalogue, tmp_path: Path
) -> None:
    state_dir = StateDir(tmp_path / "state")
    async with running_agent(state_dir.root, fleet) as agent:
        agent.updater._parts.fetcher.gate._look_again_s = 0.05
        deadlines = {**DEADLINE_S, UpdateState.DOWNLOADING: 1.0}
        agent.updater._settings = replace(agent.updater._settings, deadline_s=deadlines)
        state_dir.paused.touch()
        fleet.want(catalogue.base())
        await agent.until(lambda: agent.updater.progress)
        await asyncio.sleep(2.0)
        assert UpdateState.FAILED not in agent.states
        state_dir.paused.unlink()
        await agent.until_serving(1)


def window(*, opens_in_h: int) -> str:
    """Two hours of the day, beginning so many hours from now."""
    start = datetime.now(UTC) + timedelta(hours=opens_in_h)
    return f"{start:%H:%M}-{start + timedelta(hours=2):%H:%M} UTC"


async def test_a_window_of_the_fleet_holds_a_download_up_until_it_is_changed(fleet, catalogue, tmp_path: Path) -> None:
    base = catalogue.base()
    fleet.want(base, limits=Limits(download_windows=(window(opens_in_h=-1), window(opens_in_h=3))))
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until(lambda: agent.updater.progress)
        assert agent.daemon.status()["downloads_held_up_by"] == "outside_window"
        await agent.until(lambda: fleet.count("GET", "/desired") > 5)
        assert fleet.count("GET", "/files/") == 0
        await agent.until_serving(fleet.want(base, limits=Limits(download_windows=(window(opens_in_h=-1),))))
        assert agent.daemon.status()["downloads_held_up_by"] == ""


async def test_limits_alone_change_without_a_download_or_another_engine(fleet, catalogue, tmp_path: Path) -> None:
    base, home = catalogue.base(), catalogue.adapter("home", "home 1")
    fleet.want(base, home)
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        child, num_files = agent.host.served.child, fleet.count("GET", "/files/")
        await agent.until_serving(fleet.want(base, home, limits=Limits(download_bytes_per_s=1 << 20)))
        assert agent.host.served.child is child
        assert fleet.count("GET", "/files/") == num_files


async def test_a_limit_that_nobody_can_keep_to_is_a_reason_and_no_crash(fleet, catalogue, tmp_path: Path) -> None:
    base, home = catalogue.base(), catalogue.adapter("home", "home 1")
    fleet.want(base)
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        agent.states.clear()
        await agent.until_failed(fleet.want(base, home, limits=Limits(download_windows=("at night",))))
        assert agent.states == ["fetching", "admitting", "failed"]
        await agent.until(lambda: fleet.reports[-1].problem)
        problem = fleet.reports[-1].problem
        assert (problem.code, problem.evidence) == ("bad_limit", {"limit": "download_windows"})
        assert await agent.ask("base", "still there?") == "base: still there?"
        await agent.until_serving(fleet.want(base, home, limits=Limits()))


async def test_a_full_disk_is_reported_and_survived(fleet, catalogue, tmp_path: Path) -> None:
    base = catalogue.base()
    fleet.want(base)
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        store, is_full = agent.daemon.components.store, threading.Event()
        write = store._write

        def write_while_there_is_room(descriptor: int, pieces: Pieces, offset: int) -> int:
            if is_full.is_set():
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(descriptor, pieces, offset)

        store._write = write_while_there_is_room
        is_full.set()
        second = fleet.want(base, catalogue.adapter("home", "home"))
        await agent.until(lambda: fleet.reports and fleet.reports[-1].problem)
        assert fleet.reports[-1].problem.code == "disk_full"
        assert await agent.ask("base", "still there?") == "base: still there?"
        is_full.clear()
        await agent.until_serving(second)


async def test_nothing_is_done_until_the_fleet_has_decided(fleet, tmp_path: Path) -> None:
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until(lambda: fleet.count("GET", "/desired") > 3)
        assert agent.states == []


async def test_an_empty_set_serves_nothing(fleet, catalogue, tmp_path: Path) -> None:
    fleet.want(catalogue.base())
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        fleet.want(None)
        await agent.until(lambda: agent.updater.entry.served.revision == 2 and agent.states[-1] == "idle")
        answer = await agent.api.post("/v1/completions", json={"model": "base", "prompt": "hi"})
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0


async def test_the_wanted_state_is_polled_with_its_etag_at_the_servers_pace(fleet, catalogue, tmp_path: Path) -> None:
    fleet.want(catalogue.base())
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        fleet.poll_after_s = 3600.0
        polls = fleet.count("GET", "/desired")
        await agent.until(lambda: fleet.count("GET", "/desired") > polls)
        await asyncio.sleep(0.3)
        assert fleet.count("GET", "/desired") == polls + 1


async def test_an_older_revision_is_not_listened_to(fleet, catalogue, tmp_path: Path) -> None:
    base = catalogue.base()
    fleet.want(base, revision=7)
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(7)
        fleet.want(None, revision=6)
        await agent.until(lambda: fleet.reports[-1].problem and fleet.reports[-1].problem.code == "desired_rollback")
        assert agent.revision == 7


async def test_progress_is_reported_in_the_middle_of_a_download(fleet, catalogue, tmp_path: Path) -> None:
    fleet.want(catalogue.base(size_bytes=100_000))
    async with running_agent(tmp_path / "state", fleet) as agent:
        hold = Hold(threading.Event())
        fleet.order("/files/", hold)
        await asyncio.to_thread(hold.reached.wait)
        await agent.until(lambda: any(report.progress for report in fleet.reports))
        hold.release.set()
        await agent.until_serving(1)
    assert fleet.reports[-1].progress is None
    assert {report.progress.total_bytes for report in fleet.reports if report.progress} == {100_002}


async def test_a_lost_answer_to_a_report_costs_nothing(fleet, catalogue, tmp_path: Path) -> None:
    fleet.order("/report", Lost(), Status(500), Lost())
    fleet.want(catalogue.base())
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        await agent.until(lambda: fleet.reports and fleet.reports[-1].revision == 1)


async def test_the_device_serves_while_the_server_is_away(fleet, catalogue, tmp_path: Path) -> None:
    base = catalogue.base()
    fleet.want(base)
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        fleet.stop()
        await agent.until(lambda: agent.daemon.status()["server"]["problem"])
        assert await agent.ask("base", "still there?") == "base: still there?"
        second = fleet.want(base, catalogue.adapter("home", "home"))
        fleet.start()
        await agent.until_serving(second)


async def test_a_device_with_a_wrong_clock_goes_by_the_servers(fleet, catalogue, tmp_path: Path) -> None:
    fleet.want(catalogue.base())
    async with running_agent(tmp_path / "state", fleet) as agent:
        agent.daemon.components.client._signer._offset_s = -1e6
        await agent.until_serving(1)


async def test_a_probe_that_takes_too_long_is_given_up_by_name(fleet, catalogue, tmp_path: Path) -> None:
    base = catalogue.base()
    fleet.want(base)
    async with running_agent(tmp_path / "state", fleet, probe_timeout_s=0.3, engine={"step_s": 0.3}) as agent:
        await agent.until_failed(1)
        problem = agent.updater.entry.problem
        assert (problem.code, problem.evidence["state"]) == ("deadline_exceeded", "probing")
        assert not agent.updater.entry.retryable


async def test_an_effect_that_hangs_is_given_up_and_tried_again(fleet, catalogue, tmp_path: Path) -> None:
    hold = Hold(threading.Event())
    fleet.order("/releases/", hold)
    fleet.want(catalogue.base())
    async with running_agent(tmp_path / "state", fleet) as agent:
        deadlines = {**DEADLINE_S, UpdateState.FETCHING: 0.2}
        agent.updater._settings = replace(agent.updater._settings, deadline_s=deadlines)
        await agent.until(lambda: any(r.problem and r.problem.code == "deadline_exceeded" for r in fleet.reports))
        await agent.until_serving(1)
        hold.release.set()


async def test_an_activation_that_fails_is_done_again(fleet, catalogue, tmp_path: Path, monkeypatch) -> None:
    activate, num_tries = Host.activate, []

    async def fails_first(host: Host, desired: DesiredState) -> None:
        num_tries.append(desired.revision)
        if len(num_tries) == 1:
            raise OSError("out of luck")
        await activate(host, desired)

    monkeypatch.setattr(Host, "activate", fails_first)
    fleet.want(catalogue.base())
    async with running_agent(tmp_path / "state", fleet) as agent:
        await agent.until_serving(1)
        assert agent.states[-3:] == ["committed", "committed", "idle"]
