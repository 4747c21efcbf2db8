"""Brings the bytes of an answer to their places: cuts them into chunks, verifies each and writes it.

Bytes of a chunk that was cut off are kept: the next answer goes on where the last one ended.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from edge_agent.part_file import PartFile
from engine.chunk_index import PlacedChunk

OnBytes = Callable[[int], object]


class Landing:
    """Takes in one run of chunks that are neighbours in the object; one thread may `cut` while another `land`s."""

    def __init__(self, part: PartFile, run: Sequence[PlacedChunk], on_bytes: OnBytes) -> None:
        """`on_bytes` hears, in the thread that lands, of each chunk that is here and verified."""
        self._part = part
        self._waiting = deque(run)
        self._pieces: list[memoryview] = []
        self._num_bytes = 0  # in the pieces
        self._on_bytes = on_bytes
        self.stop = run[-1].stored_end
        self.wrong: list[PlacedChunk] = []
        """Chunks whose bytes came and were not theirs."""

    @property
    def start(self) -> int:
        """Where in the object the next byte is that is still wanted; `stop` once all have come."""
        return self._waiting[0].stored_offset + self._num_bytes if self._waiting else self.stop

    def cut(self, data: memoryview) -> Iterator[tuple[PlacedChunk, list[memoryview]]]:
        """The chunks that the next bytes complete; what comes behind the last one is dropped, servers may send on."""
        while data and self._waiting:
            piece = data[: self._waiting[0].chunk.stored_bytes - self._num_bytes]
            data = data[len(piece) :]
            self._pieces.append(piece)
            self._num_bytes += len(piece)
            if self._num_bytes == self._waiting[0].chunk.stored_bytes:
                full = self._waiting.popleft(), self._pieces
                self._pieces, self._num_bytes = [], 0
                yield full

    def land(self, place: PlacedChunk, pieces: list[memoryview]) -> None:
        """Verify a chunk and write it; raises `OSError` if the disk takes no more."""
        if self._part.land(place, pieces):
            self._on_bytes(place.chunk.size_bytes)
        else:
            self.wrong.append(place)


def runs(missing: Sequence[PlacedChunk]) -> list[list[PlacedChunk]]:
    """Chunks in order, grouped so that neighbours in the object share a request."""
    found: list[list[PlacedChunk]] = []
    for place in missing:
        if found and found[-1][-1].stored_end == place.stored_offset:
            found[-1].append(place)
        else:
            found.append([place])
    return found
