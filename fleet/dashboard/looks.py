"""How each state looks: tone, icon and word. A state never shows by colour alone. Pure data."""

from dataclasses import dataclass
from typing import Literal

Tone = Literal["good", "info", "warn", "bad", "mute"]


@dataclass(frozen=True, slots=True)
class Look:
    """`tone` is a class of the stylesheet, `icon` a symbol of icons.svg."""

    tone: Tone
    icon: str
    word: str
    spins: bool = False


LOOKS: dict[str, dict[str, Look]] = {
    "device": {
        "online": Look("good", "check", "Online"),
        "updating": Look("info", "arrows", "Updating"),
        "stale": Look("warn", "clock", "Stale"),
        "offline": Look("mute", "offline", "Offline"),
        "failed": Look("bad", "alert", "Failed"),
        "alarm": Look("warn", "alert", "Alarm"),
        "revoked": Look("mute", "cross", "Revoked"),
    },
    "rollout": {
        "draft": Look("mute", "ring", "Draft"),
        "running": Look("info", "play", "Running"),
        "paused": Look("warn", "pause", "Paused"),
        "completed": Look("good", "check", "Completed"),
        "failed": Look("bad", "alert", "Failed"),
        "aborted": Look("mute", "cross", "Aborted"),
    },
    "rollout_device": {
        "active": Look("good", "check", "Active"),
        "updating": Look("info", "arrows", "Updating"),
        "pending": Look("mute", "ring", "Pending"),
        "failed": Look("bad", "alert", "Failed"),
        "skipped": Look("mute", "dash", "Skipped"),
        "superseded": Look("mute", "dash", "Superseded"),
    },
    "release": {
        "published": Look("good", "check", "Published"),
        "yanked": Look("bad", "cross", "Yanked"),
    },
    "publication": {
        "uploading": Look("info", "arrows", "Uploading"),
        "queued": Look("mute", "ring", "Queued"),
        "validating": Look("info", "arrows", "Validating"),
        "converting": Look("info", "arrows", "Converting"),
        "published": Look("good", "check", "Published"),
        "failed": Look("bad", "alert", "Failed"),
    },
}


def look_of(family: str, state: str) -> Look:
    """The look of a state; one that nobody drew shows its own name, plainly."""
    return LOOKS[family].get(state) or Look("mute", "info", state.replace("_", " ").capitalize() or "Unknown")
