"""Where a case is played: a device, its fleet, and somebody who asks the device all the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge_agent.journal import Journal
from edge_agent.protocol import ReleaseRef, UpdateState
from edge_agent.states import Entry
from tests.kill_matrix.agent import ForkedAgent
from tests.kill_matrix.cases import Case
from tests.kill_matrix.chunks import Spans
from tests.kill_matrix.faults import Fault
from tests.kill_matrix.scenarios import Scenario, World
from tests.simulators.fleet_server import FleetServer

PATIENCE_S = 60.0


class WrongError(AssertionError):
    """The case has failed; the message says in what."""


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
    old_answer: str | None
    new_answer: str | None
    notes: Path
    verified: Spans = field(default_factory=dict)
    """What of the new set was on the disk and right after the fault."""
    num_requests: int = 0
    """How many had been made until then."""
    num_reports: int = 0
    """How many there were when the present agent was started."""
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

    def set_of(self, answer: str) -> str:
        """Which set gives this answer, by the name of its last bundle."""
        named = {self.old_answer: self.scenario.old, self.new_answer: self.scenario.new}
        return named[answer][-1] if answer in named else answer

    def reported_problem(self) -> str | None:
        """What the last report names as wrong."""
        problem = self.fleet.reports[-1].problem if self.fleet.reports else None
        return problem.code if problem else None

    def has_reported(self) -> bool:
        """Whether the last report is this agent's, and about the state that the journal holds now."""
        report, entry = self.fleet.reports[-1] if len(self.fleet.reports) > self.num_reports else None, self.entry
        served = entry.served.revision if entry.served else 0
        return report is not None and (report.state, report.revision) == (entry.state, served)


def _has_failed(entry: Entry) -> bool:
    return entry.state is UpdateState.FAILED and not entry.retryable


def set_up(world: World, scenario: Scenario, directory: Path, stack: ExitStack) -> Stage:
    """A device that serves the scenario's old set, and a fleet that wants just that; the stack puts both away."""
    notes = directory / "notes"
    notes.mkdir(parents=True)
    fleet = world.fleet(scenario)
    stack.callback(lambda: fleet.is_away or fleet.stop())
    world.device(scenario, fleet, directory / "state")
    world.want(fleet, scenario.old)
    agent = ForkedAgent(directory / "state", fleet.url, scenario.settings)
    stack.callback(agent.kill)
    answers = world.answer(scenario.old), world.answer(scenario.new)
    return Stage(scenario, None, fleet, agent, world.refs(scenario.new), *answers, notes)


def check_answers(stage: Stage, answers: list[str | None]) -> None:
    """Raise if a request got another answer than one of the old set or the new one, or none without need."""
    known = {stage.old_answer, stage.new_answer}
    if stage.scenario.problem:
        known = {stage.old_answer}
    if strange := [a for a in answers if a is not None and a not in known]:
        raise WrongError(f"it answered {strange[0]!r}")
    if stage.scenario.is_in_sequence:
        return
    if num_refused := answers.count(None):
        raise WrongError(f"{num_refused} of {len(answers)} requests got no answer")


def until_last(answers: list[str | None]) -> list[str | None]:
    """Without the requests that the kill has cut off, and without those before the agent was up."""
    return from_first(from_first(answers[::-1])[::-1])


def from_first(answers: list[str | None]) -> list[str | None]:
    """Without the requests before the agent was up."""
    first = next((i for i, answer in enumerate(answers) if answer is not None), len(answers))
    return answers[first:]
