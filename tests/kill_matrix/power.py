"""The worst that a loss of power may do: of the disk stays what was synchronised, and nothing else.

A file that was written since its last fsync is empty; a rename, a link or a new directory whose directory was not
synchronised has not happened. A kill is the other extreme, where all of it stays.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

_link, _rename, _unlink = os.link, os.rename, os.unlink


class Power:
    """Follows what is done to the files below a directory."""

    def __init__(self, root: Path, keep: Path) -> None:
        self._root = root
        self._keep = keep
        self._numbers = itertools.count()
        self._pending: list[tuple[Path, Callable[[], None]]] = []
        """What is not on the disk yet, the oldest first: the directory that must be synchronised, and how it was."""
        self._synced = {_version(path) for path in root.rglob("*") if path.is_file()}

    def note(self, operation: str, path: Any, *rest: Any) -> None:
        """An operation of `os` is about to happen."""
        if operation == "fsync":
            self._note_sync(Path(f"/proc/self/fd/{path}").readlink())
        elif operation in ("rename", "replace"):
            self._note_rename(Path(path), Path(rest[0]))
        elif operation == "link":
            self._wait_for(Path(rest[0]).parent, lambda: Path(rest[0]).unlink(missing_ok=True))
        elif operation == "mkdir" and not Path(path).exists():
            self._wait_for(Path(path).parent, lambda: shutil.rmtree(path, ignore_errors=True))

    def lose(self) -> None:
        """Leave on the disk what is sure to be there."""
        for path in self._root.rglob("*"):
            if path.is_file() and _version(path) not in self._synced:
                os.truncate(path, 0)
        for _, undo in reversed(self._pending):
            undo()

    def _note_sync(self, path: Path) -> None:
        if path.is_dir():
            self._pending = [(directory, undo) for directory, undo in self._pending if directory != path]
        else:
            self._synced.add(_version(path))

    def _note_rename(self, source: Path, target: Path) -> None:
        if not source.exists():
            return
        kept = self._keep / f"replaced-{next(self._numbers)}"
        if target.is_file():
            _link(target, kept)

        def undo() -> None:
            if target.exists():
                _rename(target, source)
            if kept.exists():
                _rename(kept, target)

        self._wait_for(target.parent, undo)

    def _wait_for(self, directory: Path, undo: Callable[[], None]) -> None:
        self._pending.append((directory, undo))


def _version(path: Path) -> tuple[int, int, int]:
    """Tells a file's content from what it was before it was written to."""
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
