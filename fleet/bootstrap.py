"""What must lie on disk before settings can be read: the data folder and the secret key. Knows no Django."""

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path


def prepare_folder(path: Path) -> Path:
    """The folder, made if it is not there."""
    path.mkdir(parents=True, exist_ok=True)
    return path


def load_or_create_secret_key(path: Path) -> str:
    """The key in this file; made once, readable by its owner only.

    Linking a finished file into place is atomic: of several processes that start together one wins, the others
    read the winner's key, and none sees half a key.
    """
    if not path.exists():
        handle, draft = tempfile.mkstemp(dir=path.parent)  # mode 600
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(64))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(draft, path)
        Path(draft).unlink()
    return path.read_text().strip()
