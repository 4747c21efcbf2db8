"""What an engine process was doing when it died: a page of memory that it shares with the agent.

The engine notes which adapters it is about to run or load, and the agent reads that when the process is gone. A note
is a copy of some bytes, so it costs a step nothing.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Collection

_SIZE_BYTES = 1 << 14  # room for the digests of as many adapters as a step can have
_LENGTH_BYTES = 4


class CrashMarker:
    """The page. `descriptor` is what a child process needs of it."""

    def __init__(self, descriptor: int) -> None:
        """Open the page behind a descriptor, which stays with its owner."""
        self.descriptor = descriptor
        self._page = mmap.mmap(descriptor, _SIZE_BYTES)
        self._noted: Collection[str] = ()

    @classmethod
    def make(cls) -> CrashMarker:
        """A new page; nothing is noted yet."""
        descriptor = os.memfd_create("socle-engine", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, _SIZE_BYTES)
        return cls(descriptor)

    def note(self, adapters: Collection[str]) -> None:
        """These adapters are about to run; an empty collection if none is."""
        if adapters == self._noted:
            return
        data = json.dumps(sorted(adapters)).encode()
        if len(data) > _SIZE_BYTES - _LENGTH_BYTES:
            return  # cannot be said; rather nothing than half of it
        self._page[:_LENGTH_BYTES] = bytes(_LENGTH_BYTES)
        self._page[_LENGTH_BYTES : _LENGTH_BYTES + len(data)] = data
        self._page[:_LENGTH_BYTES] = len(data).to_bytes(_LENGTH_BYTES, "little")
        self._noted = adapters

    def read(self) -> frozenset[str]:
        """What was noted last."""
        length = int.from_bytes(self._page[:_LENGTH_BYTES], "little")
        if not 0 < length <= _SIZE_BYTES - _LENGTH_BYTES:
            return frozenset()
        return frozenset(json.loads(self._page[_LENGTH_BYTES : _LENGTH_BYTES + length]))

    def close(self) -> None:
        """Drop the page and, on the agent's side, its descriptor."""
        self._page.close()
        os.close(self.descriptor)
