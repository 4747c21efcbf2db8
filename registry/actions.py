"""What people do to the catalogue, one transaction each.

Reads are in `queries`, a worker's writes in `publications`, the bytes of archives in `uploads`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from uuid import UUID

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from registry import queries
from registry.errors import (
    BaseRefusedError,
    DuplicateVersionError,
    InvalidAliasError,
    KindConflictError,
    PublicationNotOpenError,
    ReleaseNotFoundError,
    ReleaseYankedError,
    TooLargeError,
)
from registry.models import (
    MAX_NAME_LENGTH,
    Alias,
    Artifact,
    ArtifactKind,
    Publication,
    Release,
    ReleaseState,
    validate_name,
)
from registry.states import HOLDS_VERSION, UNFINISHED, PublicationState
from registry.storage import blob_store
from registry.tasks import send_to_worker
from registry.uploads import create_upload, require_complete
from registry.versions import is_version, parse_version


@dataclass(frozen=True, slots=True)
class Announcement:
    """What somebody wants to publish, and the archive that holds it."""

    kind: str
    name: str
    version: str
    sha256: str
    size_bytes: int
    base_ref: str = ""
    notes: str = ""


def start_publication(*, announcement: Announcement, actor: str) -> tuple[Publication, bool]:
    """A publication that waits for its archive, and whether it is new: the same announcement finds the same one.

    Raises `InvalidVersionError`, `TooLargeError`, `BaseRefusedError`, `DuplicateVersionError`, `KindConflictError`.
    """
    parse_version(announcement.version)
    if announcement.size_bytes > settings.SOCLE_MAX_UPLOAD_BYTES:
        raise TooLargeError(f"{announcement.size_bytes} bytes; at most {settings.SOCLE_MAX_UPLOAD_BYTES} are taken")
    base = _base_for(announcement)
    with blob_store().locked(), transaction.atomic():
        known = _same_publication(announcement, base)
        if known is not None:
            return known, False
        _check_name_and_version(announcement)
        upload = create_upload(sha256=announcement.sha256, size_bytes=announcement.size_bytes, actor=actor)
        publication = Publication.objects.create(
            kind=announcement.kind,
            name=announcement.name,
            version=announcement.version,
            base_ref=announcement.base_ref,
            base=base,
            notes=announcement.notes,
            archive_sha256=announcement.sha256,
            archive_size_bytes=announcement.size_bytes,
            upload=upload,
            step="waiting for bytes",
            created_by=actor,
        )
    return publication, True


def finish_publication(*, publication_id: UUID) -> Publication:
    """Hand an uploaded archive over to a worker. Again is fine.

    Raises `UploadIncompleteError`, `DigestMismatchError`, `DuplicateVersionError`, `PublicationNotOpenError`.
    """
    publication = queries.get_publication(publication_id)
    if publication.state == PublicationState.UPLOADING and publication.upload is not None:
        require_complete(upload_id=publication.upload.pk)
        _queue(publication)
        publication = queries.get_publication(publication_id)
    if publication.state == PublicationState.FAILED:
        raise PublicationNotOpenError(f"publication {publication_id} has failed")
    return publication


def yank_release(*, ref: str, reason: str) -> Release:
    """Withdraw a release: devices that have it keep it, nobody else gets it by name. Again changes nothing."""
    release = queries.find_release(ref)
    Release.objects.filter(pk=release.pk, state=ReleaseState.PUBLISHED).update(
        state=ReleaseState.YANKED, yanked_at=timezone.now(), yank_reason=reason
    )
    return queries.find_release(release.ref)


def set_notes(*, ref: str, notes: str) -> Release:
    """Replace a release's notes, the only thing about it that may change."""
    release = queries.find_release(ref)
    Release.objects.filter(pk=release.pk).update(notes=notes)
    return queries.find_release(release.ref)


def set_description(*, name: str, description: str) -> Artifact:
    """Replace what is said about an artifact."""
    artifact = queries.get_artifact(name)
    Artifact.objects.filter(pk=artifact.pk).update(description=description)
    return queries.get_artifact(name)


def set_alias(*, name: str, alias: str, version: str, actor: str) -> tuple[Alias, bool]:
    """Let an alias stand for a version, and whether the alias is new.

    Raises `InvalidAliasError`, `ReleaseNotFoundError`; a yanked version gets no alias.
    """
    if is_version(alias) or len(alias) > MAX_NAME_LENGTH or not validate_name.regex.search(alias):
        raise InvalidAliasError(f"{alias!r:.80} cannot be an alias")
    release = queries.resolve_release(f"{name}@{version}")
    _, is_new = Alias.objects.update_or_create(
        artifact=release.artifact, name=alias, defaults={"release": release, "updated_by": actor}
    )
    return queries.get_alias(name, alias), is_new


def remove_alias(*, name: str, alias: str) -> None:
    """Forget an alias; raises `AliasNotFoundError`."""
    queries.get_alias(name, alias).delete()


def _base_for(announcement: Announcement) -> Release | None:
    """The base release that an adapter is pinned to from here on; an alias may move meanwhile."""
    if announcement.kind == ArtifactKind.BASE:
        return None
    try:
        base = queries.resolve_release(announcement.base_ref)
    except ReleaseYankedError as error:
        raise BaseRefusedError(error.detail, hint=error.hint) from error
    except ReleaseNotFoundError as error:
        raise BaseRefusedError(error.detail, fields={"base": [error.detail]}) from error
    if base.kind != ArtifactKind.BASE:
        raise BaseRefusedError(f"{base.ref} is an adapter, not a base model")
    return base


def _same_publication(announcement: Announcement, base: Release | None) -> Publication | None:
    same = queries.publications(name=announcement.name).filter(
        kind=announcement.kind,
        version=announcement.version,
        archive_sha256=announcement.sha256,
        archive_size_bytes=announcement.size_bytes,
        base=base,
        state__in=UNFINISHED | {PublicationState.PUBLISHED},
    )
    return same.first()


def _check_name_and_version(announcement: Announcement) -> None:
    ref = f"{announcement.name}@{announcement.version}"
    others = Publication.objects.filter(name=announcement.name, state__in=HOLDS_VERSION)
    if others.filter(version=announcement.version).exists():
        raise DuplicateVersionError(f"{ref} exists with other content, or is being published")
    if others.exclude(kind=announcement.kind).exists():
        raise KindConflictError(f"{announcement.name} is the name of another kind of artifact")


def _queue(publication: Publication) -> None:
    """The database knows first; a message that gets lost is sent again by the sweep."""
    try:
        with transaction.atomic():
            Publication.objects.filter(pk=publication.pk, state=PublicationState.UPLOADING).update(
                state=PublicationState.QUEUED, step="waiting for a worker", heartbeat_at=timezone.now()
            )
            transaction.on_commit(partial(send_to_worker, publication.pk), robust=True)
    except IntegrityError as error:
        raise DuplicateVersionError(f"{publication} exists with other content, or is being published") from error
