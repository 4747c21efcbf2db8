"""Reads about devices, for the API, the dashboard and `/metrics`. Nothing here writes.

A device's `status` is decided in SQL, so that lists filter by it and counts agree with lists.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from django.conf import settings
from django.db.models import Case, CharField, Count, F, Prefetch, Q, QuerySet, Value, When
from django.utils import timezone

from edge_agent.protocol import Limits
from fleet.devices.actions import LAST_SEEN_RESOLUTION
from fleet.devices.desired import current_limits
from fleet.devices.errors import DeviceNotFoundError, GroupNotFoundError
from fleet.devices.models import (
    DesiredRecord,
    Device,
    DeviceEvent,
    DeviceGroup,
    DeviceState,
    EnrolmentToken,
    InstalledRelease,
)
from registry.models import Release

_POLLS_UNTIL_STALE = 3
_POLLS_UNTIL_OFFLINE = 15


class DeviceStatus(StrEnum):
    """What is most worth knowing about a device; the first that holds, in this order."""

    REVOKED = "revoked"
    OFFLINE = "offline"
    FAILED = "failed"
    ALARM = "alarm"
    """It serves, and reports a problem: for instance that it does not believe the server."""
    UPDATING = "updating"
    STALE = "stale"
    ONLINE = "online"


NEED_ATTENTION = (DeviceStatus.FAILED, DeviceStatus.ALARM, DeviceStatus.OFFLINE)


@dataclass(frozen=True, slots=True)
class DeviceDetail:
    """A device with what it has (by its own report), what it wants, and its newest events."""

    device: Device
    has: list[InstalledRelease]
    wants_base: Release | None
    wants_adapters: list[Release]
    limits: Limits
    events: list[DeviceEvent]


def devices(
    *, group: str = "", tag: str = "", status: str = "", search: str = "", release: str = ""
) -> QuerySet[Device]:
    """Devices, newest first, with `status` and `wanted_revision`; `release` is the digest of one that they serve."""
    found = _with_status(Device.objects.all())
    if group:
        found = found.filter(groups__name=group)
    if tag:
        found = found.filter(tag_rows__tag=tag)
    if release:
        found = found.filter(pk__in=InstalledRelease.objects.filter(digest=release).values("device"))
    if status:
        found = found.filter(status=status)
    for word in search.split():
        found = found.filter(Q(name__icontains=word) | Q(pk__icontains=word))
    return found.prefetch_related("groups", "tag_rows", "installed").order_by("-created_at", "-pk")


def names_of(device_ids: Iterable[str]) -> dict[str, str]:
    """The names of these devices by id."""
    return dict(Device.objects.filter(pk__in=list(device_ids)).values_list("pk", "name"))


def get_device(device_id: str) -> Device:
    """One device as `devices` gives it; raises `DeviceNotFoundError`."""
    device = devices().filter(pk=device_id).first()
    if device is None:
        raise DeviceNotFoundError(f"There is no device {device_id!r:.80}.")
    return device


def device_detail(device_id: str, *, num_events: int = 50) -> DeviceDetail:
    """All that a device's page shows, in a fixed number of queries; raises `DeviceNotFoundError`."""
    device = get_device(device_id)
    adapters = Release.objects.defer("manifest").select_related("artifact").order_by("artifact__name")
    record = (
        DesiredRecord.objects.select_related("base__artifact")
        .prefetch_related(Prefetch("adapters", queryset=adapters))
        .get(pk=device_id)
    )
    return DeviceDetail(
        device=device,
        has=list(device.installed.all()),
        wants_base=record.base,
        wants_adapters=list(record.adapters.all()),
        limits=current_limits(record),
        events=list(events(device_id)[:num_events]),
    )


def events(device_id: str) -> QuerySet[DeviceEvent]:
    """The device's timeline, newest first."""
    return DeviceEvent.objects.filter(device_id=device_id).order_by("-at", "-pk")


def recent_events() -> QuerySet[DeviceEvent]:
    """The timeline of the whole fleet, newest first."""
    return DeviceEvent.objects.select_related("device").order_by("-at", "-pk")


def fleet_counts() -> dict[str, int]:
    """Number of devices per status, all statuses listed, and `total`."""
    rows = _with_status(Device.objects.all()).order_by().values("status").annotate(num=Count("pk"))
    counts = {row["status"]: row["num"] for row in rows}
    return {"total": sum(counts.values())} | {str(status): counts.get(status, 0) for status in DeviceStatus}


def needs_attention() -> QuerySet[Device]:
    """Devices that failed, raise an alarm or went silent, newest first."""
    return devices().filter(status__in=NEED_ATTENTION)


def version_distribution() -> list[dict[str, object]]:
    """How many enrolled devices serve each release: rows with is_base, name, version, digest, num_devices."""
    serving = InstalledRelease.objects.filter(device__state=DeviceState.ENROLLED)
    rows = serving.values("is_base", "name", "version", "digest").annotate(num_devices=Count("device"))
    return list(rows.order_by("-is_base", "name", "-num_devices", "version"))


def groups() -> QuerySet[DeviceGroup]:
    """Groups by name, with `num_devices`."""
    return DeviceGroup.objects.annotate(num_devices=Count("devices")).order_by("name")


def groups_to_limit() -> list[int]:
    """Groups whose limits have not reached all of their devices' documents."""
    behind = DeviceGroup.objects.filter(limits_applied__lt=F("limits_version"))
    return list(behind.order_by("pk").values_list("pk", flat=True))


def get_group(name: str) -> DeviceGroup:
    """One group; raises `GroupNotFoundError`."""
    group = groups().filter(name=name).first()
    if group is None:
        raise GroupNotFoundError(f"There is no group {name!r:.80}.")
    return group


def enrolment_tokens() -> QuerySet[EnrolmentToken]:
    """Tokens, newest first, with the devices that used them."""
    return EnrolmentToken.objects.select_related("group", "used_by").order_by("-created_at", "-pk")


def silence_until(polls: int) -> timedelta:
    """How long a device that polls on time may seem silent: `last_seen_at` is written once a minute only."""
    return polls * timedelta(seconds=settings.SOCLE_POLL_INTERVAL_S) + LAST_SEEN_RESOLUTION


def _with_status(found: QuerySet[Device]) -> QuerySet[Device]:
    now = timezone.now()
    offline = Q(last_seen_at=None) | Q(last_seen_at__lt=now - silence_until(_POLLS_UNTIL_OFFLINE))
    stale = Q(last_seen_at__lt=now - silence_until(_POLLS_UNTIL_STALE))
    failed = Q(update_state="failed", target_revision=F("desired__revision"))
    alarm = ~Q(problem_code="") & ~Q(update_state__in=["failed", "rolling_back"])
    status = Case(
        When(state=DeviceState.REVOKED, then=Value(DeviceStatus.REVOKED.value)),
        When(offline, then=Value(DeviceStatus.OFFLINE.value)),
        When(failed, then=Value(DeviceStatus.FAILED.value)),
        When(alarm, then=Value(DeviceStatus.ALARM.value)),
        When(~Q(revision=F("desired__revision")), then=Value(DeviceStatus.UPDATING.value)),
        When(stale, then=Value(DeviceStatus.STALE.value)),
        default=Value(DeviceStatus.ONLINE.value),
        output_field=CharField(),
    )
    return found.annotate(status=status, wanted_revision=F("desired__revision"))
