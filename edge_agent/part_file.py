"""A file on its way: as large as it will be from the start, filled chunk by chunk, each verified before it is written.

Which chunks are right is read from the bytes themselves after a restart, so there is no record of it that could lie.
Knows one file and its chunks, not where they come from.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import zstandard

from engine.chunk_index import MAX_CHUNK_BYTES, IndexedFile, PlacedChunk

_MOST_PIECES: Final = 1024  # IOV_MAX: what one system call takes
Pieces = Sequence[bytes | memoryview]
"""Bytes as they came, not copied together."""
Write = Callable[[int, Pieces, int], int]
"""As `os.pwritev`: descriptor, pieces, offset; returns how many bytes were written."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the bytes of a chunk may lie on this device."""

    path: Path
    offset: int


class PartFile:
    """An open part of one file. Methods block; `land` may run in one thread while others wait to `close`."""

    def __init__(self, path: Path, file: IndexedFile, write: Write = os.pwritev) -> None:
        """Open or make it, with the disk space for all of it; raises `OSError` if there is none."""
        self.path = path
        self._write = write
        self._file = file
        self._lock = threading.Lock()
        self.is_new = not path.is_file()
        """Made now, so that nothing of it can be right."""
        self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._reserve(self._descriptor)
        except OSError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file, after the chunk that is being written."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor = None

    def missing(self) -> list[PlacedChunk]:
        """The chunks that are not here yet, in order. Reads all of the file unless it is new."""
        placed = self._file.placed()
        return list(placed) if self.is_new else [place for place in placed if not self._has(place)]

    def copy(self, wanted: Iterable[PlacedChunk], sources: Mapping[str, Iterable[Source]]) -> list[PlacedChunk]:
        """Take chunks from elsewhere on the disk, as far as they are right there; returns those still missing."""
        return [place for place in wanted if not any(self._copy(place, s) for s in sources.get(place.chunk.sha256, ()))]

    def land(self, place: PlacedChunk, stored: Pieces) -> bool:
        """Unpack, verify and write the bytes of a chunk as they came; False if they are not that chunk's."""
        pieces = _unpacked(place, stored)
        return pieces is not None and self._put(place, pieces)

    def is_right(self) -> bool:
        """Whether the whole file has the SHA-256 that it should have."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == self._file.sha256

    def _reserve(self, descriptor: int) -> None:
        """A full disk is found out now and not in the middle."""
        os.ftruncate(descriptor, self._file.size_bytes)
        if self._file.size_bytes:
            os.posix_fallocate(descriptor, 0, self._file.size_bytes)

    def _has(self, place: PlacedChunk) -> bool:
        assert self._descriptor is not None
        return _is(place, [os.pread(self._descriptor, place.chunk.size_bytes, place.offset)])

    def _copy(self, place: PlacedChunk, source: Source) -> bool:
        try:
            with source.path.open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), place.chunk.size_bytes, source.offset)
        except OSError:
            return False  # gone or unreadable by now: then it is fetched
        return self._put(place, [data])

    def _put(self, place: PlacedChunk, pieces: Pieces) -> bool:
        if not _is(place, pieces):
            return False
        with self._lock:
            if self._descriptor is None:
                return False
            if len(pieces) > _MOST_PIECES:
                pieces = [b"".join(pieces)]
            num_bytes = self._write(self._descriptor, pieces, place.offset)
            while num_bytes < place.chunk.size_bytes:  # seldom: a disk that takes a part of it
                rest = memoryview(b"".join(pieces))[num_bytes:]
                num_bytes += self._write(self._descriptor, [rest], place.offset + num_bytes)
        return True


def _is(place: PlacedChunk, pieces: Pieces) -> bool:
    sha256 = hashlib.sha256()
    for piece in pieces:
        sha256.update(piece)
    return sha256.hexdigest() == place.chunk.sha256


def _unpacked(place: PlacedChunk, stored: Pieces) -> Pieces | None:
    """The chunk's bytes, None if they can't be unpacked; never more than the chunk has, whatever they claim."""
    if not place.chunk.packed_bytes:
        return stored
    packed = b"".join(stored)
    try:
        if zstandard.frame_content_size(packed) != place.chunk.size_bytes:
            return None
        return [zstandard.ZstdDecompressor(max_window_size=2 * MAX_CHUNK_BYTES).decompress(packed)]
    except zstandard.ZstdError:
        return None
