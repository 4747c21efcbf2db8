"""What the engine counts: tokens and seconds per adapter, and the memory of this process. Decides nothing.

Prefill and decode are kept apart. A step's seconds are shared among its sequences by their rows, so the counters of all
adapters add up to the engine's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

SMAPS_ROLLUP = Path("/proc/self/smaps_rollup")


@dataclass(slots=True)
class Summary:
    """Observations in seconds."""

    count: int = 0
    sum_s: float = 0.0
    max_s: float = 0.0

    def observe(self, seconds: float) -> None:
        """Add one."""
        self.merge(Summary(1, seconds, seconds))

    def merge(self, other: Summary) -> None:
        """Add all of another."""
        self.count += other.count
        self.sum_s += other.sum_s
        self.max_s = max(self.max_s, other.max_s)

    @property
    def mean_s(self) -> float:
        """0 if there are none."""
        return self.sum_s / self.count if self.count else 0.0


@dataclass(slots=True)
class Counters:
    """What was done for one adapter since the engine opened.

    `decode_tokens` are the rows of decode steps; an answer's first token comes out of its prefill. `adapter_switches`
    counts how often the back end went over to this adapter from another.
    """

    requests: int = 0
    requests_failed: int = 0
    requests_cancelled: int = 0
    prefill_tokens: int = 0
    prefill_s: float = 0.0
    decode_tokens: int = 0
    decode_s: float = 0.0
    adapter_switches: int = 0
    ttft: Summary = field(default_factory=Summary)
    inter_token: Summary = field(default_factory=Summary)

    def merge(self, other: Counters) -> None:
        """Add all of another."""
        for spec in fields(self):
            mine, theirs = getattr(self, spec.name), getattr(other, spec.name)
            if isinstance(mine, Summary):
                mine.merge(theirs)
            else:
                setattr(self, spec.name, mine + theirs)

    @property
    def prefill_tokens_per_s(self) -> float:
        """0 if nothing ran."""
        return self.prefill_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """0 if nothing ran."""
        return self.decode_tokens / self.decode_s if self.decode_s else 0.0


class Metrics:
    """The counters of one engine, by adapter digest (None: the bare base)."""

    def __init__(self) -> None:
        self._by_adapter: dict[str | None, Counters] = {}
        self.adapter_load_s = 0.0

    def of(self, adapter: str | None) -> Counters:
        """The counters to add to."""
        return self._by_adapter.setdefault(adapter, Counters())

    def by_adapter(self) -> dict[str | None, Counters]:
        """A copy."""
        return {adapter: _sum([counters]) for adapter, counters in self._by_adapter.items()}

    def total(self) -> Counters:
        """All adapters and the bare base together."""
        return _sum(list(self._by_adapter.values()))


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. `pss_bytes` is this process's share of physical memory, 0 where the system does not tell."""

    pss_bytes: int
    anonymous_bytes: int
    kv_bytes: int
    adapter_bytes: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot. `adapter_switch_s`: seconds in steps spent on changing adapters; `adapter_load_s`: from disk."""

    base_digest: str
    backend: str
    total: Counters
    by_adapter: Mapping[str | None, Counters]
    adapter_switch_s: float
    adapter_load_s: float
    memory: Memory
    resident_adapters: tuple[str, ...]
    num_running: int
    num_waiting: int


def process_memory(smaps_rollup: Path = SMAPS_ROLLUP) -> tuple[int, int]:
    """PSS and anonymous bytes of this process; zeros where the kernel has no such file."""
    try:
        lines = smaps_rollup.read_text().splitlines()[1:]
    except OSError:
        return 0, 0
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return kib["Pss"] * 1024, kib["Anonymous"] * 1024


def _sum(parts: list[Counters]) -> Counters:
    total = Counters()
    for part in parts:
        total.merge(part)
    return total
