"""What a command to a rollout would touch, in words for the button that gives it. Pure."""

from dataclasses import dataclass

from django.utils.text import capfirst

from fleet.rollouts.queries import DeviceProgress
from fleet.rollouts.states import TRANSITIONS, Command, RolloutState, Step


@dataclass(frozen=True, slots=True)
class Offer:
    """A command that the rollout obeys now, and what it would do."""

    command: Command
    label: str
    effect: str
    icon: str
    is_destructive: bool = False


_ICONS = {Command.START: "play", Command.PAUSE: "pause", Command.RESUME: "play", Command.ABORT: "cross"}


def offers(state: str, progress: DeviceProgress) -> list[Offer]:
    """The commands that an operator may give in this state."""
    known = [command for command in _ICONS if (RolloutState(state), command) in TRANSITIONS]
    return [
        Offer(
            command,
            f"{capfirst(command.value)} rollout",
            _effect(command, progress),
            _ICONS[command],
            is_destructive=command == Command.ABORT,
        )
        for command in known
    ]


def _effect(command: Command, progress: DeviceProgress) -> str:
    pending, updating = progress.counts[Step.PENDING], progress.counts[Step.UPDATING]
    failed, active = progress.counts[Step.FAILED], progress.counts[Step.ACTIVE]
    match command:
        case Command.PAUSE:
            waiting = _count(pending, "device that has", "devices that have")
            return f"{waiting} not begun will wait; {_count(updating, 'device at work goes', 'devices at work go')} on."
        case Command.ABORT:
            back = _count(pending + updating + failed, "device goes back to what it", "devices go back to what they")
            return f"{back} had; {_count(active, 'that is active keeps', 'that are active keep')} the new releases."
        case _:
            return f"{_count(pending, 'device gets', 'devices get')} the change now."


def _count(count: int, singular: str, plural: str) -> str:
    return f"{count} {singular if count == 1 else plural}"
