"""Runs one case: strike, start again, converge; and judges what was seen.

After every fault the device serves the old set or the new one, never neither and nothing else; it reaches what the
fleet wants; no file that was verified is asked for again; and its last report is true.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge_agent.errors import AlreadyRunningError
from edge_agent.journal import Journal
from edge_agent.protocol import ReleaseRef, UpdateState
from edge_agent.states import Entry
from engine.artifact import read_manifest
from engine.errors import BundleError
from tests.kill_matrix.agent import ForkedAgent
from tests.kill_matrix.cases import Case
from tests.kill_matrix.faults import Act, Fault, Point
from tests.kill_matrix.scenarios import SCENARIOS, Scenario, World
from tests.simulators.fleet_server import FleetServer

PATIENCE_S = 60.0
MOST_STARTS = 8


class WrongError(AssertionError):
    """The case has failed; the message says in what."""


@dataclass(slots=True)
class Outcome:
    """What came of a case."""

    case: Case
    resumed_from: str = ""
    served_at_once: str | None = None
    ended: str = ""
    wrong: str = ""
    seconds: float = 0.0


class Client:
    """Somebody who asks the device all the time."""

    def __init__(self, agent: ForkedAgent) -> None:
        self._agent = agent
        self._is_over = threading.Event()
        self.answers: list[str | None] = []
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        while not self._is_over.wait(0.1):
            self.answers.append(self._agent.ask("home"))

    def close(self) -> list[str | None]:
        """Stop; returns all answers, None where there was none."""
        self._is_over.set()
        self._thread.join(30)
        return self.answers


@dataclass(slots=True)
class Stage:
    """Where a case is played."""

    scenario: Scenario
    problem: str | None
    """What the report must name in the end; None if the new set must be served."""
    fleet: FleetServer
    agent: ForkedAgent
    new: list[ReleaseRef]
    notes: Path
    verified: set[str] = field(default_factory=set)
    num_requests: int = 0
    is_late: bool = False
    """Whether the device's clock is years ahead."""

    def fault(self, case: Case | None = None) -> Fault:
        """What the agent is started with: the case's fault, or none."""
        plain = Fault(self.notes, is_short_of_memory=self.scenario.is_in_sequence)
        return replace(plain, act=case.act, point=case.point, side=case.side) if case else plain

    @property
    def entry(self) -> Entry:
        return Journal(self.agent.state_dir).read()

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S) -> None:
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if self.agent.exit_code is not None:
                raise WrongError(f"the agent ended with {self.agent.exit_code} while waiting for {what}")
            if time.monotonic() > deadline_s:
                raise WrongError(f"waited in vain for {what}; {self.entry.state}, {self.entry.problem}")
            time.sleep(0.03)

    @property
    def is_struck(self) -> bool:
        return (self.notes / "struck").exists()

    def until_struck(self) -> None:
        self.until(lambda: self.is_struck or (self.is_settled() and self.has_reported()), "the fault")
        if not self.is_struck:
            raise WrongError("the update has ended without the fault")

    def until_answered(self, client: Client) -> None:
        """Some more answers: the device serves on."""
        num_answers = sum(map(bool, client.answers))
        self.until(lambda: sum(map(bool, client.answers)) > num_answers + 5, "answers")

    def is_settled(self) -> bool:
        entry = self.entry
        target = entry.target.revision if entry.target else 0
        return target == self.fleet.desired.revision and (entry.state is UpdateState.IDLE or _has_failed(entry))

    def has_reported(self) -> bool:
        """Whether the last report is about the state that the journal holds now."""
        report, entry = self.fleet.reports[-1] if self.fleet.reports else None, self.entry
        served = entry.served.revision if entry.served else 0
        return report is not None and (report.state, report.revision) == (entry.state, served)


def _has_failed(entry: Entry) -> bool:
    return entry.state is UpdateState.FAILED and not entry.retryable


