"""Reads of the catalogue, for the API, the rollouts and the dashboard. Nothing here writes.

A reference is `name@1.2.0`, `name@alias`, `name` (the newest) or a release digest.
"""

from __future__ import annotations

import re
from uuid import UUID

from django.db.models import Count, OuterRef, Prefetch, Q, QuerySet, Subquery

from registry.errors import (
    AliasNotFoundError,
    ArtifactNotFoundError,
    PublicationNotFoundError,
    ReleaseNotFoundError,
    ReleaseYankedError,
    UploadGoneError,
)
from registry.models import Alias, Artifact, ArtifactKind, Publication, Release, ReleaseFile, ReleaseState, Upload
from registry.states import UNFINISHED
from registry.versions import is_version

_DIGEST = re.compile(r"[0-9a-f]{64}")
_REFERENCE = re.compile(r"[0-9A-Za-z._@-]{1,160}")


def releases(
    *, kind: str | None = None, name: str | None = None, state: str | None = None, search: str = ""
) -> QuerySet[Release]:
    """Releases, newest first, with all that a list shows; `search` looks at names, descriptions, versions and notes."""
    wanted = {"artifact__kind": kind, "artifact__name": name, "state": state}
    found = Release.objects.filter(**{field: value for field, value in wanted.items() if value})
    if search:
        found = found.filter(mentions(search))
    return _with_context(found).order_by("-published_at", "-pk")


def resolve_release(ref: str, *, kind: str | None = None) -> Release:
    """The release to give to a device. By name only published ones count; a digest finds a yanked one too.

    Raises `ReleaseNotFoundError`; `ReleaseYankedError`, a subclass, if a version or alias stands for a yanked release.
    """
    release = find_release(ref, kind=kind)
    if release.is_yanked and not _DIGEST.fullmatch(ref):
        reason = f": {release.yank_reason}" if release.yank_reason else ""
        raise ReleaseYankedError(f"{release.ref} was yanked{reason}")
    return release


def find_release(ref: str, *, kind: str | None = None) -> Release:
    """The release that the reference names, yanked or not, to look at it. Raises `ReleaseNotFoundError`."""
    candidates = Release.objects.filter(_reference(ref)) if _REFERENCE.fullmatch(ref) else Release.objects.none()
    if kind:
        candidates = candidates.filter(artifact__kind=kind)
    # Several only for a digest (one that is not yanked goes first) and a bare name (final before pre-release).
    release = _with_context(candidates).order_by("state", "is_prerelease", "-version_key", "pk").first()
    if release is None:
        label = f"{kind} release" if kind else "release"
        raise ReleaseNotFoundError(f"There is no {label} {ref!r:.200}")
    return release


def adapters_fitting(base: Release) -> QuerySet[Release]:
    """Published adapters made for this base's content, whatever name it has, newest first."""
    return _with_context(Release.objects.filter(fits(base), state=ReleaseState.PUBLISHED)).order_by(
        "-published_at", "-pk"
    )


def fits(base: Release) -> Q:
    """Condition on releases: an adapter for this base's content."""
    return Q(artifact__kind=ArtifactKind.ADAPTER, base__digest=base.digest)


def mentions(words: str) -> Q:
    """Condition on releases: every word stands in name, description, version or notes."""
    wanted = Q()
    for word in words.split():
        wanted &= (
            Q(artifact__name__icontains=word)
            | Q(artifact__description__icontains=word)
            | Q(version__icontains=word)
            | Q(notes__icontains=word)
        )
    return wanted


def artifact_mentions(text: str) -> Q:
    """Condition on artifacts: the text stands in name or description."""
    return Q(name__icontains=text) | Q(description__icontains=text)


def manifest_bytes(release: Release) -> bytes:
    """The exact bytes whose SHA-256 is the release's digest."""
    return bytes(release.manifest)


def release_files(release: Release) -> QuerySet[ReleaseFile]:
    """The files that the manifest lists, by path."""
    return release.files.order_by("path")


