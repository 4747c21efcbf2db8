"""The update machine as data: states, events, transitions, and where a restart resumes.

Pure: values in, values out. Knows nothing of disks, networks or engines; `edge_agent.updater` performs the effect of
each state and feeds the event that it posts to `advance`. The states themselves are on the wire, see
`protocol.UpdateState`. `python -m edge_agent.states` prints the diagram of the README.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from edge_agent.protocol import DesiredState, Problem, UpdateState

State = UpdateState

MAX_RESUMPTIONS = 3
MAX_ATTEMPTS = 5


class Event(StrEnum):
    """What an effect, the server or the clock has to say."""

    WANTED = "wanted"
    SUPERSEDED = "superseded"
    FETCHED = "fetched"
    ADMITTED = "admitted"
    DOWNLOADED = "downloaded"
    VERIFIED = "verified"
    SWITCHED = "switched"
    PROBED = "probed"
    SETTLED = "settled"
    GAVE_UP = "gave_up"
    ROLLED_BACK = "rolled_back"
    CLEARED = "cleared"
    RETRY = "retry"


TRANSITIONS: Mapping[State, Mapping[Event, State]] = {
    State.IDLE: {Event.WANTED: State.FETCHING},
    State.FETCHING: {
        Event.FETCHED: State.ADMITTING,
        Event.SUPERSEDED: State.FETCHING,
        Event.GAVE_UP: State.FAILED,
    },
    State.ADMITTING: {
        Event.ADMITTED: State.DOWNLOADING,
        Event.SUPERSEDED: State.FETCHING,
        Event.GAVE_UP: State.FAILED,
    },
    State.DOWNLOADING: {
        Event.DOWNLOADED: State.VERIFYING,
        Event.SUPERSEDED: State.FETCHING,
        Event.GAVE_UP: State.FAILED,
    },
    State.VERIFYING: {
        Event.VERIFIED: State.SWITCHING,
        Event.SUPERSEDED: State.FETCHING,
        Event.GAVE_UP: State.FAILED,
    },
    State.SWITCHING: {
        Event.SWITCHED: State.PROBING,
        Event.SUPERSEDED: State.ROLLING_BACK,
        Event.GAVE_UP: State.ROLLING_BACK,
    },
    State.PROBING: {
        Event.PROBED: State.COMMITTED,
        Event.SUPERSEDED: State.ROLLING_BACK,
        Event.GAVE_UP: State.ROLLING_BACK,
    },
    State.COMMITTED: {Event.SETTLED: State.IDLE, Event.GAVE_UP: State.COMMITTED},
    State.ROLLING_BACK: {
        Event.ROLLED_BACK: State.FAILED,
        Event.CLEARED: State.IDLE,
        Event.GAVE_UP: State.ROLLING_BACK,
    },
    State.FAILED: {Event.WANTED: State.FETCHING, Event.RETRY: State.FETCHING},
}

RESUME: Mapping[State, State] = {
    State.IDLE: State.IDLE,
    State.FETCHING: State.FETCHING,
    State.ADMITTING: State.FETCHING,
    State.DOWNLOADING: State.FETCHING,
    State.VERIFYING: State.FETCHING,
    State.SWITCHING: State.SWITCHING,
    State.PROBING: State.SWITCHING,
    State.COMMITTED: State.COMMITTED,
    State.ROLLING_BACK: State.ROLLING_BACK,
    State.FAILED: State.FAILED,
}
"""Where the agent goes on after it was killed in a state.

Downloads pass admission again, since the disk may have filled up; what is on disk already costs nothing. Whatever was
staged died with the engine process.
"""

DEADLINE_S: Mapping[State, float] = {
    State.IDLE: math.inf,
    State.FETCHING: 3600.0,
    State.ADMITTING: 600.0,
    State.DOWNLOADING: 7 * 86_400.0,
    State.VERIFYING: 3600.0,
    State.SWITCHING: 1800.0,
    State.PROBING: 120.0,
    State.COMMITTED: 60.0,
    State.ROLLING_BACK: 60.0,
    State.FAILED: math.inf,
}
"""Seconds that the effect of a state may take before it counts as given up; idle and failed wait for the server.

