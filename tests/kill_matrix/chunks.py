"""What of a release lies on a device's disk, and whether any of it has travelled again.

Looks at the bytes themselves, chunk by chunk, as the index of the release lists them; believes no name and no journal.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from engine.chunk_index import ChunkIndex, IndexedFile

Spans = Mapping[str, Sequence[range]]
"""Bytes of objects, by the object's SHA-256."""
Request = tuple[str, str, str | None]
"""Method, path and Range header, as `FleetServer.requests` has them."""

_FILES = "/files/"


def verified_spans(state_dir: Path, indexes: Iterable[ChunkIndex]) -> Spans:
    """What is on the disk of these releases and has the SHA-256 that it should have."""
    found: dict[str, list[range]] = defaultdict(list)
    for index in indexes:
        for file in index.files:
            whole = (state_dir / place / index.release / file.path for place in ("bundles", "partial"))
            part = state_dir / "partial" / index.release / f"{file.path}.part"
            for path in (*whole, part):
                found[file.object_sha256] += _right_chunks(path, file)
    return found


def _right_chunks(path: Path, file: IndexedFile) -> Iterator[range]:
    data = path.read_bytes() if path.is_file() else b""
    for place in file.placed():
        chunk = data[place.offset : place.offset + place.chunk.size_bytes]
        if hashlib.sha256(chunk).hexdigest() == place.chunk.sha256:
            yield range(place.stored_offset, place.stored_end)


def asked_for(requests: Iterable[Request]) -> list[tuple[str, range]]:
    """The bytes that requests for files named, in their order: object and span."""
    return [(path.removeprefix(_FILES), _span(header)) for _, path, header in requests if path.startswith(_FILES)]


def _span(header: str | None) -> range:
    found = re.fullmatch(r"bytes=(\d+)-(\d+)", header or "")
    return range(int(found[1]), int(found[2]) + 1) if found else range(1 << 62)


def num_bytes_again(had: Spans, asked: Iterable[tuple[str, range]]) -> int:
    """How many bytes were asked for that were there."""
    return sum(_overlap(span, other) for name, span in asked for other in had.get(name, ()))


def num_bytes_twice(asked: Iterable[tuple[str, range]]) -> int:
    """How many bytes were asked for that had been asked for before."""
    before: dict[str, list[range]] = defaultdict(list)
    total = 0
    for name, span in asked:
        total += num_bytes_again(before, [(name, span)])
        before[name].append(span)
    return total


def _overlap(one: range, other: range) -> int:
    return max(0, min(one.stop, other.stop) - max(one.start, other.start))
