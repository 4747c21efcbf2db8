"""Telemetry on disk until the server has it. The third writer of files beside `store` and `journal`.

    spool/open-<id>.jsonl     observations as they happen, one line each; a kill loses none of them
    spool/<n>-<id>.json.gz    finished batches, exactly as they will be sent; `n` gives their order

An open segment becomes the batch of the same id, so folding it twice after a kill makes the same batch, and the server
takes each id once. Knows lines, batches and bytes, not what is measured.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from edge_agent.journal import replace_file

_SEGMENT = "open-*.jsonl"
_BATCH = "*-*.json.gz"

Fold = Callable[[str, list[bytes]], bytes | None]
"""Batch id and lines of a segment -> the batch's bytes, None if there is nothing in it."""


class Spool:
    """A directory of batches with an upper bound of bytes."""

    def __init__(self, directory: Path, *, max_bytes: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._max_bytes = max_bytes
        self._segment: int | None = None
        self._segment_path: Path | None = None

    def append(self, line: bytes) -> None:
        """Add one observation to the open segment: safe from a kill at once, from a power loss after `sync`."""
        if self._segment is None:
            self._open_segment()
        assert self._segment is not None
        os.write(self._segment, line + b"\n")

    def sync(self) -> None:
        """Make what was appended safe from a power loss."""
        if self._segment is not None:
            os.fsync(self._segment)

    def close_segment(self) -> None:
        """What follows goes into a new segment."""
        if self._segment is not None:
            os.close(self._segment)
        self._segment = self._segment_path = None

    def fold(self, fold: Fold) -> None:
        """Turn every segment that is not open into a batch."""
        for path in sorted(self._directory.glob(_SEGMENT)):
            if path != self._segment_path:
                self._fold_segment(path, fold)

    def _fold_segment(self, path: Path, fold: Fold) -> None:
        """The batch first, then the segment goes: a kill in between finds the batch there and folds no second one."""
        batch_id = path.stem.removeprefix("open-")
        if not any(self._directory.glob(f"*-{batch_id}.json.gz")):
            batch = fold(batch_id, path.read_bytes().split(b"\n"))
            if batch is not None:
                replace_file(self._directory / f"{self._next_number():012d}-{batch_id}.json.gz", batch)
        path.unlink()

    def batches(self) -> list[Path]:
        """Batches that wait to be sent, the oldest first."""
        return sorted(self._directory.glob(_BATCH))

    def size_bytes(self) -> int:
        """Bytes of all batches."""
        return sum(size for _, size in self._sizes())

    def surplus(self) -> list[Path]:
        """The oldest batches that must go for the others to stay within the bound."""
        sizes = list(self._sizes())
        excess, doomed = sum(size for _, size in sizes) - self._max_bytes, []
        for path, size in sizes:
            if excess <= 0:
                break
            doomed.append(path)
            excess -= size
        return doomed

    def remove(self, batch: Path) -> None:
        """Forget a batch."""
        batch.unlink(missing_ok=True)

    def _sizes(self) -> Iterator[tuple[Path, int]]:
        for path in self.batches():
            with suppress(FileNotFoundError):
                yield path, path.stat().st_size

    def _next_number(self) -> int:
        batches = self.batches()
        return int(batches[-1].name.split("-", 1)[0]) + 1 if batches else 1

    def _open_segment(self) -> None:
        self._segment_path = self._directory / f"open-{uuid.uuid4().hex}.jsonl"
        self._segment = os.open(self._segment_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
