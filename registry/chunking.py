"""Cuts a release's files into chunks, packs the chunks that shrink, and writes the index of it all.

A cut lies where a tensor begins, so that a tensor that two releases share gives the same chunks in both, wherever it
lies. Knows files and the index; blobs and rows are `indexes`'s matter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import zstandard

from engine.artifact import FileEntry, read_manifest
from engine.chunk_index import (
    MAX_CHUNK_BYTES,
    MIN_CHUNK_BYTES,
    Chunk,
    ChunkIndex,
    IndexedFile,
    encode_index,
    make_index,
)
from registry.storage import sync_file

WORTH_PACKING = 0.9
"""A chunk is packed, and a packed object kept, if no more than this share of the bytes remains."""
_ZSTD_LEVEL = 6
_TENSOR_FILE = ".safetensors"
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class IndexedBundle:
    """An index, where it was written, and the packed objects that it names: SHA-256 and path."""

    index: ChunkIndex
    path: Path
    sha256: str
    objects: tuple[tuple[str, Path], ...]


def index_bundle(bundle: Path, scratch: Path) -> IndexedBundle:
    """Index the bundle in this directory; index and packed objects are written, synced, to the new directory `scratch`.

    Raises `BundleError` for what is no bundle.
    """
    manifest, digest = read_manifest(bundle)
    scratch.mkdir()
    files = tuple(_index_file(bundle / entry.path, entry, scratch) for entry in manifest.files)
    index = make_index(digest, manifest, files)
    objects = {f.object_sha256: scratch / f.path for f in files if f.object_sha256 != f.sha256}
    data = encode_index(index)
    path = scratch / ".index"  # a name that no file of a bundle has
    path.write_bytes(data)
    sync_file(path)
    return IndexedBundle(index, path, hashlib.sha256(data).hexdigest(), tuple(objects.items()))


def chunk_sizes(size_bytes: int, starts: Iterable[int]) -> Iterator[int]:
    """Sizes of a file's chunks, given where its tensors start, in order.

    Small tensors share a chunk of 64 KiB, with the beginning of the next large one if they do not fill it: so a change
    of a small one costs no more. A large tensor, or what is left of it, is cut into chunks of nearly equal size.
    """
    begin, small = 0, 0
    for start, end in pairwise((0, *starts, size_bytes)):
        if small and end - begin >= 2 * MIN_CHUNK_BYTES and end - start > MIN_CHUNK_BYTES:
            yield MIN_CHUNK_BYTES
            begin += MIN_CHUNK_BYTES
        if end - begin >= MIN_CHUNK_BYTES:
            yield from _evenly(end - begin)
            begin = end
        small = end - begin
    yield from _evenly(size_bytes - begin)


def _evenly(size_bytes: int) -> Iterator[int]:
    num_chunks = -(-size_bytes // MAX_CHUNK_BYTES)
    for number in range(num_chunks):
        yield size_bytes * (number + 1) // num_chunks - size_bytes * number // num_chunks


def _index_file(path: Path, entry: FileEntry, scratch: Path) -> IndexedFile:
    sizes = chunk_sizes(entry.size_bytes, _tensor_starts(path))
    packed = scratch / entry.path
    with path.open("rb") as source, packed.open("wb") as target:
        chunks, object_sha256 = _pack(source, target, sizes)
    sync_file(packed)
    if packed.stat().st_size <= WORTH_PACKING * entry.size_bytes:
        return IndexedFile(entry.path, entry.size_bytes, entry.sha256, object_sha256, chunks)
    packed.unlink()
    plain = tuple(Chunk(chunk.sha256, chunk.size_bytes) for chunk in chunks)
    return IndexedFile(entry.path, entry.size_bytes, entry.sha256, entry.sha256, plain)


def _pack(source: BinaryIO, target: BinaryIO, sizes: Iterable[int]) -> tuple[tuple[Chunk, ...], str]:
    """The chunks of a file as they are written, and the SHA-256 of what they make."""
    compressor = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_content_size=True)
    chunks, object_sha256 = [], hashlib.sha256()
    for size_bytes in sizes:
        data = source.read(size_bytes)
        packed = compressor.compress(data)
        pays = len(packed) <= WORTH_PACKING * size_bytes
        stored = packed if pays else data
        target.write(stored)
        object_sha256.update(stored)
        chunks.append(Chunk(hashlib.sha256(data).hexdigest(), size_bytes, len(packed) if pays else 0))
    return tuple(chunks), object_sha256.hexdigest()


def _tensor_starts(path: Path) -> list[int]:
    """Where the tensors of a safetensors file start, in order; none for other files."""
    if path.suffix != _TENSOR_FILE:
        return []
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= _MAX_HEADER_BYTES else b""
    try:
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        return sorted({8 + length + entry["data_offsets"][0] for entry in tensors.values()})
    except (ValueError, KeyError, TypeError, AttributeError):
        return []  # cut anywhere: conversion writes readable headers, and a cut elsewhere is no less right
