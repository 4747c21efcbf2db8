"""How rollouts and the devices in them move: two tables and the rules that read them. Pure.

rollout:  draft -> running <-> paused,  running -> completed | failed,  failed -> completed
          draft, running, paused, failed -> aborted
device:   pending -> updating -> active | failed,  failed -> active,  anything open -> skipped | superseded
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class RolloutState(StrEnum):
    """Where a rollout is."""

    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    ABORTED = "aborted"


class Command(StrEnum):
    """What moves a rollout; the last two come from the devices' states, the others from operators."""

    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    COMPLETE = "complete"
    FAIL = "fail"


TRANSITIONS: dict[tuple[RolloutState, Command], RolloutState] = {
    (RolloutState.DRAFT, Command.START): RolloutState.RUNNING,
    (RolloutState.DRAFT, Command.ABORT): RolloutState.ABORTED,
    (RolloutState.RUNNING, Command.PAUSE): RolloutState.PAUSED,
    (RolloutState.RUNNING, Command.ABORT): RolloutState.ABORTED,
    (RolloutState.RUNNING, Command.COMPLETE): RolloutState.COMPLETED,
    (RolloutState.RUNNING, Command.FAIL): RolloutState.FAILED,
    (RolloutState.PAUSED, Command.RESUME): RolloutState.RUNNING,
    (RolloutState.PAUSED, Command.ABORT): RolloutState.ABORTED,
    # Agents try again by themselves, so a failed rollout may still come good; or the operator takes it back.
    (RolloutState.FAILED, Command.COMPLETE): RolloutState.COMPLETED,
    (RolloutState.FAILED, Command.ABORT): RolloutState.ABORTED,
}


class Step(StrEnum):
    """Where one device is in one rollout."""

    PENDING = "pending"
    UPDATING = "updating"
    ACTIVE = "active"
    FAILED = "failed"
    SKIPPED = "skipped"
    SUPERSEDED = "superseded"


# A device that failed and then got there by itself is believed; nothing else leaves a settled step.
DEVICE_TRANSITIONS: dict[Step, frozenset[Step]] = {
    Step.PENDING: frozenset({Step.UPDATING, Step.ACTIVE, Step.FAILED, Step.SKIPPED, Step.SUPERSEDED}),
    Step.UPDATING: frozenset({Step.ACTIVE, Step.FAILED, Step.SKIPPED, Step.SUPERSEDED}),
    Step.ACTIVE: frozenset(),
    Step.FAILED: frozenset({Step.ACTIVE}),
    Step.SKIPPED: frozenset(),
    Step.SUPERSEDED: frozenset(),
}
OPEN = frozenset({Step.PENDING, Step.UPDATING})


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a report says about one set: `serves` tells whether its digests are those that the set has."""

    revision: int
    target_revision: int
    is_failed: bool
    serves: bool
    problem_code: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The step that a report puts a device into, and why."""

    step: Step
    reason: str = ""


def states_before(command: Command) -> list[RolloutState]:
    """The states in which a rollout obeys the command."""
    return [state for state, known in TRANSITIONS if known == command]


def steps_before(step: Step) -> list[Step]:
    """The steps from which a device may get into this one."""
    return [before for before, after in DEVICE_TRANSITIONS.items() if step in after]


def judge(revision: int, evidence: Evidence) -> Verdict | None:
    """Where a report puts the device that was handed its set with this revision; None if it says nothing of it yet.

    Later revisions have changed limits alone: with a new set another rollout would have taken over.
    """
    if evidence.revision >= revision:
        return Verdict(Step.ACTIVE) if evidence.serves else Verdict(Step.FAILED, "report_mismatch")
    if evidence.target_revision < revision:
        return None
    if evidence.is_failed:
        return Verdict(Step.FAILED, evidence.problem_code or "failed")
    return Verdict(Step.UPDATING)


def outcome(counts: Mapping[str, int]) -> Command | None:
    """How a rollout ends with its devices at these steps; None while one is open."""
    if any(counts.get(step, 0) for step in OPEN):
        return None
    only_failures = counts.get(Step.FAILED, 0) and not counts.get(Step.ACTIVE, 0)
    return Command.FAIL if only_failures else Command.COMPLETE
