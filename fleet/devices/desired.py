"""The desired-state document: from releases and limits to the bytes that the device's poll is answered with.

Knows how documents are made and stored; which set a device shall have is the rollouts' business.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.conf import settings
from django.db import transaction
from django.db.models import Prefetch, QuerySet
from django.utils import timezone

from edge_agent import protocol
from edge_agent.protocol import Limits
from engine.strict_json import encode, from_document
from fleet.devices.models import DesiredRecord, Device
from registry.models import Release

_RENDERED = ("revision", "document", "etag", "updated_at")


@dataclass(frozen=True, slots=True)
class ReleaseSet:
    """A base and its adapters, by name; the empty set is what a device begins with."""

    base: Release | None = None
    adapters: tuple[Release, ...] = ()

    @property
    def digests(self) -> tuple[str | None, frozenset[tuple[str, str]]]:
        """What two sets are compared by: the base's content, and each adapter's name and content."""
        return self.base.digest if self.base else None, frozenset((a.name, a.digest) for a in self.adapters)


def records_of(device_ids: Iterable[str]) -> QuerySet[DesiredRecord]:
    """Desired records with their sets, in an order that locks can be taken in."""
    releases = Release.objects.defer("manifest").select_related("artifact", "base")
    return (
        DesiredRecord.objects.filter(pk__in=list(device_ids))
        .prefetch_related(Prefetch("base", queryset=releases), Prefetch("adapters", queryset=releases))
        .order_by("pk")
    )


def current_limits(record: DesiredRecord) -> Limits:
    """What the device may spend, as its document says."""
    return from_document(Limits, record.limits)


def current_set(record: DesiredRecord) -> ReleaseSet:
    """The releases of a record whose `base__artifact` and `adapters__artifact` were fetched along."""
    return ReleaseSet(record.base, tuple(sorted(record.adapters.all(), key=lambda release: release.name)))


def create_empty(device: Device) -> DesiredRecord:
    """The first document: nothing yet, revision 0."""
    record = DesiredRecord(device=device, updated_at=timezone.now())
    _render(record, 0, ReleaseSet(), Limits())
    record.save(force_insert=True)
    return record


@transaction.atomic
def replace(changes: Iterable[tuple[DesiredRecord, ReleaseSet]]) -> None:
    """Give each record its new set and next revision. The caller holds the records for itself (see `rollouts`)."""
    through = DesiredRecord.adapters.through
    records, rows = [], []
    for record, wanted in changes:
        _render(record, record.revision + 1, wanted, current_limits(record))
        record.base, record.set_revision = wanted.base, record.revision
        records.append(record)
        rows += [through(desiredrecord_id=record.pk, release_id=adapter.pk) for adapter in wanted.adapters]
    DesiredRecord.objects.bulk_update(records, [*_RENDERED, "base", "set_revision"], batch_size=200)
    through.objects.filter(desiredrecord__in=records).delete()
    through.objects.bulk_create(rows, batch_size=500)


def limit(changes: Iterable[tuple[DesiredRecord, Limits]]) -> None:
    """Give each record its new limits and next revision. The caller holds the records, as `records_of` gives them.

    A device that shall have nothing keeps its revision: it hears of limits with its first set.
    """
    records = []
    for record, limits in changes:
        record.limits = json.loads(encode(limits))
        _render(record, record.revision + (record.base is not None), current_set(record), limits)
        records.append(record)
    DesiredRecord.objects.bulk_update(records, [*_RENDERED, "limits"], batch_size=200)


def _render(record: DesiredRecord, revision: int, wanted: ReleaseSet, limits: Limits) -> None:
    document = encode(
        protocol.DesiredState(
            device_id=record.pk,
            revision=revision,
            base=_ref(wanted.base) if wanted.base else None,
            adapters=_refs(wanted.adapters),
            limits=limits,
            poll_interval_s=settings.SOCLE_POLL_INTERVAL_S,
        )
    )
    record.revision, record.document, record.updated_at = revision, document, timezone.now()
    record.etag = f'"{revision}-{hashlib.sha256(document).hexdigest()[:32]}"'


def _refs(releases: Sequence[Release]) -> tuple[protocol.ReleaseRef, ...]:
    return tuple(sorted(map(_ref, releases), key=lambda ref: ref.name))


def _ref(release: Release) -> protocol.ReleaseRef:
    return protocol.ReleaseRef(release.name, release.version, release.digest, release.size_bytes)
