"""Why a device has its status, in one sentence, from what it last reported. Pure: a device in, words out."""

from typing import Any

from django.utils.text import capfirst

from fleet.dashboard.templatetags.dashboard import ago_words, size
from fleet.devices.models import Device
from fleet.devices.queries import DeviceStatus
from fleet.rollouts.models import RolloutDevice
from fleet.rollouts.states import Step

_STEPS = {
    "idle": "has not begun yet",
    "fetching": "reads what it shall have",
    "admitting": "checks that it has room",
    "downloading": "downloads",
    "verifying": "verifies what it downloaded",
    "switching": "switches over",
    "probing": "tries the new models",
    "rolling_back": "goes back to what it had",
}
_SKIPPED = {
    "unchanged": "Had it already.",
    "aborted": "Went back to what it had, since the rollout was aborted.",
    "device_revoked": "Was shut out.",
    "wrong_base": "An adapter does not fit the device's base.",
    "no_base": "The device has no base model.",
    "release_not_signed": "A release that the device would have is not signed by its publisher.",
    "release_revoked": "A release that the device would have was revoked.",
    "adapter_left_behind": "An adapter on the device would not fit the new base.",
}
_AT_STEP = {
    Step.UPDATING: "Reads what it shall have.",
    Step.ACTIVE: "Has what the rollout brings.",
    Step.FAILED: "Could not get there.",
    Step.SUPERSEDED: "A newer rollout took over.",
}


def reason_of(device: Device) -> str:
    """The sentence for a device as `fleet.devices.queries.devices` gives it."""
    report = device.report or {}
    match device.status:
        case DeviceStatus.REVOKED:
            return f"Shut out by an operator {ago_words(device.revoked_at)}."
        case DeviceStatus.OFFLINE | DeviceStatus.STALE:
            return _silence(device)
        case DeviceStatus.FAILED | DeviceStatus.ALARM:
            return _problem(report)
        case DeviceStatus.UPDATING:
            return _update(device, report)
        case _ if not device.revision:
            return "Waits for its first rollout."
        case _:
            return "Has what it shall have."


def _silence(device: Device) -> str:
    if device.last_seen_at is None:
        return "Was never heard from."
    if device.status == DeviceStatus.STALE:
        return f"Missed its last polls: heard from {ago_words(device.last_seen_at)}."
    return f"Heard from {ago_words(device.last_seen_at)}. Check its power, its network, and that the agent runs."


def _problem(report: dict[str, Any]) -> str:
    """The device's own words as a sentence."""
    problem = report.get("problem") or {}
    words = problem.get("detail") or problem.get("code") or "The update failed, and the device did not say why"
    return capfirst(words.rstrip(".")) + "."


def _update(device: Device, report: dict[str, Any]) -> str:
    towards = f"revision {device.wanted_revision}"
    if device.target_revision != device.wanted_revision:
        return f"Waits for its next poll to hear of {towards}."
    return f"On its way to {towards}: {_step(device, report)}"


def _step(device: Device, report: dict[str, Any]) -> str:
    step = _STEPS.get(device.update_state, device.update_state.replace("_", " "))
    progress = report.get("progress")
    if not progress or not progress["total_bytes"]:
        return f"{step}."
    share = 100 * progress["done_bytes"] / progress["total_bytes"]
    return f"{step}, {share:.0f} % of {size(progress['total_bytes'])}."


def step_reason(row: RolloutDevice) -> str:
    """Why a device is at its step in a rollout."""
    if row.state == Step.SKIPPED:
        return _SKIPPED.get(row.reason, "Was left out.")
    if row.state == Step.PENDING:
        return _pending(row)
    return _from_report(row) or _AT_STEP[Step(row.state)]


def _pending(row: RolloutDevice) -> str:
    """A device that raises an alarm may have polled, and not have believed what it was handed."""
    if row.revision is None:
        return "Was not handed the change yet."
    return _problem(row.device.report or {}) if row.device.problem_code else "Waits for its next poll."


def _from_report(row: RolloutDevice) -> str:
    """The device's own words, where its last report still is about the set that this rollout handed out."""
    report = row.device.report or {}
    if row.revision is None or row.set_revision != row.revision or row.device.target_revision < row.revision:
        return ""
    if row.state == Step.FAILED and report.get("problem"):
        return _problem(report)
    return capfirst(_step(row.device, report)) if row.state == Step.UPDATING else ""
