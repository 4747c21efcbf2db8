"""The agent's state directory: where each thing lies in it, and that only one agent holds it at a time."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edge_agent.errors import AlreadyRunningError, UserError


@dataclass(frozen=True, slots=True)
class StateDir:
    """Paths under one root."""

    root: Path

    @property
    def key(self) -> Path:
        """The device's private key, mode 600."""
        return self.root / "device.key"

    @property
    def next_key(self) -> Path:
        """The key that replaces it, while that is under way."""
        return self.root / "device.key.next"

    @property
    def revocation(self) -> Path:
        """What the fleet has revoked, as last heard."""
        return self.root / "trust" / "revocation.json"

    @property
    def desired(self) -> Path:
        """Which revision of the desired state was heard last, and by whose word."""
        return self.root / "trust" / "desired.json"

    @property
    def identity(self) -> Path:
        """Who the device is."""
        return self.root / "identity.json"

    @property
    def first_root(self) -> Path:
        """The TUF root that the device was given; nothing the network brings changes it."""
        return self.root / "trust" / "first-root.json"

    @property
    def metadata(self) -> Path:
        """TUF metadata, verified."""
        return self.root / "trust" / "metadata"

    @property
    def targets(self) -> Path:
        """TUF targets."""
        return self.root / "trust" / "targets"

    @property
    def status(self) -> Path:
        """What the agent last said of itself."""
        return self.root / "status.json"

    @property
    def api(self) -> Path:
        """Where the local API listens."""
        return self.root / "run" / "api.json"

    @property
    def paused(self) -> Path:
        """There while a person wants no downloads."""
        return self.root / "paused"

    @property
    def quarantine(self) -> Path:
        """Which adapters took the engine down how often."""
        return self.root / "quarantine.json"

    @property
    def prompt_cache(self) -> Path:
        """What the engine keeps of prompts."""
        return self.root / "prompt-cache"

    @property
    def local_adapters(self) -> Path:
        """Bundles of adapters in development."""
        return self.root / "local-adapters"

    @property
    def spool(self) -> Path:
        """Telemetry that waits to be sent."""
        return self.root / "spool"

    def make(self) -> None:
        """Create the directory; raises `UserError` if that can't be done."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.api.parent.mkdir(exist_ok=True)
            self.first_root.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.root} can't be made ({error.strerror}): choose another --state-dir") from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the directory; raises `AlreadyRunningError` if another process does. A kill lets go of it.

        Also holds one on a read-only disk, if an agent has run on it before; raises `UserError` else.
        """
        descriptor = self._open_lock()
        try:
            if not _try_lock(descriptor):
                pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
                raise AlreadyRunningError(
                    f"another agent (process {pid or 'unknown'}) runs on {self.root}: "
                    "stop it, or give this one a --state-dir of its own"
                )
            with suppress(OSError):  # a disk that is full or read-only: the number is for people alone
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def is_held(self) -> bool:
        """Whether an agent runs on this directory."""
        if not (self.root / "agent.lock").exists():
            return False
        descriptor = self._open_lock()
        try:
            return not _try_lock(descriptor)
        finally:
            os.close(descriptor)

    def _open_lock(self) -> int:
        # Python opens it as not inheritable: an engine process never keeps the lock alive.
        path = self.root / "agent.lock"
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            # A file that is open for reading can be locked just as well.
            if error.errno == errno.EROFS and path.exists():
                return os.open(path, os.O_RDONLY)
            raise UserError(
                f"{path} can't be opened ({error.strerror}): make its disk writable, or choose another --state-dir"
            ) from error


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
