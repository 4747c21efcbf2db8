from __future__ import annotations

import itertools
from typing import Any

import pytest

from fleet.rollouts.states import (
    DEVICE_TRANSITIONS,
    TRANSITIONS,
    Command,
    Evidence,
    RolloutState,
    Step,
    Verdict,
    judge,
    outcome,
    states_before,
    steps_before,
)


def evidence(revision: int, target: int, *, failed: bool = False, serves: bool = True, code: str = "") -> Evidence:
    return Evidence(revision, target, is_failed=failed, serves=serves, problem_code=code)


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        (evidence(4, 4), None),
        (evidence(4, 5), Verdict(Step.UPDATING)),
        (evidence(5, 5), Verdict(Step.ACTIVE)),
        (evidence(6, 6), Verdict(Step.ACTIVE)),
        (evidence(5, 5, serves=False), Verdict(Step.FAILED, "report_mismatch")),
        (evidence(4, 5, failed=True, code="no_space"), Verdict(Step.FAILED, "no_space")),
        (evidence(4, 5, failed=True), Verdict(Step.FAILED, "failed")),
        (evidence(4, 3, failed=True, code="old"), None),
        (evidence(5, 6, failed=True), Verdict(Step.ACTIVE)),
    ],
)
def test_what_a_report_makes_of_a_device_with_revision_5(said: Evidence, verdict: Any) -> None:
    assert judge(5, said) == verdict


@pytest.mark.parametrize(
    ("counts", "command"),
    [
        ({"pending": 1, "active": 5}, None),
        ({"updating": 1}, None),
        ({"active": 1}, Command.COMPLETE),
        ({"active": 1, "failed": 9}, Command.COMPLETE),
        ({"failed": 1, "skipped": 3}, Command.FAIL),
        ({"skipped": 3, "superseded": 1}, Command.COMPLETE),
        ({}, Command.COMPLETE),
    ],
)
def test_how_a_rollout_ends(counts: dict[str, int], command: Command | None) -> None:
    assert outcome(counts) == command


OBEYED = {
    "draft": {"start": "running", "abort": "aborted"},
    "running": {"pause": "paused", "abort": "aborted", "complete": "completed", "fail": "failed"},
    "paused": {"resume": "running", "abort": "aborted"},
    "completed": {},
    "failed": {"complete": "completed", "abort": "aborted"},
    "aborted": {},
}


@pytest.mark.parametrize(("state", "command"), [*itertools.product(RolloutState, Command)])
def test_every_state_knows_every_command_or_refuses_it(state: RolloutState, command: Command) -> None:
    assert TRANSITIONS.get((state, command)) == OBEYED[state].get(command)
    assert (state in states_before(command)) == (command in OBEYED[state])


def test_settled_steps_stay_settled_but_for_a_failure_that_came_good() -> None:
    assert set(DEVICE_TRANSITIONS) == set(Step)
    assert {step: after for step, after in DEVICE_TRANSITIONS.items() if step not in (Step.PENDING, Step.UPDATING)} == {
        Step.ACTIVE: frozenset(),
        Step.FAILED: frozenset({Step.ACTIVE}),
        Step.SKIPPED: frozenset(),
        Step.SUPERSEDED: frozenset(),
    }
    assert set(steps_before(Step.ACTIVE)) == {Step.PENDING, Step.UPDATING, Step.FAILED}
    assert steps_before(Step.PENDING) == []
