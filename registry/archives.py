"""Unpacks what people upload: tar, tar.gz and zip, told apart by their content. An archive is hostile until unpacked.

Only the files that a conversion reads reach the disk, under names that cannot lead out of the target directory, and
never more bytes than `Limits` allow. Knows nothing of models: what the files say is `engine.convert`'s business.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from registry.errors import RegistryError

Progress = Callable[[float], None]

NEEDED_SUFFIXES = frozenset({".json", ".safetensors", ".jinja", ".txt", ".model"})
PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})

_COPY_BYTES = 1 << 20
_MAX_READ_BYTES = 4 << 20
_MAX_NAME_BYTES = 240
_BLOCK = bytes(tarfile.BLOCKSIZE)
# What the standard library raises for archives that are damaged, by accident or by design.
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    OverflowError,
    NotImplementedError,
    RecursionError,
)


class ArchiveError(RegistryError):
    """The archive is not taken."""

    code = "bad_archive"
    title = "The archive cannot be used"


class UnsupportedArchiveError(ArchiveError):
    """No format that is known here."""

    code = "unsupported_archive"
    title = "Not a tar, tar.gz or zip archive"
    default_hint = "Pack the directory with: tar -cf model.tar -C DIRECTORY ."


class TruncatedArchiveError(ArchiveError):
    """The archive ends early, or its checksums do not hold."""

    code = "truncated_archive"
    title = "The archive is cut short or damaged"
    default_hint = "Pack the directory again, check it with `tar -tf`, and publish the new archive."


class PathTraversalError(ArchiveError):
    """A name that leads, or could lead, out of the archive's directory."""

    code = "path_traversal"
    title = "The archive holds an unsafe path"
    default_hint = "Pack from inside the directory, with relative names: tar -cf model.tar -C DIRECTORY ."


class UnsupportedEntryError(ArchiveError):
    """An entry that is neither a plain file nor a directory."""

    code = "unsupported_entry"
    title = "The archive holds something other than files"
    default_hint = "Copy what links point to: tar -chf model.tar -C DIRECTORY ."


class DuplicateEntryError(ArchiveError):
    """Two entries for one place."""

    code = "duplicate_entry"
    title = "The archive holds a name twice"
    default_hint = "Pack the directory again into a new archive; do not append to an old one."


class UnpackedTooLargeError(ArchiveError):
    """Unpacked, the archive is larger than this server takes."""

    code = "too_large"
    title = "Too large"
    default_hint = "Leave out what is not needed: optimiser states, other precisions, intermediate checkpoints."