Calls within an effect have shorter limits of their own. These end what nobody thought of, so that no device hangs
half-way through an update. What committed and rolling back do must be done, so it is tried again.
"""

RISKY = frozenset({State.SWITCHING, State.PROBING, State.COMMITTED})
"""States in which a release may take the device down: resuming them is counted, so that a reboot loop ends."""


class RefusedTransitionError(RuntimeError):
    """An effect posted an event that its state does not list: a bug of ours."""


@dataclass(frozen=True, slots=True)
class Happening:
    """An event with what it brings along."""

    event: Event
    target: DesiredState | None = None
    problem: Problem | None = None
    retryable: bool = False
    is_untried: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """All that the machine must know after a power loss; `edge_agent.journal` keeps it.

    served: the desired state that was reached last, which is what the device serves. target: the one being worked on.
    previous: what was served before, until the new one has settled.
    attempt counts tries of the target after transient failures, resumptions those after restarts in a risky state.
    is_untried: it failed before anything of the target was tried, for want of metadata that can be trusted.
    """

    state: State = State.IDLE
    served: DesiredState | None = None
    target: DesiredState | None = None
    problem: Problem | None = None
    retryable: bool = False
    attempt: int = 0
    resumptions: int = 0
    previous: DesiredState | None = None
    is_untried: bool = False


def advance(entry: Entry, happening: Happening) -> Entry:
    """The entry after an event; raises `RefusedTransitionError` where the table lists none."""
    state = TRANSITIONS[entry.state].get(happening.event)
    if state is None:
        raise RefusedTransitionError(f"{happening.event} in state {entry.state}")
    is_done_again = state is entry.state and happening.event is Event.GAVE_UP
    entry = replace(entry, state=state)
    match happening.event:
        case Event.WANTED:
            entry = _taken_up(entry, happening.target)
        case Event.SUPERSEDED:
            entry = _taken_up(entry, happening.target) if state is State.FETCHING else replace(entry, problem=None)
        case Event.GAVE_UP if not is_done_again:
            failed = replace(entry, problem=happening.problem, retryable=happening.retryable)
            entry = replace(failed, is_untried=happening.is_untried)
        case Event.PROBED:
            reached = replace(entry, served=entry.target, previous=entry.served)
            entry = replace(reached, problem=None, attempt=0, resumptions=0)
        case Event.SETTLED:
            entry = replace(entry, previous=None, resumptions=0)
        case Event.RETRY:
            attempt = entry.attempt if entry.is_untried else entry.attempt + 1
            entry = replace(entry, problem=None, attempt=attempt, resumptions=0, is_untried=False)
    return entry


def _taken_up(entry: Entry, target: DesiredState | None) -> Entry:
    fresh = replace(entry, target=target, problem=None, retryable=False, is_untried=False)
    return replace(fresh, attempt=0, resumptions=0)


def resume(entry: Entry) -> Entry:
    """The entry to start from after a restart."""
    if entry.state not in RISKY:
        return replace(entry, state=RESUME[entry.state])
    if entry.resumptions < MAX_RESUMPTIONS:
        return replace(entry, state=RESUME[entry.state], resumptions=entry.resumptions + 1)
    problem = Problem(
        "restarted_too_often",
        f"The agent was restarted {entry.resumptions + 1} times while it tried this revision: "
        "look at the device's memory and its system log, then roll out another revision.",
        {"state": entry.state},
    )
    served = entry.previous if entry.state is State.COMMITTED else entry.served
    return replace(entry, state=State.ROLLING_BACK, served=served, previous=None, problem=problem, retryable=False)


def deadline_exceeded(state: State, deadline_s: float) -> Problem:
    """Why a state was given up that has taken too long."""
    return Problem(
        "deadline_exceeded",
        f"{state} took longer than {deadline_s:.0f} s: look at the device's load and at the agent's log, "
        "then roll out another revision.",
        {"state": state, "deadline_s": f"{deadline_s:.0f}"},
    )


def may_retry(entry: Entry) -> bool:
    """Whether a failed target shall be tried once more without the server asking for it.

    One that was not tried yet always: an outage or a lapse of the fleet's signing may be long, and is no fault of it.
    """
    is_allowed = entry.is_untried or entry.attempt < MAX_ATTEMPTS
    return entry.state is State.FAILED and entry.retryable and is_allowed


def diagram() -> str:
    """The machine as a Mermaid diagram: every transition, events with the same way on one arrow."""
    arrows: dict[tuple[State, State], list[Event]] = {}
    for state, row in TRANSITIONS.items():
        for event, after in row.items():
            arrows.setdefault((state, after), []).append(event)
    lines = [f"    {before} --> {after}: {', '.join(events)}" for (before, after), events in arrows.items()]
    return "\n".join(("stateDiagram-v2", f"    [*] --> {State.IDLE}", *lines))


def table() -> str:
    """The machine as a Markdown table: where a restart goes on, and how long a state may take."""
    rows = [f"| {state} | {RESUME[state]} | {_duration(DEADLINE_S[state])} |" for state in State]
    return "\n".join(("| killed in | goes on in | deadline |", "| --- | --- | ---: |", *rows))


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if math.isfinite(seconds) and seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return "none"


if __name__ == "__main__":
    print(f"```mermaid\n{diagram()}\n```\n\n{table()}")  # noqa: T201 - what this command is for
