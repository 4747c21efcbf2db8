"""Who has reserved how much memory. Every byte that grows with requests is reserved here before it is taken.

Caps hold for a kind of memory, for a business, and for the engine as a whole: what would break one is refused, so that
the engine waits or says no before the system has to kill it. Knows numbers alone; frees nothing itself.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from engine.business import Business
from engine.errors import CapacityError


class Kind(StrEnum):
    """What memory is for. `process`: the interpreter and libraries; `weights`: the base's."""

    PROCESS = "process"
    WEIGHTS = "weights"
    SCRATCH = "scratch"
    ADAPTERS = "adapters"
    KV = "kv"
    PREFIX_CACHE = "prefix_cache"


@dataclass(frozen=True, slots=True)
class Caps:
    """Bytes that may be reserved in all, and of some kinds; None and what is not named have no cap."""

    total_bytes: int | None = None
    by_kind: Mapping[Kind, int] = field(default_factory=dict)


class Ledger:
    """Reservations by kind and business; what belongs to no business, such as weights, is the engine's own."""

    def __init__(self, caps: Caps) -> None:
        self._caps = caps
        self._reserved: Counter[tuple[Kind, str | None]] = Counter()

    def reserved_bytes(self, kind: Kind | None = None, business: str | None = None) -> int:
        """Of a kind, of a business, of both, or in all."""
        return sum(
            size_bytes
            for (its_kind, its_business), size_bytes in self._reserved.items()
            if kind in (None, its_kind) and business in (None, its_business)
        )

    def room_bytes(self, kind: Kind) -> float:
        """What may still be reserved of a kind, whoever does it; infinite without a cap."""
        return min(self.kind_room_bytes(kind), self.total_room_bytes)

    def kind_room_bytes(self, kind: Kind) -> float:
        """What the cap of a kind leaves, whatever else is reserved."""
        return _room(self._caps.by_kind.get(kind), self.reserved_bytes(kind))

    @property
    def total_room_bytes(self) -> float:
        """What the engine's cap leaves."""
        return _room(self._caps.total_bytes, self.reserved_bytes())

    def business_room_bytes(self, business: Business) -> float:
        """What the business's own cap leaves it."""
        return _room(business.memory_bytes, self.reserved_bytes(business=business.name))

    def reserve(self, kind: Kind, size_bytes: int, business: Business | None = None) -> None:
        """Raises `CapacityError`, and reserves nothing, if that would break a cap."""
        rooms = {
            "the engine's memory": self.total_room_bytes,
            f"the memory for {kind}": self.kind_room_bytes(kind),
        }
        if business is not None:
            rooms[f"what business {business.name!r} may have"] = self.business_room_bytes(business)
        for what, room in rooms.items():
            if room < size_bytes:
                raise CapacityError(f"{size_bytes} bytes do not fit: {room:.0f} are left of {what}")
        self._reserved[kind, _name(business)] += size_bytes

    def release(self, kind: Kind, size_bytes: int, business: Business | None = None) -> None:
        """Undo a part of what was reserved."""
        key = kind, _name(business)
        left = self._reserved[key] - size_bytes
        assert left >= 0, (key, left)
        self._reserved[key] = left
        if not left:
            del self._reserved[key]

    def move(self, size_bytes: int, source: Kind, target: Kind, business: Business) -> None:
        """What was reserved for one kind is used as another now; only the cap of that kind can be in the way."""
        room = self.kind_room_bytes(target)
        if room < size_bytes:
            raise CapacityError(f"{size_bytes} bytes do not fit: {room:.0f} are left of the memory for {target}")
        self.release(source, size_bytes, business)
        self._reserved[target, business.name] += size_bytes


def _room(cap: int | None, reserved: int) -> float:
    return math.inf if cap is None else cap - reserved


def _name(business: Business | None) -> str | None:
    return None if business is None else business.name
