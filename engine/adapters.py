"""Which adapters are in memory. An adapter is known by its content digest, never by its name.

*Known* adapters have a bundle on disk; some of them are *resident* in the back end, within the ledger's cap. Those that
requests use are pinned; of the others, which are *idle*, those of the lowest priority go first, of these the least
recently used, and come back when they are asked for.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from engine.artifact import ADAPTER_WEIGHTS
from engine.errors import BundleError, CapacityError, UnknownAdapterError
from engine.ledger import Kind, Ledger


class AdapterLoader(Protocol):
    """The part of a back end that is needed here."""

    def load_adapter(self, digest: str, bundle: Path) -> int:
        """Make an adapter usable; returns the bytes it takes."""

    def unload_adapter(self, digest: str) -> None:
        """Give its memory back."""


class ResidentAdapters:
    """The known adapters of one engine, and those in memory."""

    def __init__(
        self, loader: AdapterLoader, ledger: Ledger, reclaim: Callable[[float], bool] = lambda _: False
    ) -> None:
        """`reclaim` gives up so many bytes of other memory, if it can."""
        self._loader = loader
        self._ledger = ledger
        self._reclaim = reclaim
        self._bundles: dict[str, Path] = {}
        self._versions: dict[str, tuple[int, ...]] = {}
        self._size_bytes: dict[str, int] = {}  # on disk until it was loaded once, then what it really took
        self._resident: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._pins: Counter[str] = Counter()
        self._priorities: dict[str, int] = {}

    def __contains__(self, digest: str) -> bool:
        return digest in self._bundles

    def __iter__(self) -> Iterator[str]:
        return iter(self._bundles)

    def require_known(self, digest: str) -> None:
        """Raise `UnknownAdapterError` for an adapter that was never added."""
        if digest not in self:
            raise UnknownAdapterError(f"adapter {digest[:12]} is not loaded: load its bundle first")

    @property
    def resident(self) -> tuple[str, ...]:
        """Digests of the adapters in memory, least recently used first."""
        return tuple(self._resident)

    @property
    def resident_bundles(self) -> list[Path]:
        """Where these were loaded from."""
        return [self._bundles[digest] for digest in self._resident]

    @property
    def resident_bytes(self) -> int:
        """What the adapters in memory take."""
        return sum(self._resident.values())

    def add(self, digest: str, bundle: Path, size_bytes: int) -> None:
        """Make an adapter known and resident; `size_bytes` is its size on disk. Adding it again is free.

        Raises `CapacityError` if it does not fit beside those in use; it is unknown then.
        """
        if digest in self:
            return
        self._bundles[digest], self._size_bytes[digest] = bundle, size_bytes
        try:
            self._make_resident(digest)
        except Exception:
            self._forget(digest)
            raise

    def remove(self, digest: str) -> None:
        """Forget an adapter; raises `CapacityError` while a request uses it."""
        self.require_known(digest)
        if self._pins[digest]:
            raise CapacityError(
                f"{self._pins[digest]} requests use adapter {digest[:12]}: unload it when they are done"
            )
        if digest in self._resident:
            self._evict(digest)
        self._forget(digest)

    def pin(self, digest: str, priority: int = 0) -> None:
        """Make an adapter resident and keep it so until `unpin`; raises `CapacityError` if it does not fit now.

        `priority` is that of the request, which the adapter keeps until the next one.
        """
        self.require_known(digest)
        self._make_resident(digest)
        self._priorities[digest] = priority
        self._pins[digest] += 1

    def unpin(self, digest: str) -> None:
        """Undo one `pin`."""
        assert self._pins[digest] > 0
        self._pins[digest] -= 1

    @property
    def idle_bytes(self) -> int:
        """What adapters take that no request uses now."""
        return sum(self._resident[digest] for digest in self._idle())

    def size_bytes(self, digest: str) -> int:
        """What an adapter takes, or will take when it is resident again."""
        return self._size_bytes[digest]

    def shrink(self, size_bytes: float) -> bool:
        """Evict idle adapters until so many bytes are free, if they have as many; says whether they had."""
        if size_bytes > self.idle_bytes:
            return False
        for digest in self._idle():
            if size_bytes <= 0:
                break
            size_bytes -= self._resident[digest]
            self._evict(digest)
        return True

    def _idle(self) -> list[str]:
        """Whose turn it is to go, first to last."""
        return sorted((d for d in self._resident if not self._pins[d]), key=lambda d: self._priorities.get(d, 0))

    def _make_resident(self, digest: str) -> None:
        if digest not in self._resident:
            version = _version(self._bundles[digest])
            if self._versions.setdefault(digest, version) != version:
                raise BundleError(f"the file of adapter {digest[:12]} has changed: fetch it again and load it anew")
            self._make_room(digest)
            size_bytes = self._loader.load_adapter(digest, self._bundles[digest])
            self._settle(digest, size_bytes)
        self._resident.move_to_end(digest)

    def _settle(self, digest: str, size_bytes: int) -> None:
        """The size in memory is known only now; take the adapter out again if it breaks a cap."""
        self._size_bytes[digest] = size_bytes
        try:
            self._make_room(digest)
            self._ledger.reserve(Kind.ADAPTERS, size_bytes)
        except CapacityError:
            self._loader.unload_adapter(digest)
            raise
        self._resident[digest] = size_bytes

    def _make_room(self, digest: str) -> None:
        """Evict until `digest` fits in; evict and reclaim nothing if that cannot help."""
        size_bytes = self._size_bytes[digest]
        beyond_kind = size_bytes - self._ledger.kind_room_bytes(Kind.ADAPTERS) - self.idle_bytes
        beyond_total = size_bytes - self._ledger.total_room_bytes - self.idle_bytes
        if beyond_kind > 0 or (beyond_total > 0 and not self._reclaim(beyond_total)):
            raise CapacityError(
                f"adapter {digest[:12]} takes {size_bytes} bytes and does not fit beside the "
                f"{self.resident_bytes} bytes of adapters in use: raise adapter_budget_bytes or memory_budget_bytes, "
                "or try later"
            )
        self.shrink(size_bytes - self._ledger.room_bytes(Kind.ADAPTERS))

    def _evict(self, digest: str) -> None:
        self._loader.unload_adapter(digest)
        self._ledger.release(Kind.ADAPTERS, self._resident.pop(digest))

    def _forget(self, digest: str) -> None:
        self._bundles.pop(digest, None)
        self._versions.pop(digest, None)
        self._size_bytes.pop(digest, None)
        self._pins.pop(digest, None)
        self._priorities.pop(digest, None)


def _version(bundle: Path) -> tuple[int, ...]:
    """Another one after the weights were written to or replaced; a missing file is for the loader to complain about."""
    try:
        status = (bundle / ADAPTER_WEIGHTS).stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns
