"""Where the bytes lie: one local directory with content-addressed blobs, partial uploads and scratch space.

    sha256/ab/abcdef...  a file by its SHA-256, read-only, whole and verified before it is there
    uploads/<id>/        `data`, as far as it has come, and the `lock` of the request that writes to it
    staging/<name>/      what a worker has in hand

All three are on one file system, so that a file gets to its place by a link. Knows no rows: who refers to a blob is
asked in `garbage`. Adding blobs with the rows that name them, and removing blobs that no row names, both happen under
`locked()`, so a blob can't vanish between the two.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from django.conf import settings

_SHA256 = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """Files by the SHA-256 of their content, beneath `root`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blobs = root / "sha256"

    def path(self, sha256: str) -> Path:
        """Where the blob is, or would be."""
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"{sha256!r:.80} is no SHA-256 in lower-case hex")
        return self._blobs / sha256[:2] / sha256

    def exists(self, sha256: str) -> bool:
        """Whether the blob is there; then it is whole."""
        return self.path(sha256).is_file()

    def size(self, sha256: str) -> int:
        """Bytes of the blob; raises `FileNotFoundError`."""
        return self.path(sha256).stat().st_size

    def open(self, sha256: str) -> BinaryIO:
        """The blob for reading; raises `FileNotFoundError`."""
        return self.path(sha256).open("rb")

    def adopt(self, source: Path, sha256: str) -> None:
        """Give a verified, synced file of this file system its place as a blob. Call under `locked()`.

        A link, so that `source` still lies where it was if the transaction around this fails.
        """
        place = self.path(sha256)
        if place.is_file():
            return
        _make_durable_directory(place.parent)
        source.chmod(0o444)
        place.hardlink_to(source)
        sync_directory(place.parent)

    def remove(self, sha256: str) -> None:
        """Forget a blob that no row names. Call under `locked()`."""
        self.path(sha256).unlink(missing_ok=True)

    def all_digests(self) -> Iterator[str]:
        """The SHA-256 of every blob."""
        for path in self._blobs.glob("??/*"):
            yield path.name

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from adding and removing blobs. Take it before a database transaction, never in one."""
        self._root.mkdir(parents=True, exist_ok=True)
        with (self._root / "lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def upload_directory(self, upload_id: object) -> Path:
        """Where a partial upload lies."""
        return self._root / "uploads" / str(upload_id)

    def staging_directory(self, name: str) -> Path:
        """Scratch space, on the same file system as the blobs."""
        return self._root / "staging" / name

    def upload_names(self) -> list[str]:
        """Partial uploads that there are."""
        return _names(self._root / "uploads")

    def staging_names(self) -> list[str]:
        """Scratch spaces that there are."""
        return _names(self._root / "staging")


def blob_store() -> BlobStore:
    """The store that the settings name."""
    return BlobStore(Path(settings.SOCLE_BLOB_DIR))


def sync_file(path: Path) -> None:
    """Bring a file's bytes to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Bring a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Remove a directory, there or not."""
    shutil.rmtree(path, ignore_errors=True)


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []


def _make_durable_directory(path: Path) -> None:
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        sync_directory(path.parent)
