"""Writes about devices: enrolment, groups and tags, revocation, reports. One transaction each."""

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils import timezone

from edge_agent import protocol
from fleet.audit import chain
from fleet.devices import desired
from fleet.devices.errors import (
    BadDeviceDataError,
    DeviceRevokedError,
    EnrolmentRefusedError,
    GroupExistsError,
    UnknownGroupError,
)
from fleet.devices.limits import limits_of, tightest
from fleet.devices.models import (
    Device,
    DeviceEvent,
    DeviceGroup,
    DeviceState,
    DeviceTag,
    EnrolmentToken,
    InstalledRelease,
    SeenNonce,
)
from fleet.devices.rules import check_report
from registry.trust.repository import root_digest

TOKEN_MARK = "soe_"  # noqa: S105 - the mark of an enrolment token
LIMITS_BATCH_SIZE = 200
LAST_SEEN_RESOLUTION = timedelta(minutes=1)
_SHOWN_CHARS = 12


def hash_token(token: str) -> str:
    """Tokens carry 256 random bits: a plain hash is enough."""
    return hashlib.sha256(token.encode()).hexdigest()


@transaction.atomic
def create_enrolment_tokens(
    *, count: int, group: str | None, tags: Sequence[str], lifetime: timedelta, actor: str
) -> list[tuple[EnrolmentToken, str]]:
    """New tokens with their secrets, which are shown this one time.

    What is shown ends in the SHA-256 of the TUF root, after a dot: by it the device knows whom to trust.
    """
    found = find_group(group) if group else None
    expires_at = timezone.now() + lifetime
    pin = root_digest()
    made = []
    for _ in range(count):
        secret = TOKEN_MARK + secrets.token_urlsafe(32)
        row = EnrolmentToken(
            token_hash=hash_token(secret),
            prefix=secret[:_SHOWN_CHARS],
            group=found,
            tags=sorted(set(tags)),
            created_by=actor,
            expires_at=expires_at,
        )
        made.append((row, f"{secret}.{pin}" if pin else secret))
    EnrolmentToken.objects.bulk_create([row for row, _ in made])
    return made


def find_group(name: str) -> DeviceGroup:
    """The group that a body names; raises `UnknownGroupError`."""
    try:
        return DeviceGroup.objects.get(name=name)
    except DeviceGroup.DoesNotExist as error:
        raise UnknownGroupError(f"There is no group {name!r:.80}.") from error


@transaction.atomic
def enrol(*, request: protocol.EnrolRequest, public_key: str) -> Device:
    """Let the device in that holds the token. A device that lost the answer repeats with the same token and key."""
    token = (
        EnrolmentToken.objects.filter(token_hash=hash_token(request.token)).select_related("group", "used_by").first()
    )
    if token is None:
        raise EnrolmentRefusedError("The enrolment token is unknown, used or expired.")
    if _consume(token):
        return _admit(token, request, public_key)
    token.refresh_from_db()
    if token.used_by is None or token.used_by.public_key != public_key:
        raise EnrolmentRefusedError("The enrolment token is unknown, used or expired.")
    return _unless_revoked(token.used_by)


def _consume(token: EnrolmentToken) -> bool:
    """Only one of those who try at the same time sees the count of 1."""
    now = timezone.now()
    return bool(EnrolmentToken.objects.filter(pk=token.pk, used_at=None, expires_at__gt=now).update(used_at=now))


def _admit(token: EnrolmentToken, request: protocol.EnrolRequest, public_key: str) -> Device:
    device, is_new = Device.objects.get_or_create(public_key=public_key, defaults=_description(request))
    if is_new:
        desired.create_empty(device)
    else:
        _unless_revoked(device)
        Device.objects.filter(pk=device.pk).update(**_description(request))
    EnrolmentToken.objects.filter(pk=token.pk).update(used_by=device)
    if token.group:
        device.groups.add(token.group)
        _apply_limits([device.pk])
    add_tags(device=device, tags=token.tags)
    record_event(device.pk, "device", "enrolled", name=request.name, token=token.prefix)
    return device


def _description(request: protocol.EnrolRequest) -> dict[str, Any]:
    return {
        "name": request.name,
        "agent_version": request.agent_version,
        "hardware": asdict(request.hardware),
        "last_seen_at": timezone.now(),
    }


def _unless_revoked(device: Device) -> Device:
    if device.state == DeviceState.REVOKED:
        raise DeviceRevokedError(f"The device {device.pk} was revoked.")
    return device