def named_blobs() -> set[str]:
    """The SHA-256 of every blob that a release needs: its files, their packed objects, its index."""
    named: set[str] = set()
    for sha256s in ReleaseFile.objects.values_list("sha256", "object_sha256").distinct():
        named.update(sha256s)
    named.update(Release.objects.values_list("index_sha256", flat=True).distinct())
    return named - {""}


def artifacts(*, kind: str | None = None, search: str = "") -> QuerySet[Artifact]:
    """Artifacts by name, each with `num_releases`, `newest_version` (None if all are yanked) and its aliases."""
    published = Release.objects.filter(artifact=OuterRef("pk"), state=ReleaseState.PUBLISHED)
    newest = published.order_by("is_prerelease", "-version_key").values("version")[:1]
    found = Artifact.objects.filter(**({"kind": kind} if kind else {}))
    if search:
        found = found.filter(artifact_mentions(search))
    return (
        found.annotate(num_releases=Count("releases"), newest_version=Subquery(newest))
        .prefetch_related(Prefetch("aliases", queryset=Alias.objects.select_related("release")))
        .order_by("name")
    )


def get_artifact(name: str) -> Artifact:
    """One artifact as `artifacts` gives it; raises `ArtifactNotFoundError`."""
    artifact = artifacts().filter(name=name).first()
    if artifact is None:
        raise ArtifactNotFoundError(f"There is no artifact {name!r:.80}")
    return artifact


def get_alias(artifact_name: str, alias_name: str) -> Alias:
    """One alias of an artifact; raises `AliasNotFoundError`."""
    rows = Alias.objects.select_related("artifact", "release__artifact")
    alias = rows.filter(artifact__name=artifact_name, name=alias_name).first()
    if alias is None:
        raise AliasNotFoundError(f"{artifact_name!r:.80} has no alias {alias_name!r:.80}")
    return alias


def lineage() -> QuerySet[Release]:
    """Base releases, newest first, each with the adapter releases made for it in `lineage_adapters`."""
    adapters = _with_context(Release.objects.all()).order_by("artifact__name", "-version_key")
    return releases(kind=ArtifactKind.BASE).prefetch_related(
        Prefetch("adapters", queryset=adapters, to_attr="lineage_adapters")
    )


def publications(*, state: str | None = None, name: str | None = None) -> QuerySet[Publication]:
    """Publications, newest first."""
    wanted = {"state": state, "name": name}
    found = Publication.objects.filter(**{field: value for field, value in wanted.items() if value})
    return _publication_context(found).order_by("-created_at", "-pk")


def publications_in_progress() -> QuerySet[Publication]:
    """Publications that are neither published nor failed, newest first."""
    return publications().filter(state__in=UNFINISHED)


def get_publication(publication_id: UUID) -> Publication:
    """One publication; raises `PublicationNotFoundError`."""
    publication = _publication_context(Publication.objects.filter(pk=publication_id)).first()
    if publication is None:
        raise PublicationNotFoundError(f"There is no publication {publication_id}")
    return publication


def get_upload(upload_id: UUID) -> Upload:
    """An upload that is still there; raises `UploadGoneError`."""
    upload = Upload.objects.filter(pk=upload_id).first()
    if upload is None:
        raise UploadGoneError(f"There is no upload {upload_id}, or not any more")
    return upload


def _reference(ref: str) -> Q:
    if _DIGEST.fullmatch(ref):
        return Q(digest=ref)
    name, _, selector = ref.partition("@")
    if not selector:
        return Q(artifact__name=ref, state=ReleaseState.PUBLISHED)
    if is_version(selector):
        return Q(artifact__name=name, version=selector)
    return Q(artifact__name=name, aliases__name=selector)


def _with_context(found: QuerySet[Release]) -> QuerySet[Release]:
    """With what people see of a release, in a fixed number of queries. The manifest's bytes stay where they are."""
    return found.defer("manifest").select_related("artifact", "base__artifact").prefetch_related("aliases", "files")


def _publication_context(found: QuerySet[Publication]) -> QuerySet[Publication]:
    return found.select_related("upload", "release__artifact", "base__artifact")
