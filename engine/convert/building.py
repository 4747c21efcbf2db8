"""How a bundle comes into being: in a temporary directory beside its place, renamed when it is whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Progress = Callable[[str, float], None]


def ignore_progress(step: str, fraction: float) -> None:
    """The listener for those who do not want to know."""


@contextmanager
def building(bundle: Path) -> Iterator[Path]:
    """A directory to fill: it becomes `bundle`, which must not exist, if the block ends well, and is removed if not."""
    if bundle.exists():
        raise FileExistsError(f"{bundle} exists already: choose another place or remove it")
    bundle.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{bundle.name}.", dir=bundle.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp keeps it to its owner
        folder.rename(bundle)
        _sync_directory(bundle.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sync_directory(directory: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
