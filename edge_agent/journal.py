"""What must survive a power loss: the update machine's entry, and the primitive that replaces a file atomically.

Knows bytes and files, not what they mean. `journal.json` carries a checksum of its entry and the last version is kept
beside it, so that a torn or rotten file costs one step of the machine, never the device.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import structlog

from edge_agent.states import Entry
from engine.strict_json import DecodeError, decode, encode

log = structlog.get_logger()


def replace_file(path: Path, data: bytes, *, mode: int = 0o644, is_durable: bool = True) -> None:
    """Put `data` at `path` so that a reader sees the old content or the new; if durable, also after a power loss."""
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        if is_durable:
            os.fsync(file.fileno())
    temporary.rename(path)
    if is_durable:
        sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    _sync(path, os.O_RDONLY)


def sync_directory(directory: Path) -> None:
    """Make renames and removals in a directory durable."""
    _sync(directory, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class _Sealed:
    """The file's content: the entry as it was encoded, and its SHA-256."""

    sha256: str
    entry: str


class Journal:
    """Keeps one `Entry` in `journal.json`."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "journal.json"
        self._previous = directory / "journal.previous.json"

    def read(self) -> Entry:
        """The last entry written; the one before if that is damaged; an empty one if there is none."""
        for path in (self._path, self._previous):
            try:
                return _open_seal(path.read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, DecodeError) as error:
                log.warning("journal.damaged", path=str(path), error=str(error))
        return Entry()

    def write(self, entry: Entry) -> None:
        """Replace the entry; returns once it is on the disk."""
        text = encode(entry).decode()
        sealed = encode(_Sealed(hashlib.sha256(text.encode()).hexdigest(), text))
        if self._path.exists():
            self._keep_previous()
        replace_file(self._path, sealed)

    def _keep_previous(self) -> None:
        """A hard link to the present file: `replace_file` then leaves its content alone."""
        spare = self._previous.with_suffix(".tmp")
        spare.unlink(missing_ok=True)
        os.link(self._path, spare)
        spare.rename(self._previous)


def _open_seal(data: bytes) -> Entry:
    sealed = decode(_Sealed, data)
    if hashlib.sha256(sealed.entry.encode()).hexdigest() != sealed.sha256:
        raise DecodeError("the checksum does not match")
    return decode(Entry, sealed.entry.encode())
