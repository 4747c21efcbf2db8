"""Cached prefixes on the disk: a file for each block, in a directory for each scope.

A file is a line of JSON, which names the format, the scope, the tokens and the SHA-256 of what follows, and then the
block's bytes. It appears at once when it is whole. What is damaged, not used for long or beyond the quota is deleted; a
full disk costs the cache, never the caller. A thread of its own writes and deletes. Knows files, no trees and no
requests.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.backends import Block
from engine.strict_json import DecodeError, decode, encode

_log = logging.getLogger(__name__)
FORMAT: Final = "socle-prefix-1"
_MAX_HEADER_BYTES: Final = 1 << 20
_MAX_WAITING_WRITES: Final = 256
_MOST_CHECK_INTERVAL_S: Final = 3600.0  # for files that have become too old
_SUFFIX: Final = ".block"


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """Where a block belongs: its name, that of the block before or of the root, and its tokens."""

    digest: str
    parent: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Header:
    format: str
    scope: Mapping[str, Any]
    digest: str
    parent: str
    tokens: tuple[int, ...]
    size_bytes: int
    sha256: str


class Tier(Protocol):
    """Where blocks lie that have no room in memory."""

    def blocks(self, scope_digest: str, scope: Mapping[str, Any]) -> Iterable[StoredBlock]:
        """What there is of a scope, parents before their children."""

    def read(self, scope_digest: str, digest: str) -> NDArray[np.uint8] | None:
        """A block's bytes; None if it is not there any more or is damaged."""

    def write(
        self, scope_digest: str, scope: Mapping[str, Any], stored: StoredBlock, block: Block
    ) -> Future[bool] | None:
        """Keep a block, which must not change meanwhile; whether it is kept in the end, None if that is not tried."""

    def touch(self, scope_digest: str, digests: Sequence[str]) -> None:
        """Blocks have been of use again, the last one most recently."""

    def forget(self, adapter: str) -> None:
        """Delete what there is of all scopes with this adapter."""

    def close(self) -> None:
        """Finish writing."""


class NoDisk:
    """A tier that keeps nothing."""

    def blocks(self, scope_digest: str, scope: Mapping[str, Any]) -> Iterable[StoredBlock]:  # noqa: ARG002, D102
        return ()

    def read(self, scope_digest: str, digest: str) -> None:  # noqa: ARG002, D102
        return None

    def write(self, scope_digest: str, scope: Mapping[str, Any], stored: StoredBlock, block: Block) -> None:  # noqa: ARG002, D102
        return None

    def touch(self, scope_digest: str, digests: Sequence[str]) -> None:  # noqa: ARG002, D102
        return

    def forget(self, adapter: str) -> None:  # noqa: ARG002, D102
        return

    def close(self) -> None:  # noqa: D102
        return


NO_DISK: Final = NoDisk()


