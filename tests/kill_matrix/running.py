"""Runs one case: strike, start again, converge; and judges what was seen.

After every fault the device serves the old set or the new one, never neither and nothing else; it reaches what the
fleet wants; no chunk that was verified is asked for again; and its last report is true.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass

from tests.kill_matrix.cases import Case
from tests.kill_matrix.chunks import asked_for, num_bytes_again, num_bytes_twice
from tests.kill_matrix.faults import Act, Point
from tests.kill_matrix.scenarios import SCENARIOS, Scenario, World
from tests.kill_matrix.stage import Client, Stage, WrongError, check_answers, from_first, set_up
from tests.kill_matrix.strikes import strike, want_new


@dataclass(slots=True)
class Outcome:
    """What came of a case."""

    case: Case
    resumed_from: str = ""
    served_at_once: str | None = None
    ended: str = ""
    wrong: str = ""
    seconds: float = 0.0


def run_case(world: World, case: Case) -> Outcome:
    """Play a case; the outcome says what was wrong, if anything was."""
    outcome, started_s = Outcome(case), time.monotonic()
    directory = world.directory / "cases" / re.sub(r"[^a-z0-9.-]+", "-", str(case))
    try:
        with ExitStack() as stack:
            stage = set_up(world, SCENARIOS[case.scenario], directory, stack)
            stage.problem, stage.is_late = expected_problem(case), case.act is Act.CLOCK_FORWARD
            strike(stage, case)
            outcome.resumed_from = stage.entry.state
            outcome.served_at_once = _come_back(stage)
            outcome.ended = _judge(stage)
            _judge_traffic(stage, case)
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
        stage = set_up(world, scenario, directory, stack)
        stage.agent.start(stage.fault())
        client = Client(stage.agent)
        want_new(stage, client)
        stage.until(stage.is_settled, "the end of the update")
        client.close()
        time.sleep(0.2)  # what was written after the last state
    lines = (directory / "notes" / "trace").read_text().splitlines()
    return [Point(**json.loads(line)) for line in lines]


def _come_back(stage: Stage) -> str | None:
    """Without a server the device serves from its disk, returned is what; with one it reaches what is wanted."""
    stage.fleet.stop()
    served, served_at_once, stage.num_reports = stage.entry.served, None, len(stage.fleet.reports)
    stage.agent.start(stage.fault())
    client = Client(stage.agent)
    if served:
        stage.until(lambda: any(client.answers), "an answer without a server")
        served_at_once = stage.set_of(next(filter(None, client.answers)))
    stage.fleet.start()
    stage.until(stage.is_settled, "the end of the update")
    stage.until(stage.has_reported, "a true report")
    num_answers = len(client.answers)
    stage.until(lambda: len(client.answers) > num_answers + 1, "an answer at the end")
    answers = client.close()
    check_answers(stage, from_first(answers))
    if answers[-1] != (stage.old_answer if stage.problem else stage.new_answer):
        raise WrongError(f"in the end it answers {answers[-1]!r}")
    if code := stage.agent.stop():
        raise WrongError(f"exit code {code} after SIGTERM")
    return served_at_once


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
    return str(entry.state) if problem is None else f"{entry.state}, {problem}"


def _judge_traffic(stage: Stage, case: Case) -> None:
    """What was verified does not travel again; where nothing was lost and no chunk refused, nothing does."""
    if again := num_bytes_again(stage.verified, asked_for(stage.fleet.requests[stage.num_requests :])):
        raise WrongError(f"{again} bytes of verified chunks were asked for again")
    loses = case.act in (Act.KILL, Act.POWER_LOSS, Act.READ_ONLY_AT_START) or case.point.operation == "land"
    if not loses and (twice := num_bytes_twice(asked_for(stage.fleet.requests))):
        raise WrongError(f"{twice} bytes were asked for twice")


def expected_problem(case: Case) -> str | None:
    return "restarted_too_often" if case.act is Act.BOOT_LOOP else SCENARIOS[case.scenario].problem
