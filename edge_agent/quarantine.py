"""Adapters that take the engine down: after three crashes one is not run any more on this device.

Crashes are counted by content digest and survive restarts of the agent; another version of the adapter begins at zero.
Knows counts and one file, nothing of processes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from edge_agent.journal import replace_file
from engine.strict_json import DecodeError, decode, encode

log = structlog.get_logger()
MOST_CRASHES = 3


@dataclass(frozen=True, slots=True)
class _Crashes:
    """The file's content: crashes by digest."""

    by_digest: Mapping[str, int] = field(default_factory=dict)


class Quarantine:
    """Counts crashes, and says which adapters must not run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._crashes = dict(_read(path))

    def __contains__(self, digest: str | None) -> bool:
        return digest is not None and self._crashes.get(digest, 0) >= MOST_CRASHES

    @property
    def digests(self) -> frozenset[str]:
        """What must not run."""
        return frozenset(digest for digest in self._crashes if digest in self)

    def note_crash(self, suspects: Iterable[str]) -> frozenset[str]:
        """An engine died while it ran these adapters; returns those that must not run from now on."""
        before = self.digests
        for digest in suspects:
            self._crashes[digest] = self._crashes.get(digest, 0) + 1
        self._write()
        return self.digests - before

    def keep_only(self, digests: Collection[str]) -> None:
        """Forget adapters that nobody wants here any more."""
        kept = {digest: count for digest, count in self._crashes.items() if digest in digests}
        if kept != self._crashes:
            self._crashes = kept
            self._write()

    def _write(self) -> None:
        try:
            replace_file(self._path, encode(_Crashes(self._crashes)))
        except OSError as error:  # a full disk: the counts live on in memory
            log.warning("quarantine.not_written", error=str(error))


def _read(path: Path) -> Mapping[str, int]:
    try:
        return decode(_Crashes, path.read_bytes()).by_digest
    except FileNotFoundError:
        return {}
    except (OSError, DecodeError) as error:
        log.warning("quarantine.damaged", error=str(error))
        return {}