class Disk:
    """Blocks below a directory of our own, within `quota_bytes` and not unused for longer than `max_age_s`."""

    def __init__(
        self, directory: Path, *, quota_bytes: int, max_age_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._directory = directory
        self._quota_bytes = quota_bytes
        self._max_age_s = max_age_s
        self._clock = clock
        self._writer = ThreadPoolExecutor(1, "prefix-disk")
        self._writes: set[Future[bool]] = set()
        for path in directory.glob("*/.*"):  # a process ended while it wrote
            _delete(path, "unfinished")
        self._stored_bytes, self._checked_s = self._prune(quota_bytes), clock()

    def blocks(self, scope_digest: str, scope: Mapping[str, Any]) -> Iterable[StoredBlock]:
        """The scope's blocks whose headers can be trusted so far."""
        headers = {}
        for path in self._files(scope_digest):
            header = _read_header(path)
            if header is None or header.scope != scope or path.stem != header.digest:
                _delete(path, "damaged")
            else:
                headers[header.digest] = header
        return [StoredBlock(h.digest, h.parent, h.tokens) for h in _parents_first(headers)]

    def read(self, scope_digest: str, digest: str) -> NDArray[np.uint8] | None:
        """Checked against the header's SHA-256; what does not match is deleted."""
        path = self._path(scope_digest, digest)
        if self._is_old(path):
            _delete(path, "old")
            return None
        header = _read_header(path)
        data = _read_payload(path, header) if header and header.digest == digest else None
        if data is None:
            _delete(path, "damaged")
        return data

    def write(
        self, scope_digest: str, scope: Mapping[str, Any], stored: StoredBlock, block: Block
    ) -> Future[bool] | None:
        """In the background; not at all if too many writes are waiting."""
        self._writes = {write for write in self._writes if not write.done()}
        if len(self._writes) >= _MAX_WAITING_WRITES:
            return None
        write = self._writer.submit(self._write, scope_digest, scope, stored, block)
        self._writes.add(write)
        return write

    def touch(self, scope_digest: str, digests: Sequence[str]) -> None:
        """In the background."""
        if digests:
            self._writer.submit(self._touch, [self._path(scope_digest, digest) for digest in digests])

    def forget(self, adapter: str) -> None:
        """In the background, after what is still to be written."""
        self._writer.submit(self._forget, adapter)

    def close(self) -> None:
        """Wait until everything is written."""
        self._writer.shutdown()

    def _write(self, scope_digest: str, scope: Mapping[str, Any], stored: StoredBlock, block: Block) -> bool:
        data = block.data
        digest = hashlib.sha256(data.data).hexdigest()
        header = _Header(FORMAT, scope, stored.digest, stored.parent, stored.tokens, data.nbytes, digest)
        line = encode(header) + b"\n"
        size_bytes, now_s = len(line) + data.nbytes, self._clock()
        is_due = now_s - self._checked_s > min(_MOST_CHECK_INTERVAL_S, self._max_age_s / 10)
        if is_due or self._stored_bytes + size_bytes > self._quota_bytes:
            self._stored_bytes, self._checked_s = self._prune(self._quota_bytes - size_bytes), now_s
        if size_bytes > self._quota_bytes:
            return False
        path = self._path(scope_digest, stored.digest)
        try:
            _write_file(path, line, data)
            os.utime(path, (now_s, now_s))
        except OSError as error:
            _log.warning("prefix_not_written error=%r", str(error))
            return False
        self._stored_bytes += size_bytes
        return True

    def _touch(self, paths: Sequence[Path]) -> None:
        now_ns = int(1e9 * self._clock())
        for index, path in enumerate(paths):
            with suppress(OSError):
                os.utime(path, ns=(now_ns + index, now_ns + index))

    def _forget(self, adapter: str) -> None:
        for folder in self._directory.glob("*/"):
            headers = (_read_header(path) for path in folder.glob(f"*{_SUFFIX}"))
            header = next((header for header in headers if header is not None), None)
            if header is not None and header.scope.get("adapter") == adapter:
                shutil.rmtree(folder, ignore_errors=True)

    def _prune(self, quota_bytes: int) -> int:
        """Delete what is too old, and the least recently used beyond the quota; the bytes that are left."""
        oldest_s, kept_bytes = self._clock() - self._max_age_s, 0
        found = []
        for path in self._directory.glob(f"*/*{_SUFFIX}"):
            with suppress(OSError):
                status = path.stat()
                found.append((status.st_mtime_ns, status.st_size, path))
        for used_at_ns, size_bytes, path in sorted(found, reverse=True):
            is_old = used_at_ns < 1e9 * oldest_s
            if is_old or kept_bytes + size_bytes > quota_bytes:
                _delete(path, "old" if is_old else "quota")
            else:
                kept_bytes += size_bytes
        for folder in self._directory.glob("*/"):
            with suppress(OSError):  # there is something in it
                folder.rmdir()
        return kept_bytes

    def _is_old(self, path: Path) -> bool:
        try:
            return path.stat().st_mtime < self._clock() - self._max_age_s
        except OSError:
            return False

    def _files(self, scope_digest: str) -> list[Path]:
        return sorted((self._directory / scope_digest).glob(f"*{_SUFFIX}"))

    def _path(self, scope_digest: str, digest: str) -> Path:
        return self._directory / scope_digest / f"{digest}{_SUFFIX}"


def _parents_first(headers: Mapping[str, _Header]) -> list[_Header]:
    """By the length of the chain to the root, or to what is not there; a ring is left out."""

    def depth(header: _Header) -> int:
        seen, at = {header.digest}, header
        while at.parent in headers and at.parent not in seen:
            at = headers[at.parent]
            seen.add(at.digest)
        return len(headers) + 1 if at.parent in seen else len(seen)

    return sorted((h for h in headers.values() if depth(h) <= len(headers)), key=depth)


def _read_header(path: Path) -> _Header | None:
    try:
        with path.open("rb") as file:
            header = decode(_Header, file.readline(_MAX_HEADER_BYTES))
    except (OSError, DecodeError):
        return None
    return header if header.format == FORMAT else None


def _read_payload(path: Path, header: _Header) -> NDArray[np.uint8] | None:
    try:
        with path.open("rb") as file:
            file.readline(_MAX_HEADER_BYTES)
            data = file.read(header.size_bytes + 1)
    except OSError:
        return None
    if len(data) != header.size_bytes or hashlib.sha256(data).hexdigest() != header.sha256:
        return None
    return np.frombuffer(data, np.uint8)


def _write_file(path: Path, header: bytes, data: NDArray[np.uint8]) -> None:
    """Whole and on the disk, or not there at all; nobody else may read it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        try:
            file.write(header)
            file.write(data.data)
            file.flush()
            os.fsync(file.fileno())
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _delete(path: Path, why: str) -> None:
    _log.info("prefix_deleted why=%s file=%s", why, path.name)
    with suppress(OSError):
        path.unlink()
