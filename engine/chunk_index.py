"""The chunk index of a release: how its files are cut, and the SHA-256 of each piece. A door: standard library only.

The server makes one index per release and the device fetches by it. It says all that must be known to fetch and verify
a release, in canonical JSON, so that its own SHA-256 can be signed. For each file it names one *object*, which is what
is stored and served: the file itself, or its chunks one after the other with some of them packed (zstd). `sha256` of a
chunk and of a file is always that of the unpacked bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from engine.artifact import AdapterManifest, Manifest
from engine.errors import BundleError
from engine.strict_json import DecodeError, decode, encode

INDEX_FORMAT = 1
MIN_CHUNK_BYTES = 64 << 10
"""Smaller only where a file ends."""
MAX_CHUNK_BYTES = 1 << 20
MAX_INDEX_BYTES = 32 << 20

_SHA256 = re.compile(r"[0-9a-f]{64}")


class IndexMismatchError(BundleError):
    """An index that is not one of ours, or is that of another release."""

    code = "bad_index"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a file. `packed_bytes` is its size in the object if it is packed there, 0 if it lies as it is."""

    sha256: str
    size_bytes: int
    packed_bytes: int = 0

    @property
    def stored_bytes(self) -> int:
        """Its size in the object, which is what travels."""
        return self.packed_bytes or self.size_bytes


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """A file in its chunks, in order, and the SHA-256 of the object that holds them: its own if none is packed."""

    path: str
    size_bytes: int
    sha256: str
    object_sha256: str
    chunks: tuple[Chunk, ...]

    @property
    def object_bytes(self) -> int:
        """Size of the object."""
        return sum(chunk.stored_bytes for chunk in self.chunks)

    def placed(self) -> Iterator[PlacedChunk]:
        """The chunks with where they lie."""
        offset = stored_offset = 0
        for chunk in self.chunks:
            yield PlacedChunk(chunk, offset, stored_offset)
            offset += chunk.size_bytes
            stored_offset += chunk.stored_bytes


@dataclass(frozen=True, slots=True)
class PlacedChunk:
    """A chunk, where it begins in the file, and where in the object; both in bytes."""

    chunk: Chunk
    offset: int
    stored_offset: int

    @property
    def stored_end(self) -> int:
        """The first byte of the object behind it."""
        return self.stored_offset + self.chunk.stored_bytes


@dataclass(frozen=True, slots=True)
class ChunkIndex:
    """All files of one release. `release` is its digest, `base` the digest of an adapter's base, "" for a base."""

    release: str
    kind: Literal["base", "adapter"]
    base: str
    files: tuple[IndexedFile, ...]
    format: int = INDEX_FORMAT


def make_index(release: str, manifest: Manifest, files: tuple[IndexedFile, ...]) -> ChunkIndex:
    """The index of a release from its digest, its manifest and its cut files."""
    base = manifest.base.digest if isinstance(manifest, AdapterManifest) else ""
    return ChunkIndex(release, manifest.kind, base, files)


def encode_index(index: ChunkIndex) -> bytes:
    """Canonical JSON; the same index always gives the same bytes."""
    return encode(index)


def parse_index(data: bytes, release: str, manifest: Manifest) -> ChunkIndex:
    """The index of this release; raises `IndexMismatchError` unless it covers exactly the files of its manifest."""
    if len(data) > MAX_INDEX_BYTES:
        raise IndexMismatchError(f"index of {len(data)} bytes; at most {MAX_INDEX_BYTES} are allowed")
    try:
        index = decode(ChunkIndex, data)
    except DecodeError as error:
        raise IndexMismatchError(f"bad index: {error}") from error
    if index.format != INDEX_FORMAT:
        raise IndexMismatchError(f"index of format {index.format}, {INDEX_FORMAT} is known: update the agent")
    if index != make_index(release, manifest, index.files):
        raise IndexMismatchError(f"the index that came for {release[:12]} is that of another release: make it again")
    listed = [(entry.path, entry.size_bytes, entry.sha256) for entry in manifest.files]
    if listed != [(file.path, file.size_bytes, file.sha256) for file in index.files]:
        raise IndexMismatchError(f"the index of {release[:12]} lists other files than its manifest: make it again")
    for file in index.files:
        _check_file(file)
    return index


def _check_file(file: IndexedFile) -> None:
    """What the device reserves and reads rests on these numbers, so each is checked before it is used."""
    if not _SHA256.fullmatch(file.object_sha256):
        raise IndexMismatchError(f"{file.path}: bad SHA-256 of its object")
    for number, chunk in enumerate(file.chunks):
        is_last = number == len(file.chunks) - 1
        if not (1 if is_last else MIN_CHUNK_BYTES) <= chunk.size_bytes <= MAX_CHUNK_BYTES:
            raise IndexMismatchError(f"{file.path}: chunk {number} has {chunk.size_bytes} bytes")
        if not 0 <= chunk.packed_bytes < chunk.size_bytes:
            raise IndexMismatchError(f"{file.path}: chunk {number} is packed in {chunk.packed_bytes} bytes")
        if not _SHA256.fullmatch(chunk.sha256):
            raise IndexMismatchError(f"{file.path}: bad SHA-256 of chunk {number}")
    if sum(chunk.size_bytes for chunk in file.chunks) != file.size_bytes:
        raise IndexMismatchError(f"{file.path}: the chunks do not add up to {file.size_bytes} bytes")
    if file.object_sha256 == file.sha256 and any(chunk.packed_bytes for chunk in file.chunks):
        raise IndexMismatchError(f"{file.path}: packed chunks in an object that is said to be the file itself")
