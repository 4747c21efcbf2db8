"""The desired-state document: from a set of releases to the bytes that the device's poll is answered with.

Knows how documents are made and stored; which set a device shall have is the rollouts' business.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from edge_agent import protocol
from engine.strict_json import encode
from fleet.devices.models import DesiredRecord, Device
from registry.models import Release


@dataclass(frozen=True, slots=True)
class ReleaseSet:
    """A base and its adapters, by name; the empty set is what a device begins with."""

    base: Release | None = None
    adapters: tuple[Release, ...] = ()

    @property
    def digests(self) -> tuple[str | None, frozenset[tuple[str, str]]]:
        """What two sets are compared by: the base's content, and each adapter's name and content."""
        return self.base.digest if self.base else None, frozenset((a.name, a.digest) for a in self.adapters)


def current_set(record: DesiredRecord) -> ReleaseSet:
    """The releases of a record whose `base__artifact` and `adapters__artifact` were fetched along."""
    return ReleaseSet(record.base, tuple(sorted(record.adapters.all(), key=lambda release: release.name)))


def create_empty(device: Device) -> DesiredRecord:
    """The first document: nothing yet, revision 0."""
    return DesiredRecord.objects.create(
        device=device, updated_at=timezone.now(), **_rendered(device.pk, 0, ReleaseSet())
    )


@transaction.atomic
def replace(changes: Iterable[tuple[DesiredRecord, ReleaseSet]]) -> None:
    """Give each record its new set and next revision. The caller holds the records for itself (see `rollouts`)."""
    through = DesiredRecord.adapters.through
    records, rows = [], []
    for record, wanted in changes:
        for field, value in _rendered(record.pk, record.revision + 1, wanted).items():
            setattr(record, field, value)
        record.base, record.updated_at = wanted.base, timezone.now()
        records.append(record)
        rows += [through(desiredrecord_id=record.pk, release_id=adapter.pk) for adapter in wanted.adapters]
    DesiredRecord.objects.bulk_update(records, ["revision", "document", "etag", "base", "updated_at"], batch_size=200)
    through.objects.filter(desiredrecord__in=records).delete()
    through.objects.bulk_create(rows, batch_size=500)


def _rendered(device_id: str, revision: int, wanted: ReleaseSet) -> dict[str, object]:
    document = encode(
        protocol.DesiredState(
            device_id=device_id,
            revision=revision,
            base=_ref(wanted.base) if wanted.base else None,
            adapters=_refs(wanted.adapters),
            poll_interval_s=settings.SOCLE_POLL_INTERVAL_S,
        )
    )
    etag = f'"{revision}-{hashlib.sha256(document).hexdigest()[:32]}"'
    return {"revision": revision, "document": document, "etag": etag}


def _refs(releases: Sequence[Release]) -> tuple[protocol.ReleaseRef, ...]:
    return tuple(sorted(map(_ref, releases), key=lambda ref: ref.name))


def _ref(release: Release) -> protocol.ReleaseRef:
    return protocol.ReleaseRef(release.name, release.version, release.digest, release.size_bytes)
