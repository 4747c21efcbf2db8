"""Takes an archive's bytes in, piece by piece, and makes a blob of them when they are all there and the right ones.

The length of the partial file is the truth about how far an upload has come; the row mirrors it. One request at a
time writes to an upload. Knows nothing of what the bytes are.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from engine.artifact import sha256_file
from registry.errors import (
    DigestMismatchError,
    TooManyBytesError,
    UploadIncompleteError,
    UploadLockedError,
    UploadOffsetMismatchError,
)
from registry.models import Upload
from registry.queries import get_upload
from registry.storage import blob_store, sync_file

LIFETIME = timedelta(days=1)
_COPY_BYTES = 1 << 20

Read = Callable[[int], bytes]


def create_upload(*, sha256: str, size_bytes: int, actor: str) -> Upload:
    """Room for an archive. If its bytes are here already, nothing has to be sent. Call under the store's lock."""
    now = timezone.now()
    is_here = Upload.objects.filter(sha256=sha256, size_bytes=size_bytes).exclude(completed_at=None).exists()
    return Upload.objects.create(
        sha256=sha256,
        size_bytes=size_bytes,
        offset_bytes=size_bytes if is_here else 0,
        completed_at=now if is_here else None,
        expires_at=now + LIFETIME,
        created_by=actor,
    )


def current_offset(upload: Upload) -> int:
    """Bytes that are safely here."""
    if upload.completed_at:
        return upload.size_bytes
    try:
        return _data_path(upload).stat().st_size
    except FileNotFoundError:
        return 0


def append_bytes(*, upload_id: UUID, offset_bytes: int, length_bytes: int | None, read: Read) -> int:
    """Append what `read` gives until it ends or breaks off, and return the new offset. What has arrived is kept.

    With the last byte the SHA-256 is checked. Raises `UploadLockedError`, `UploadOffsetMismatchError`,
    `TooManyBytesError`, `DigestMismatchError`, `UploadGoneError`.
    """
    with _exclusive(upload_id) as upload:
        _check_offset(upload, offset_bytes)
        remaining_bytes = upload.size_bytes - offset_bytes
        if length_bytes is not None and length_bytes > remaining_bytes:
            raise TooManyBytesError(f"{length_bytes} bytes were announced, {remaining_bytes} are missing")
        if remaining_bytes:
            _receive(upload, read, remaining_bytes)
            _seal_if_whole(upload)
        return current_offset(upload)


def require_complete(*, upload_id: UUID) -> None:
    """Raise `UploadIncompleteError` or `DigestMismatchError` unless all bytes are here and the right ones."""
    with _exclusive(upload_id) as upload:
        offset_bytes = current_offset(upload)
        if offset_bytes < upload.size_bytes:
            raise UploadIncompleteError(
                f"{offset_bytes} of {upload.size_bytes} bytes are here", headers={"Upload-Offset": str(offset_bytes)}
            )
        _seal_if_whole(upload)


@contextmanager
def _exclusive(upload_id: UUID) -> Iterator[Upload]:
    """The row as it is now, with no other request writing to its file."""
    directory = blob_store().upload_directory(get_upload(upload_id).pk)
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UploadLockedError(f"another request is writing to upload {upload_id}") from error
        yield get_upload(upload_id)


def _check_offset(upload: Upload, offset_bytes: int) -> None:
    expected = current_offset(upload)
    if offset_bytes != expected:
        raise UploadOffsetMismatchError(
            f"Upload-Offset is {offset_bytes}, but {expected} bytes are here", headers={"Upload-Offset": str(expected)}
        )


def _receive(upload: Upload, read: Read, remaining_bytes: int) -> None:
    path = _data_path(upload)
    start = current_offset(upload)
    _note_offset(upload, start)  # so that it does not expire meanwhile
    with path.open("ab") as file:
        try:
            _copy(read, file, remaining_bytes)
        except TooManyBytesError:
            file.truncate(start)
            raise
        finally:
            file.flush()
            os.fsync(file.fileno())
            _note_offset(upload, path.stat().st_size)


def _copy(read: Read, file: BinaryIO, remaining_bytes: int) -> None:
    while True:
        try:
            data = read(min(_COPY_BYTES, remaining_bytes + 1))
        except OSError:
            return  # the client went away; it will ask for the offset
        if not data:
            return
        remaining_bytes -= len(data)
        if remaining_bytes < 0:
            raise TooManyBytesError("more bytes arrived than size_bytes announced")
        file.write(data)


def _seal_if_whole(upload: Upload) -> None:
    """Make a blob of the whole file. Wrong bytes are thrown away, all of them: nobody knows which were wrong."""
    path = _data_path(upload)
    if upload.completed_at or current_offset(upload) < upload.size_bytes:
        return
    found = sha256_file(path)
    if found != upload.sha256:
        path.unlink()
        _note_offset(upload, 0)
        raise DigestMismatchError(
            f"the bytes have SHA-256 {found}, {upload.sha256} was announced", headers={"Upload-Offset": "0"}
        )
    sync_file(path)
    store = blob_store()
    with store.locked(), transaction.atomic():
        upload.completed_at = timezone.now()
        upload.offset_bytes = upload.size_bytes
        upload.save(update_fields=["completed_at", "offset_bytes"])
        store.adopt(path, upload.sha256)
    path.unlink()


def _note_offset(upload: Upload, offset_bytes: int) -> None:
    Upload.objects.filter(pk=upload.pk).update(offset_bytes=offset_bytes, expires_at=timezone.now() + LIFETIME)


def _data_path(upload: Upload) -> Path:
    return blob_store().upload_directory(upload.pk) / "data"