def run_case(world: World, case: Case) -> Outcome:
    """Play a case; the outcome says what was wrong, if anything was."""
    outcome, started_s = Outcome(case), time.monotonic()
    directory = world.directory / "cases" / re.sub(r"[^a-z0-9.-]+", "-", str(case))
    try:
        with ExitStack() as stack:
            stage = _set_up(world, SCENARIOS[case.scenario], directory, stack)
            stage.problem, stage.is_late = expected_problem(case), case.act is Act.CLOCK_FORWARD
            _strike(stage, case)
            outcome.resumed_from = stage.entry.state
            outcome.served_at_once = _come_back(stage)
            outcome.ended = _judge(stage)
    except WrongError as error:
        outcome.wrong = f"{error} (log: {directory / 'state.log'})"
    else:
        shutil.rmtree(directory)
    outcome.seconds = time.monotonic() - started_s
    return outcome


def trace(world: World, scenario: Scenario) -> list[Point]:
    """The points that an undisturbed update goes through."""
    directory = world.directory / "traces" / scenario.name
    with ExitStack() as stack:
        stage = _set_up(world, scenario, directory, stack)
        stage.agent.start(stage.fault())
        client = Client(stage.agent)
        _want_new(stage, client)
        stage.until(stage.is_settled, "the end of the update")
        client.close()
        time.sleep(0.2)  # what was written after the last state
    lines = (directory / "notes" / "trace").read_text().splitlines()
    return [Point(**json.loads(line)) for line in lines]


def _set_up(world: World, scenario: Scenario, directory: Path, stack: ExitStack) -> Stage:
    notes = directory / "notes"
    notes.mkdir(parents=True)
    fleet = world.fleet(scenario)
    stack.callback(lambda: fleet.is_away or fleet.stop())
    world.device(scenario, fleet, directory / "state")
    world.want(fleet, scenario.old)
    agent = ForkedAgent(directory / "state", fleet.url, {"ready_wait_s": 0.2} if scenario.is_in_sequence else {})
    stack.callback(agent.kill)
    return Stage(scenario, None, fleet, agent, world.refs(scenario.new), notes)


def _strike(stage: Stage, case: Case) -> None:
    """From the old set towards the new one with the fault on the way, until the agent is gone."""
    stage.agent.start(stage.fault(case))
    client = Client(stage.agent)
    _want_new(stage, client)
    match case.act:
        case Act.KILL | Act.POWER_LOSS:
            _wait_for_kill(stage)
        case Act.BOOT_LOOP:
            _start_until_it_stays(stage, case)
        case Act.DISK_FULL | Act.READ_ONLY:
            stage.until_struck()
            stage.until_answered(client)
            (stage.notes / "over").touch()
        case Act.SERVER_GONE:
            stage.until(stage.agent.is_paused, "the fault")
            stage.fleet.stop()
            stage.agent.signal(signal.SIGCONT)
            stage.until_answered(client)
            stage.fleet.start()
        case Act.SECOND_AGENT:
            stage.until(stage.agent.is_paused, "the fault")
            _start_second(stage)
            stage.agent.signal(signal.SIGCONT)
        case _:
            stage.until_struck()
    if case.act not in (Act.KILL, Act.POWER_LOSS):
        stage.until(stage.is_settled, "the end of the update")
        stage.agent.stop()
    answers = client.close()
    if case.act is not Act.BOOT_LOOP:  # there nobody is home most of the time
        _check_answers(stage, _until_last(answers))
    stage.verified = verified_files(stage.agent.state_dir)
    stage.num_requests = len(stage.fleet.requests)


def _wait_for_kill(stage: Stage) -> None:
    while stage.agent.wait(0.05) is None:
        if stage.is_settled() and stage.has_reported() and not stage.is_struck:
            raise WrongError("the update has ended without the fault")
    if stage.agent.exit_code != -signal.SIGKILL:
        raise WrongError(f"exit code {stage.agent.exit_code} instead of a kill")


def _start_until_it_stays(stage: Stage, case: Case) -> None:
    """Started again after each kill, as an init system would."""
    for _ in range(MOST_STARTS):
        while stage.agent.wait(0.05) is None:
            if stage.is_settled():
                return
        stage.agent.start(stage.fault(case))
    raise WrongError(f"still killed after {MOST_STARTS} starts")


