"""The update machine's tables: nothing left out, nothing that ends nowhere."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from edge_agent.protocol import DesiredState, Problem
from edge_agent.states import (
    DEADLINE_S,
    MAX_ATTEMPTS,
    MAX_RESUMPTIONS,
    RESUME,
    RISKY,
    TRANSITIONS,
    Entry,
    Event,
    Happening,
    RefusedTransitionError,
    State,
    advance,
    diagram,
    may_retry,
    resume,
    table,
)

OLD, NEW, NEWER = (DesiredState("dev", revision) for revision in (1, 2, 3))
PROBLEM = Problem("why", "because")

WALKS = {
    "an update that works": """
        wanted fetching, fetched admitting, admitted downloading, downloaded verifying, verified switching,
        switched probing, probed committed, settled idle""",
    "a probe that fails": """
        wanted fetching, fetched admitting, admitted downloading, downloaded verifying, verified switching,
        switched probing, gave_up rolling_back, rolled_back failed, wanted fetching""",
    "a download that is overtaken": """
        wanted fetching, fetched admitting, admitted downloading, superseded fetching""",
    "a switch that is overtaken": """
        wanted fetching, fetched admitting, admitted downloading, downloaded verifying, verified switching,
        superseded rolling_back, cleared idle, wanted fetching""",
    "a failure that may pass": """
        wanted fetching, gave_up failed, retry fetching, fetched admitting""",
}


def in_state(state: State, **changes: object) -> Entry:
    return replace(Entry(state, served=OLD, target=NEW), **changes)


def test_every_state_is_in_all_tables() -> None:
    assert set(TRANSITIONS) == set(RESUME) == set(DEADLINE_S) == set(State)


def test_whatever_has_a_deadline_can_be_given_up() -> None:
    assert {s for s in State if Event.GAVE_UP in TRANSITIONS[s]} == {s for s in State if math.isfinite(DEADLINE_S[s])}


def test_what_must_be_done_is_tried_again_and_keeps_its_reason() -> None:
    for state in (State.COMMITTED, State.ROLLING_BACK):
        entry = in_state(state, problem=PROBLEM)
        assert advance(entry, Happening(Event.GAVE_UP, problem=Problem("other", "words"))) == entry


def test_the_readme_has_the_diagram_and_the_table() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert f"```mermaid\n{diagram()}\n```" in readme, "paste what `python -m edge_agent.states` prints"
    assert table() in readme, "paste what `python -m edge_agent.states` prints"


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
def test_each_event_in_each_state_is_listed_or_refused(state: State, event: Event) -> None:
    happening = Happening(event, target=NEWER, problem=PROBLEM)
    if event in TRANSITIONS[state]:
        assert advance(in_state(state), happening).state is TRANSITIONS[state][event]
    else:
        with pytest.raises(RefusedTransitionError):
            advance(in_state(state), happening)


def test_every_state_can_be_reached_and_leads_back_to_rest() -> None:
    def reachable(start: State) -> set[State]:
        seen, ahead = {start}, [start]
        while ahead:
            for state in TRANSITIONS[ahead.pop()].values():
                if state not in seen:
                    seen.add(state)
                    ahead.append(state)
        return seen

    assert reachable(State.IDLE) == set(State)
    assert all(State.IDLE in reachable(state) for state in State)


@pytest.mark.parametrize("name", list(WALKS))
def test_walks(name: str) -> None:
    entry = Entry(served=OLD)
    for step in WALKS[name].split(","):
        event, state = step.split()
        entry = advance(entry, Happening(Event(event), target=NEW, problem=PROBLEM))
        assert entry.state == state


def test_only_a_probed_set_becomes_the_served_one() -> None:
    for state, row in TRANSITIONS.items():
        for event in row:
            after = advance(in_state(state), Happening(event, target=NEWER, problem=PROBLEM))
            assert after.served == (NEW if event is Event.PROBED else OLD), (state, event)


def test_a_problem_lasts_until_something_else_is_wanted() -> None:
    failed = advance(in_state(State.DOWNLOADING), Happening(Event.GAVE_UP, problem=PROBLEM))
    assert failed.problem == PROBLEM
    assert advance(failed, Happening(Event.WANTED, target=NEWER)).problem is None
    rolling = advance(in_state(State.PROBING), Happening(Event.GAVE_UP, problem=PROBLEM))
    assert advance(rolling, Happening(Event.ROLLED_BACK)).problem == PROBLEM


def test_a_new_target_starts_counting_anew() -> None:
    tired = in_state(State.FAILED, attempt=3, resumptions=2, retryable=True)
    fresh = advance(tired, Happening(Event.WANTED, target=NEWER))
    assert (fresh.target, fresh.attempt, fresh.resumptions) == (NEWER, 0, 0)


def test_retries_are_bounded_and_only_for_what_may_pass() -> None:
    assert may_retry(in_state(State.FAILED, retryable=True))
    assert not may_retry(in_state(State.FAILED, retryable=False))
    assert not may_retry(in_state(State.FAILED, retryable=True, attempt=MAX_ATTEMPTS))
    again = advance(in_state(State.FAILED, retryable=True, attempt=1), Happening(Event.RETRY))
    assert (again.state, again.target, again.attempt) == (State.FETCHING, NEW, 2)


@pytest.mark.parametrize("attempt", [1, MAX_ATTEMPTS])
def test_what_was_not_even_tried_is_tried_for_ever(attempt: int) -> None:
    lapse = Happening(Event.GAVE_UP, problem=PROBLEM, retryable=True, is_untried=True)
    failed = advance(in_state(State.FETCHING, attempt=attempt), lapse)
    assert may_retry(failed)
    again = advance(failed, Happening(Event.RETRY))
    assert (again.state, again.attempt, again.is_untried) == (State.FETCHING, attempt, False)


@pytest.mark.parametrize("state", list(State))
def test_a_restart_goes_on_where_the_table_says(state: State) -> None:
    entry = resume(in_state(state))
    assert (entry.state, entry.served, entry.target) == (RESUME[state], OLD, NEW)
    assert entry.resumptions == (1 if state in RISKY else 0)


@pytest.mark.parametrize("state", sorted(RISKY))
def test_a_reboot_loop_ends_in_a_roll_back_with_a_reason(state: State) -> None:
    entry = in_state(state)
    for _ in range(MAX_RESUMPTIONS):
        entry = replace(resume(entry), state=state)
    last = resume(entry)
    assert last.state is State.ROLLING_BACK
    assert last.problem is not None
    assert last.problem.code == "restarted_too_often"


def test_a_set_that_takes_the_device_down_when_it_is_activated_gives_way_to_the_one_before() -> None:
    entry = advance(in_state(State.PROBING), Happening(Event.PROBED))
    assert (entry.served, entry.previous) == (NEW, OLD)
    assert advance(entry, Happening(Event.SETTLED)).previous is None
    for _ in range(MAX_RESUMPTIONS):
        entry = resume(entry)
    assert (entry.state, entry.served) == (State.COMMITTED, NEW)
    last = resume(entry)
    assert (last.state, last.served, last.problem.code) == (State.ROLLING_BACK, OLD, "restarted_too_often")


def test_slow_downloads_may_be_interrupted_for_ever() -> None:
    entry = in_state(State.DOWNLOADING)
    for _ in range(10 * MAX_RESUMPTIONS):
        entry = replace(resume(entry), state=State.DOWNLOADING)
    assert resume(entry).state is State.FETCHING
