"""The chunk index of each release: kept as a blob beside its files, made at publication, or later for an old release.

Making one reads the whole release, so it is a worker's job; whoever only wants to serve it asks `read_index`.
"""

from __future__ import annotations

from pathlib import Path

from django.db import transaction

from engine.artifact import MANIFEST_NAME
from registry.chunking import IndexedBundle, index_bundle
from registry.garbage import index_staging_name
from registry.models import Release, ReleaseFile
from registry.queries import manifest_bytes, release_files
from registry.storage import BlobStore, blob_store, remove_tree


def read_index(release: Release) -> bytes | None:
    """The index's exact bytes; None if it is still to be made."""
    return blob_store().path(release.index_sha256).read_bytes() if release.index_sha256 else None


def ensure_index(release: Release) -> bytes:
    """The index's exact bytes, made now if there is none. Reads the whole release, so call it in a worker."""
    release.refresh_from_db(fields=["index_sha256"])
    if not release.index_sha256:
        _make(release)
        release.refresh_from_db(fields=["index_sha256"])
    return blob_store().path(release.index_sha256).read_bytes()


def attach(*, store: BlobStore, indexed: IndexedBundle) -> None:
    """Keep an index and its packed objects. Call under `store.locked()`, in the transaction that needs it.

    A release of the same content that has an index already keeps it, and shares it: somebody may have signed it.
    """
    digest = indexed.index.release
    known = Release.objects.filter(digest=digest).exclude(index_sha256="").first()
    if known is not None:
        objects = known.files.values_list("path", "object_sha256", "object_size_bytes")
        _point_to(digest, known.index_sha256, list(objects))
        return
    for sha256, path in indexed.objects:
        store.adopt(path, sha256)
    store.adopt(indexed.path, indexed.sha256)
    _point_to(digest, indexed.sha256, [(f.path, f.object_sha256, f.object_bytes) for f in indexed.index.files])


def lay_out(release: Release, directory: Path) -> Path:
    """A release as a bundle directory, without copying: its files are links to blobs."""
    directory.mkdir()
    for entry in release_files(release):
        (directory / entry.path).hardlink_to(blob_store().path(entry.sha256))
    (directory / MANIFEST_NAME).write_bytes(manifest_bytes(release))
    return directory


def _point_to(digest: str, index_sha256: str, objects: list[tuple[str, str, int]]) -> None:
    """Rows of every release of this content; an object is path, SHA-256 and size in bytes."""
    Release.objects.filter(digest=digest).update(index_sha256=index_sha256)
    for path, sha256, size_bytes in objects:
        rows = ReleaseFile.objects.filter(release__digest=digest, path=path)
        rows.update(object_sha256=sha256, object_size_bytes=size_bytes)


def _make(release: Release) -> None:
    """In scratch space that goes away, as a publication's; the sweep removes what a kill leaves."""
    store = blob_store()
    scratch = store.staging_directory(index_staging_name())
    try:
        scratch.mkdir(parents=True)
        indexed = index_bundle(lay_out(release, scratch / "bundle"), scratch / "objects")
        with store.locked(), transaction.atomic():
            attach(store=store, indexed=indexed)
    finally:
        remove_tree(scratch)
