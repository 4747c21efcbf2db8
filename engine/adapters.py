"""Which adapters are in memory. An adapter is known by its content digest, never by its name.

*Known* adapters have a bundle on disk; some of them are *resident* in the back end, within a byte budget. Those that
requests use are pinned; of the others the least recently used goes first, and comes back when it is asked for.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from engine.errors import CapacityError, UnknownAdapterError


class AdapterLoader(Protocol):
    """The part of a back end that is needed here."""

    def load_adapter(self, digest: str, bundle: Path) -> int:
        """Make an adapter usable; returns the bytes it takes."""

    def unload_adapter(self, digest: str) -> None:
        """Give its memory back."""


class ResidentAdapters:
    """The known adapters of one engine, and those in memory."""

    def __init__(self, loader: AdapterLoader, *, budget_bytes: int) -> None:
        self._loader = loader
        self._budget_bytes = budget_bytes
        self._bundles: dict[str, Path] = {}
        self._size_bytes: dict[str, int] = {}  # on disk until it was loaded once, then what it really took
        self._resident: OrderedDict[str, int] = OrderedDict()  # least recently used first
        self._pins: Counter[str] = Counter()

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

    def pin(self, digest: str) -> None:
        """Make an adapter resident and keep it so until `unpin`; raises `CapacityError` if it does not fit now."""
        self.require_known(digest)
        self._make_resident(digest)
        self._pins[digest] += 1

    def unpin(self, digest: str) -> None:
        """Undo one `pin`."""
        assert self._pins[digest] > 0
        self._pins[digest] -= 1

    def _make_resident(self, digest: str) -> None:
        if digest not in self._resident:
            self._make_room(digest)
            self._resident[digest] = self._loader.load_adapter(digest, self._bundles[digest])
            self._size_bytes[digest] = self._resident[digest]
            self._settle(digest)
        self._resident.move_to_end(digest)

    def _settle(self, digest: str) -> None:
        """The size in memory is known only now; take the adapter out again if it breaks the budget."""
        self._pins[digest] += 1
        try:
            self._make_room(digest)
        except CapacityError:
            self._evict(digest)
            raise
        finally:
            self._pins[digest] -= 1

    def _make_room(self, digest: str) -> None:
        """Evict until `digest` fits in, with its size counted once; evict nothing if that cannot help."""
        others = {d: size for d, size in self._resident.items() if d != digest}
        excess = sum(others.values()) + self._size_bytes[digest] - self._budget_bytes
        victims = [d for d in others if not self._pins[d]]
        if sum(others[d] for d in victims) < excess:
            raise CapacityError(
                f"adapter {digest[:12]} takes {self._size_bytes[digest]} bytes and does not fit into the budget of "
                f"{self._budget_bytes} bytes beside the adapters in use: raise adapter_budget_bytes or try later"
            )
        while excess > 0:
            victim = victims.pop(0)
            excess -= others[victim]
            self._evict(victim)

    def _evict(self, digest: str) -> None:
        self._loader.unload_adapter(digest)
        del self._resident[digest]

    def _forget(self, digest: str) -> None:
        self._bundles.pop(digest, None)
        self._size_bytes.pop(digest, None)
        self._pins.pop(digest, None)
