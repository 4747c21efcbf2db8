"""Events as sentences: what happened, how it looks, where it leads. Pure: an event in, a line out."""

from dataclasses import dataclass
from typing import Any

from fleet.dashboard.looks import Look
from fleet.devices.models import DeviceEvent

_SENTENCES: dict[str, tuple[Look, str]] = {
    "enrolled": (Look("good", "check", "Enrolled"), "Enrolled as {name}"),
    "revoked": (Look("bad", "cross", "Revoked"), "Shut out"),
    "renamed": (Look("mute", "info", "Renamed"), "Renamed from {before} to {after}"),
    "tagged": (Look("mute", "info", "Tagged"), "Tags changed to {after}"),
    "group_joined": (Look("mute", "plus", "Joined"), "Joined the group {group}"),
    "group_left": (Look("mute", "dash", "Left"), "Left the group {group}"),
    "limits_changed": (Look("mute", "info", "Limits"), "Got the limits of its groups"),
    "rollout_start": (Look("info", "play", "Started"), "Rollout started"),
    "rollout_pause": (Look("warn", "pause", "Paused"), "Rollout paused"),
    "rollout_resume": (Look("info", "play", "Resumed"), "Rollout resumed"),
    "rollout_abort": (Look("mute", "cross", "Aborted"), "Rollout aborted"),
    "rollout_handed_out": (Look("info", "down", "Handed out"), "Got a new desired state"),
    "rollout_taken_back": (Look("mute", "arrows", "Taken back"), "Got its former desired state back"),
    "rollout_active": (Look("good", "check", "Active"), "Has what the rollout brings"),
    "rollout_failed": (Look("bad", "alert", "Failed"), "Failed in the rollout: {reason}"),
    "update_idle": (Look("mute", "dash", "Idle"), "Idle at revision {revision}"),
    "update_fetching": (Look("info", "arrows", "Fetching"), "Reads what revision {target_revision} is"),
    "update_admitting": (Look("info", "arrows", "Admitting"), "Checks that it has room for revision {target_revision}"),
    "update_downloading": (Look("info", "down", "Downloading"), "Downloads revision {target_revision}"),
    "update_verifying": (Look("info", "arrows", "Verifying"), "Verifies revision {target_revision}"),
    "update_switching": (Look("info", "arrows", "Switching"), "Switches to revision {target_revision}"),
    "update_probing": (Look("info", "arrows", "Probing"), "Tries revision {target_revision}"),
    "update_committed": (Look("good", "check", "Committed"), "Serves revision {revision}"),
    "update_rolling_back": (Look("warn", "arrows", "Rolling back"), "Goes back to revision {revision}"),
    "update_failed": (Look("bad", "alert", "Failed"), "Could not reach revision {target_revision}"),
}
_ALARM = (Look("warn", "alert", "Alarm"), "Serves revision {revision}, and reports a problem")
_GOES_BACK = {"update_failed", "update_rolling_back"}
_MACHINERY = {"device", "rollout", "groups"}


@dataclass(frozen=True, slots=True)
class Line:
    """One event for a page; `actor` (a person or token), `more` (a problem's words) and `rollout_id` may be empty."""

    event: DeviceEvent
    look: Look
    text: str
    actor: str
    more: str
    rollout_id: str


def line_of(event: DeviceEvent) -> Line:
    """The event as a line; a kind that has no sentence shows its own name."""
    plain = event.kind.replace("_", " ").capitalize()
    look, sentence = _SENTENCES.get(event.kind, (Look("mute", "info", plain), plain))
    problem = event.detail.get("problem") or {}
    if problem and event.kind not in _GOES_BACK:
        look, sentence = _ALARM
    return Line(
        event=event,
        look=look,
        text=sentence.format_map(_Known({key: _words(value) for key, value in event.detail.items()})),
        actor="" if event.actor in _MACHINERY else event.actor,
        more=problem.get("detail") or problem.get("code") or "",
        rollout_id=event.detail.get("rollout", ""),
    )


class _Known(dict[str, str]):
    """Values for a sentence; one that an event lacks reads as a dash."""

    def __missing__(self, key: str) -> str:
        return "–"


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value) if value not in ("", None) else "–"