def _start_second(stage: Stage) -> None:
    second = ForkedAgent(stage.agent.state_dir, stage.fleet.url)
    log = stage.agent.log.read_text()
    second.start(stage.fault(), keeps_api=True)
    if second.wait(PATIENCE_S) != AlreadyRunningError.exit_code:
        raise WrongError(f"a second agent ended with {second.exit_code}")
    if f"process {stage.agent.process.pid}" not in stage.agent.log.read_text()[len(log) :]:
        raise WrongError("the second agent does not say who was first")


def _want_new(stage: Stage, client: Client) -> None:
    """Roll the new set out once the old one is served, or once the fault has come: then it waits for what follows."""
    deadline_s = time.monotonic() + PATIENCE_S
    while stage.scenario.old and not any(client.answers) and stage.agent.exit_code is None:
        if stage.agent.is_paused():
            break
        if time.monotonic() > deadline_s:
            raise WrongError("the old set did not come up")
        time.sleep(0.01)
    stage.fleet.want(stage.new[0], *stage.new[1:])


def _come_back(stage: Stage) -> str | None:
    """Without a server the device serves from its disk, returned is what; with one it reaches what is wanted."""
    stage.fleet.stop()
    served, served_at_once = stage.entry.served, None
    stage.agent.start(stage.fault())
    client = Client(stage.agent)
    if served:
        stage.until(lambda: any(client.answers), "an answer without a server")
        served_at_once = next(filter(None, client.answers))
    stage.fleet.start()
    stage.until(stage.is_settled, "the end of the update")
    stage.until(stage.has_reported, "a true report")
    num_answers = len(client.answers)
    stage.until(lambda: len(client.answers) > num_answers + 1, "an answer at the end")
    answers = client.close()
    _check_answers(stage, _from_first(answers))
    if answers[-1] != (stage.scenario.old_answer if stage.problem else stage.scenario.new_answer):
        raise WrongError(f"in the end it answers {answers[-1]!r}")
    if code := stage.agent.stop():
        raise WrongError(f"exit code {code} after SIGTERM")
    return served_at_once


def _check_answers(stage: Stage, answers: list[str | None]) -> None:
    known = {stage.scenario.old_answer, stage.scenario.new_answer}
    if stage.scenario.problem:
        known = {stage.scenario.old_answer}
    if strange := [a for a in answers if a is not None and a not in known]:
        raise WrongError(f"it answered {strange[0]!r}")
    if stage.scenario.is_in_sequence:
        return
    if num_refused := answers.count(None):
        raise WrongError(f"{num_refused} of {len(answers)} requests got no answer")


def _judge(stage: Stage) -> str:
    """How it has ended."""
    entry, report = stage.entry, stage.fleet.reports[-1]
    served = entry.served
    problem = report.problem.code if report.problem else None
    if problem == "desired_expired" and stage.is_late:
        problem = None  # true by the device's clock, and no reason to stop serving
    if problem != stage.problem:
        raise WrongError(f"the report names {problem} instead of {stage.problem}")
    if served is None or (report.base, report.adapters) != (served.base, served.adapters):
        raise WrongError("the report names another set than the journal")
    again = {path.rpartition("/")[2] for _, path, _ in stage.fleet.requests[stage.num_requests :] if "/files/" in path}
    if twice := again & stage.verified:
        raise WrongError(f"{len(twice)} verified files were asked for again")
    return str(entry.state) if problem is None else f"{entry.state}, {problem}"


def expected_problem(case: Case) -> str | None:
    return "restarted_too_often" if case.act is Act.BOOT_LOOP else SCENARIOS[case.scenario].problem


def verified_files(state_dir: Path) -> set[str]:
    """SHA-256 of the files that have their final names."""
    found = set()
    for directory in (*(state_dir / "bundles").iterdir(), *(state_dir / "partial").iterdir()):
        try:
            manifest, _ = read_manifest(directory)
        except (BundleError, OSError):
            continue
        found |= {entry.sha256 for entry in manifest.files if (directory / entry.path).is_file()}
    return found


def _until_last(answers: list[str | None]) -> list[str | None]:
    """Without the requests that the kill has cut off, and without those before the agent was up."""
    return _from_first(_from_first(answers[::-1])[::-1])


def _from_first(answers: list[str | None]) -> list[str | None]:
    first = next((i for i, answer in enumerate(answers) if answer is not None), len(answers))
    return answers[first:]
