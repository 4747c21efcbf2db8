"""Removes the bytes that no row names: blobs, partial uploads and scratch space that a failure or a kill left behind.

Whoever adds a blob adds the row that names it under the same lock, so a blob without a row is always garbage.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

from registry.models import Publication, Upload
from registry.queries import named_blobs
from registry.states import RUNNING
from registry.storage import BlobStore, blob_store, remove_tree

_INDEX_PREFIX: Final = "index."
_INDEX_TAKES_S: Final = 2 * 3600


def collect_garbage() -> None:
    """Remove all that no row names. Cheap enough to run after each publication: names are compared, no file is read."""
    store = blob_store()
    with store.locked():
        _collect_blobs(store)
        _collect_uploads(store)
        _collect_staging(store)


def index_staging_name() -> str:
    """The scratch space of whoever makes an index for an old release; no row names it, so its age decides."""
    return f"{_INDEX_PREFIX}{uuid4()}"


def staging_name(publication_id: UUID, attempt: int) -> str:
    """The scratch space of one attempt at one publication."""
    return f"{publication_id}.{attempt}"


def _collect_blobs(store: BlobStore) -> None:
    named = named_blobs() | set(Upload.objects.values_list("sha256", flat=True))
    for sha256 in set(store.all_digests()) - named:
        store.remove(sha256)


def _collect_uploads(store: BlobStore) -> None:
    alive = {str(pk) for pk in Upload.objects.values_list("pk", flat=True)}
    for name in set(store.upload_names()) - alive:
        remove_tree(store.upload_directory(name))


def _collect_staging(store: BlobStore) -> None:
    running = Publication.objects.filter(state__in=RUNNING).values_list("pk", "attempt")
    alive = {staging_name(pk, attempt) for pk, attempt in running}
    for name in set(store.staging_names()) - alive:
        if not _is_index_in_work(store.staging_directory(name)):
            remove_tree(store.staging_directory(name))


def _is_index_in_work(directory: Path) -> bool:
    with suppress(FileNotFoundError):
        return directory.name.startswith(_INDEX_PREFIX) and time.time() - directory.stat().st_mtime < _INDEX_TAKES_S
    return False