def create_group(*, name: str, description: str = "") -> DeviceGroup:
    """A new, empty group."""
    try:
        with transaction.atomic():
            return DeviceGroup.objects.create(name=name, description=description)
    except IntegrityError as error:
        raise GroupExistsError(f"There is a group {name!r:.80}.") from error


@transaction.atomic
def update_group(
    *, group: DeviceGroup, actor: str, description: str | None = None, limits: Mapping[str, Any] | None = None
) -> DeviceGroup:
    """Change what the group is for, or the limits that are named; None lifts one. `apply_limits` tells the devices."""
    group = DeviceGroup.objects.select_for_update().get(pk=group.pk)
    if description is not None:
        group.description = description
    after = {name: value for name, value in (group.limits | dict(limits or {})).items() if value is not None}
    if after != group.limits:
        chain.append(
            actor=actor, kind="group_limited", detail={"group": group.name, "before": group.limits, "after": after}
        )
        group.limits, group.limits_version = after, group.limits_version + 1
    group.save(update_fields=["description", "limits", "limits_version"])
    return group


def apply_limits(group_id: int) -> None:
    """Bring the documents of a group's devices to its limits, in batches. Repeating it changes nothing."""
    group = DeviceGroup.objects.get(pk=group_id)
    device_ids = list(group.devices.order_by("pk").values_list("pk", flat=True))
    for start in range(0, len(device_ids), LIMITS_BATCH_SIZE):
        _apply_limits(device_ids[start : start + LIMITS_BATCH_SIZE])
    rows = DeviceGroup.objects.filter(pk=group_id, limits_version=group.limits_version)
    rows.update(limits_applied=group.limits_version)


@transaction.atomic
def _apply_limits(device_ids: Sequence[str]) -> None:
    """To what all of their groups say now: the records are held first, so whoever comes later sees it and decides."""
    records = list(desired.records_of(device_ids).select_for_update())
    given: dict[str, list[protocol.Limits]] = {}
    for pk, kept in DeviceGroup.objects.filter(devices__in=device_ids).values_list("devices", "limits"):
        given.setdefault(pk, []).append(limits_of(kept))
    allowed = ((record, tightest(given.get(record.pk, ()))) for record in records)
    changes = [(record, limits) for record, limits in allowed if limits != desired.current_limits(record)]
    desired.limit(changes)
    record_events([record.pk for record, _ in changes], "groups", "limits_changed")


@transaction.atomic
def add_to_group(*, group: DeviceGroup, device: Device, actor: str) -> None:
    """Put the device into the group; nothing happens if it is there."""
    if not group.devices.filter(pk=device.pk).exists():
        group.devices.add(device)
        record_event(device.pk, actor, "group_joined", group=group.name)
        _apply_limits([device.pk])


@transaction.atomic
def remove_from_group(*, group: DeviceGroup, device: Device, actor: str) -> None:
    """Take the device out of the group. Its limits change at once; what it has stays until the next rollout."""
    if group.devices.filter(pk=device.pk).exists():
        group.devices.remove(device)
        record_event(device.pk, actor, "group_left", group=group.name)
        _apply_limits([device.pk])


def add_tags(*, device: Device, tags: Iterable[str]) -> None:
    """Add labels that the device does not have yet."""
    DeviceTag.objects.bulk_create([DeviceTag(device=device, tag=tag) for tag in tags], ignore_conflicts=True)


@transaction.atomic
def update_device(*, device: Device, actor: str, name: str | None = None, tags: Sequence[str] | None = None) -> Device:
    """Rename the device, or give it exactly these tags."""
    if name is not None and name != device.name:
        record_event(device.pk, actor, "renamed", before=device.name, after=name)
        device.name = name
        device.save(update_fields=["name"])
    if tags is not None and sorted(set(tags)) != device.tags:
        record_event(device.pk, actor, "tagged", before=device.tags, after=sorted(set(tags)))
        device.tag_rows.exclude(tag__in=tags).delete()
        add_tags(device=device, tags=set(tags))
    return device


@transaction.atomic
def revoke(*, device: Device, actor: str) -> bool:
    """Shut the device out from its next request on; False if it was before."""
    now = timezone.now()
    rows = Device.objects.filter(pk=device.pk, state=DeviceState.ENROLLED)
    if not rows.update(state=DeviceState.REVOKED, revoked_at=now):
        return False
    record_event(device.pk, actor, "revoked")
    return True