class PickleInArchiveError(ArchiveError):
    """Files in Python's pickle format run code when they are opened; they are never opened here."""

    code = "pickle_file"
    title = "The archive holds a pickle file"
    default_hint = "Save the weights as *.safetensors and leave out *.bin, *.pt and the like (also training_args.bin)."


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may take. The ratio (unpacked to packed) counts from `ratio_free_bytes` on."""

    max_total_bytes: int
    max_entries: int = 4096
    max_ratio: float = 100.0
    ratio_free_bytes: int = 64 << 20


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    size_bytes: int
    is_directory: bool
    is_plain_file: bool
    open: Callable[[], IO[bytes]]


@dataclass(slots=True)
class _Admission:
    """Checks entry by entry, before a byte of it is written."""

    limits: Limits
    archive_bytes: int
    total_bytes: int = 0
    num_entries: int = 0
    seen: set[PurePosixPath] = field(default_factory=set)

    def admit(self, entry: _Entry) -> PurePosixPath | None:
        """Where to put the entry, None if it is not needed; raises `ArchiveError`."""
        path = _safe_path(entry.name)
        self._count(entry)
        if entry.is_directory:
            return None
        if not entry.is_plain_file:
            raise UnsupportedEntryError(f"{entry.name!r:.120} is a link, a device or the like")
        if path in self.seen:
            raise DuplicateEntryError(f"{entry.name!r:.120} is there twice")
        self.seen.add(path)
        if path.suffix.lower() in PICKLE_SUFFIXES:
            raise PickleInArchiveError(f"{entry.name!r:.120} is a pickle file by its name")
        is_hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
        return path if path.suffix.lower() in NEEDED_SUFFIXES and not is_hidden else None

    def _count(self, entry: _Entry) -> None:
        self.num_entries += 1
        self.total_bytes += entry.size_bytes
        if self.num_entries > self.limits.max_entries:
            raise UnpackedTooLargeError(f"more than {self.limits.max_entries} entries")
        if self.total_bytes > self.limits.max_total_bytes:
            raise UnpackedTooLargeError(f"more than {self.limits.max_total_bytes} bytes when unpacked")
        allowed = max(self.limits.ratio_free_bytes, self.limits.max_ratio * self.archive_bytes)
        if self.total_bytes > allowed:
            raise UnpackedTooLargeError(f"more than {self.limits.max_ratio:.0f} times its packed size when unpacked")


def unpack(archive: Path, target: Path, *, limits: Limits, on_progress: Progress = lambda _fraction: None) -> Path:
    """Unpack the needed files below `target`, a new directory; returns the directory that holds the model's files.

    That is `target`, or its only subdirectory if there is nothing beside it. Raises `ArchiveError`.
    """
    target.mkdir(parents=True)
    archive_bytes = archive.stat().st_size
    admission = _Admission(limits, archive_bytes)
    with archive.open("rb") as file, _damage_refused():
        for entry in _entries(file):
            path = admission.admit(entry)
            if path is not None:
                with entry.open() as source:
                    _write(source, target, path, entry.size_bytes)
            on_progress(min(file.tell() / archive_bytes, 1.0))
    return _single_directory(target)


@contextmanager
def _damage_refused() -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        raise TruncatedArchiveError(f"the archive cannot be read to its end: {error}") from error


def _entries(file: BinaryIO) -> Iterator[_Entry]:
    head = file.read(tarfile.BLOCKSIZE)
    file.seek(0)
    if head[:4] == b"PK\x03\x04":
        return _zip_entries(file)
    if head[:2] == b"\x1f\x8b":
        return _tar_entries(gzip.GzipFile(fileobj=file))
    if head[257:262] == b"ustar":
        return _tar_entries(file)
    raise UnsupportedArchiveError("the file is neither tar, nor tar.gz, nor zip by its content")


def _tar_entries(file: IO[bytes]) -> Iterator[_Entry]:
    reader = _BoundedReader(file)
    with _tar(reader) as archive:
        for member in archive:
            yield _Entry(
                name=member.name,
                size_bytes=member.size,
                is_directory=member.isdir(),
                is_plain_file=member.isreg() and not member.issparse(),
                open=lambda member=member: archive.extractfile(member),
            )
    # The iteration ends alike at the end mark, a block of zeros, and where the file was cut between two entries.
    if reader.last_read != _BLOCK:
        raise TruncatedArchiveError("the archive ends without its end mark")
    _drain(file)


def _tar(reader: _BoundedReader) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=reader, mode="r:")
    except tarfile.ReadError as error:
        if reader.last_read[257:262] == b"ustar":
            raise
        raise UnsupportedArchiveError("what was compressed with gzip is not a tar archive") from error


def _zip_entries(file: BinaryIO) -> Iterator[_Entry]:
    with zipfile.ZipFile(_BoundedReader(file)) as archive:
        for info in archive.infolist():
            mode = info.external_attr >> 16
            is_readable = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and not info.flag_bits & 0x1
            yield _Entry(
                name=info.orig_filename,
                size_bytes=info.file_size,
                is_directory=info.is_dir(),
                is_plain_file=is_readable and stat.S_IFMT(mode) in (0, stat.S_IFREG),
                open=lambda info=info: archive.open(info),
            )


class _BoundedReader:
    """A seekable file that refuses huge single reads: headers and directories are read whole, so they cost memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.last_read = b""

    def read(self, size: int = -1) -> bytes:
        """As a file's; raises `UnpackedTooLargeError`."""
        limit = _MAX_READ_BYTES
        self.last_read = self._file.read(size if 0 <= size <= limit else limit + 1)
        if len(self.last_read) > limit:
            raise UnpackedTooLargeError(f"a header of the archive has more than {limit} bytes")
        return self.last_read

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As a file's."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As a file's."""
        return self._file.tell()

    def seekable(self) -> bool:
        """Both formats need it."""
        return True


def _drain(file: IO[bytes]) -> None:
    """Read what follows the end mark, padding, so that gzip compares its checksum."""
    remaining_bytes = _MAX_READ_BYTES
    while data := file.read(_COPY_BYTES):
        remaining_bytes -= len(data)
        if remaining_bytes < 0:
            raise UnpackedTooLargeError(f"more than {_MAX_READ_BYTES} bytes follow the archive's end")


def _safe_path(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    is_bad = path.is_absolute() or ".." in path.parts or len(os.fsencode(name)) > _MAX_NAME_BYTES
    if is_bad or "\\" in name or ":" in name or not name.isprintable():
        raise PathTraversalError(f"the name {name!r:.120} is absolute, leads upward or is no plain relative path")
    return path


def _write(source: IO[bytes], target: Path, path: PurePosixPath, size_bytes: int) -> None:
    place = target / path
    remaining_bytes = size_bytes
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("xb") as file:
            while data := source.read(_COPY_BYTES):
                file.write(data)
                remaining_bytes -= len(data)
    except (FileExistsError, NotADirectoryError) as error:
        raise DuplicateEntryError(f"{str(path)!r:.120} is a file in one entry and a directory in another") from error
    if remaining_bytes:
        raise TruncatedArchiveError(f"{str(path)!r:.120} has {size_bytes - remaining_bytes} of {size_bytes} bytes")


def _single_directory(target: Path) -> Path:
    children = list(target.iterdir())
    return children[0] if len(children) == 1 and children[0].is_dir() else target
