"""A publication's row from queue to release or failure: who has it in hand, how far it is, what became of it.

Each change is a conditional UPDATE that names the states it may start from (`registry.states`), and a worker's
changes name its attempt as well: one that was taken for dead and comes back changes nothing. Knows no archives.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import F, QuerySet
from django.utils import timezone

from engine.artifact import MANIFEST_NAME, FileEntry, Manifest, read_manifest
from registry import indexes
from registry.chunking import IndexedBundle
from registry.errors import DuplicateVersionError, KindConflictError, RegistryError
from registry.models import Artifact, Publication, Release, ReleaseFile, Upload
from registry.report import describe
from registry.states import RUNNING, PublicationState, sources
from registry.storage import blob_store
from registry.versions import parse_version

MAX_ATTEMPTS = 3
STALLED_AFTER = timedelta(seconds=15)
"""Without a heartbeat for so long, a worker counts as dead, and a message to one as lost."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One worker's attempt at one publication."""

    publication_id: UUID
    attempt: int


class SupersededError(Exception):
    """Another attempt has taken the publication over, or it is finished."""


class InterruptedPublicationError(RegistryError):
    """Workers died on it again and again."""

    code = "interrupted"
    title = "The work was interrupted too often"
    default_hint = "Publish again; if it happens again, the worker may be short of memory: see its log."


class UploadExpiredError(RegistryError):
    """The upload was left alone for too long."""

    code = "upload_expired"
    title = "The upload has expired"
    default_hint = "Start a new publication; uploads may pause for a day at most."


def claim(*, publication_id: UUID) -> Claim | None:
    """Take a queued publication in hand; None if there is nothing to do or somebody else was first."""
    queued = Publication.objects.filter(pk=publication_id, state__in=sources(PublicationState.VALIDATING))
    taken = queued.update(
        state=PublicationState.VALIDATING,
        attempt=F("attempt") + 1,
        heartbeat_at=timezone.now(),
        step="starting",
        progress=0.0,
    )
    if not taken:
        return None
    return Claim(publication_id, Publication.objects.values_list("attempt", flat=True).get(pk=publication_id))


def beat(*, claim: Claim) -> None:
    """Show that the worker lives; raises `SupersededError`."""
    _change(claim)


def advance(*, claim: Claim, step: str, progress: float) -> None:
    """Show how far the work is; raises `SupersededError`."""
    _change(claim, step=step[:120], progress=min(max(progress, 0.0), 1.0))


def begin_conversion(*, claim: Claim) -> None:
    """The archive is unpacked; raises `SupersededError`."""
    _change(claim, state=PublicationState.CONVERTING, step="converting")


def publish(*, claim: Claim, bundle: Path, indexed: IndexedBundle | None = None) -> Release:
    """Make the release: its files and its index become blobs and its rows appear, at once. Raises `SupersededError`.

    Without an index, one is made when a device first asks for it.
    """
    manifest, digest = read_manifest(bundle)
    store = blob_store()
    with store.locked(), transaction.atomic():
        publication = _held(claim).select_for_update(of=("self",)).select_related("base").first()
        if publication is None:
            raise SupersededError(f"attempt {claim.attempt} at {claim.publication_id} is over")
        for entry in manifest.files:
            store.adopt(bundle / entry.path, entry.sha256)
        release = _create_release(publication, manifest, digest, (bundle / MANIFEST_NAME).read_bytes())
        if indexed is not None:
            indexes.attach(store=store, indexed=indexed)
        _finish(_held(claim), PublicationState.PUBLISHED, step="published", progress=1.0, release=release)
    return release


def fail(*, claim: Claim, problem: dict[str, str]) -> None:
    """End the attempt and the publication; nothing happens if it is not in this worker's hand any more."""
    with transaction.atomic():
        _finish(_held(claim), PublicationState.FAILED, step="failed", problem=problem)


def requeue_stalled(*, now: datetime) -> list[UUID]:
    """Publications that a worker has to be told of (again): queued, or in the hand of one that died.

    Those that have had their attempts fail instead.
    """
    silent = Publication.objects.filter(heartbeat_at__lt=now - STALLED_AFTER)
    with transaction.atomic():
        _finish(
            silent.filter(state__in=RUNNING, attempt__gte=MAX_ATTEMPTS),
            PublicationState.FAILED,
            step="failed",
            problem=InterruptedPublicationError(f"{MAX_ATTEMPTS} workers died while converting it").problem(),
        )
    due = silent.filter(state__in=RUNNING | {PublicationState.QUEUED}).values_list("pk", flat=True)
    return [pk for pk in due if _requeue(silent.filter(pk=pk), now)]


def fail_expired(*, now: datetime) -> int:
    """Give up uploads that nobody has continued; returns how many."""
    expired = Publication.objects.filter(state=PublicationState.UPLOADING, upload__expires_at__lt=now)
    problem = UploadExpiredError("no bytes have come for a day").problem()
    with transaction.atomic():
        return _finish(expired, PublicationState.FAILED, step="failed", problem=problem)


def _requeue(silent: QuerySet[Publication], now: datetime) -> int:
    return silent.filter(state__in=RUNNING | {PublicationState.QUEUED}).update(
        state=PublicationState.QUEUED, heartbeat_at=now, step="waiting for a worker", progress=0.0
    )


def _held(claim: Claim) -> QuerySet[Publication]:
    return Publication.objects.filter(pk=claim.publication_id, attempt=claim.attempt, state__in=RUNNING)


def _change(claim: Claim, **values: Any) -> None:
    held = _held(claim)
    if "state" in values:
        held = held.filter(state__in=sources(values["state"]))
    if not held.update(heartbeat_at=timezone.now(), **values):
        raise SupersededError(f"attempt {claim.attempt} at {claim.publication_id} is over")


def _finish(which: QuerySet[Publication], state: PublicationState, **values: Any) -> int:
    """Move to a final state. The archive has done its duty: with its row gone, `garbage` removes the bytes."""
    uploads = list(which.exclude(upload=None).values_list("upload", flat=True))
    finished = which.filter(state__in=sources(state)).update(
        state=state, finished_at=timezone.now(), upload=None, **values
    )
    Upload.objects.filter(pk__in=uploads, publication=None).delete()
    return finished


def _create_release(publication: Publication, manifest: Manifest, digest: str, manifest_bytes: bytes) -> Release:
    artifact, _ = Artifact.objects.get_or_create(name=publication.name, defaults={"kind": publication.kind})
    if artifact.kind != publication.kind:
        raise KindConflictError(f"{artifact.name} holds releases of kind {artifact.kind}")
    if Release.objects.filter(artifact=artifact, version=publication.version).exists():
        raise DuplicateVersionError(f"{publication} exists already")
    version = parse_version(publication.version)
    release = Release.objects.create(
        artifact=artifact,
        version=publication.version,
        version_key=version.sort_key,
        is_prerelease=bool(version.prerelease),
        digest=digest,
        manifest=manifest_bytes,
        size_bytes=sum(entry.size_bytes for entry in manifest.files),
        base=publication.base,
        notes=publication.notes,
        report=describe(manifest),
        published_by=publication.created_by,
    )
    ReleaseFile.objects.bulk_create([_file_row(release, entry) for entry in manifest.files])
    return release


def _file_row(release: Release, entry: FileEntry) -> ReleaseFile:
    return ReleaseFile(release=release, path=entry.path, sha256=entry.sha256, size_bytes=entry.size_bytes)