def rotate_key(*, device: Device, public_key: str) -> None:
    """The device signs with another key from now on. Raises `BadDeviceDataError` for a key that another one has."""
    if device.public_key == public_key:
        return
    try:
        with transaction.atomic():
            Device.objects.filter(pk=device.pk).update(public_key=public_key)
            record_event(device.pk, "device", "key_rotated")
            chain.append(actor=device.pk, kind="key_rotated", detail={"before": device.public_key, "after": public_key})
    except IntegrityError as error:
        raise BadDeviceDataError("public_key: another device has this key") from error


def note_seen(device: Device) -> None:
    """Remember that the device called, at most once a minute: a poll shall stay a read."""
    now = timezone.now()
    if device.last_seen_at is None or now - device.last_seen_at >= LAST_SEEN_RESOLUTION:
        Device.objects.filter(pk=device.pk).update(last_seen_at=now)


@transaction.atomic
def record_report(*, device: Device, report: protocol.DeviceReport, proof: chain.Proof | None = None) -> None:
    """Keep what the device says it has; what changed goes into its timeline, with its proof into the audit chain."""
    if problem := check_report(report):
        raise BadDeviceDataError(problem)
    if _note_changes(device, report) and proof:
        chain.append(actor=device.pk, kind=chain.REPORTED, detail={"proof": asdict(proof)})
    document = asdict(report)
    if device.report is None or _installed(device.report) != _installed(document):
        _index_installed(device, report)
    now = timezone.now()
    Device.objects.filter(pk=device.pk).update(
        report=document,
        reported_at=now,
        last_seen_at=now,
        agent_version=report.agent_version,
        hardware=document["hardware"],
        update_state=report.state,
        revision=report.revision,
        target_revision=report.target_revision,
        problem_code=report.problem.code if report.problem else "",
    )


def _note_changes(device: Device, report: protocol.DeviceReport) -> bool:
    code = report.problem.code if report.problem else ""
    before = (device.update_state, device.revision, device.target_revision, device.problem_code)
    if before == (report.state, report.revision, report.target_revision, code):
        return False
    detail: dict[str, Any] = {"revision": report.revision, "target_revision": report.target_revision}
    if report.problem:
        detail["problem"] = asdict(report.problem)
    record_event(device.pk, "device", f"update_{report.state}", **detail)
    return True


def _installed(document: dict[str, Any]) -> tuple[Any, list[Any]]:
    return document.get("base"), list(document.get("adapters", ()))


def _index_installed(device: Device, report: protocol.DeviceReport) -> None:
    InstalledRelease.objects.filter(device=device).delete()
    refs = [(True, report.base)] if report.base else []
    refs += [(False, adapter) for adapter in report.adapters]
    InstalledRelease.objects.bulk_create(
        InstalledRelease(device=device, is_base=is_base, name=ref.name, version=ref.version, digest=ref.digest)
        for is_base, ref in refs
    )


def record_event(device_id: str, actor: str, kind: str, **detail: Any) -> None:
    """Add a line to the device's timeline."""
    record_events([device_id], actor, kind, **detail)


def record_events(device_ids: Iterable[str], actor: str, kind: str, **detail: Any) -> None:
    """Add the same line to the timelines of many devices."""
    ids, now = list(device_ids), timezone.now()
    with transaction.atomic():
        DeviceEvent.objects.bulk_create(
            [DeviceEvent(device_id=pk, at=now, actor=actor, kind=kind, detail=detail) for pk in ids], batch_size=500
        )
        if actor != "device" and ids:  # what devices say is in the chain as they signed it
            chain.append(actor=actor, kind=kind, detail={**detail, "devices": ids})


def remember_nonce(*, device_id: str, nonce: str, lasts: timedelta) -> bool:
    """Whether the nonce is new; from now on it is not."""
    try:
        with transaction.atomic():
            SeenNonce.objects.create(device_id=device_id, nonce=nonce, expires_at=timezone.now() + lasts)
    except IntegrityError:
        return False
    return True


def forget_expired() -> None:
    """Delete nonces and unused tokens that can't be used any more."""
    now = timezone.now()
    SeenNonce.objects.filter(expires_at__lt=now).delete()
    unused_for_long = Q(used_at=None, expires_at__lt=now - timedelta(days=30))
    EnrolmentToken.objects.filter(unused_for_long).delete()
