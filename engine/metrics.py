"""What the engine counts: requests, tokens and seconds by adapter and business, and the memory of this process.

Standard library only. Prefill and decode are kept apart. A step's seconds are shared among its sequences by their rows,
so the counters of all subjects add up to the engine's. No prompts, no answers. Decides nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from engine.distribution import Distribution, Sketch
from engine.ledger import Kind

SMAPS_ROLLUP = Path("/proc/self/smaps_rollup")
SMAPS = Path("/proc/self/smaps")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request took.

    `cached_tokens` of the prompt were not computed, since their keys and values were there. `queue_s` counts until the
    request got memory, `ttft_s` from submission to the first token (0 if there was none), queueing included;
    `prefill_s` and `decode_s` are the request's share of the steps that it ran in.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    queue_s: float = 0.0
    ttft_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0

    @property
    def prefill_tokens_per_s(self) -> float:
        """Of the prompt tokens that were computed; 0 if nothing was measured."""
        return (self.prompt_tokens - self.cached_tokens) / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """0 for answers of less than two tokens: the first one comes out of the prefill."""
        num_decoded = self.completion_tokens - 1
        return num_decoded / self.decode_s if num_decoded > 0 and self.decode_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Subject:
    """What ran, and for whom. `adapter` is a digest, None for the bare base."""

    adapter: str | None
    business: str


@dataclass(frozen=True, slots=True)
class Counters:
    """What was done for a subject.

    `decode_tokens` are the rows of decode steps; an answer's first token comes out of its prefill. `cached_tokens` of
    prompts needed no prefill. `refused` requests never ran, for want of memory, place or budget. `pre_emptions`: how
    often a running request was passed over for others; `evictions`: how often it lost its state to them.
    `adapter_switches` counts how often the back end went over to this adapter from another.
    """

    requests: int = 0
    failed: int = 0
    cancelled: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    prefill_tokens: int = 0
    prefill_s: float = 0.0
    decode_tokens: int = 0
    decode_s: float = 0.0
    pre_emptions: int = 0
    evictions: int = 0
    adapter_switches: int = 0
    adapter_switch_s: float = 0.0
    queue_s: Distribution = field(default_factory=Distribution)
    ttft_s: Distribution = field(default_factory=Distribution)
    inter_token_s: Distribution = field(default_factory=Distribution)

    def merge(self, other: Counters) -> Counters:
        """Both together."""
        names = [spec.name for spec in fields(self)]
        sums: dict[str, Any] = {name: _added(getattr(self, name), getattr(other, name)) for name in names}
        return Counters(**sums)

    @property
    def prefill_tokens_per_s(self) -> float:
        """0 if nothing ran."""
        return self.prefill_tokens / self.prefill_s if self.prefill_s else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """0 if nothing ran."""
        return self.decode_tokens / self.decode_s if self.decode_s else 0.0


class Meter:
    """The counters of one subject while they count."""

    def __init__(self) -> None:
        self.queue_s, self.ttft_s, self.inter_token_s = Sketch(), Sketch(), Sketch()
        self._sums: dict[str, float] = {}

    def add(self, **amounts: float) -> None:
        """Add to counters by name."""
        for name, amount in amounts.items():
            self._sums[name] = self._sums.get(name, 0) + amount

    @property
    def counters(self) -> Counters:
        """What was counted so far."""
        values: dict[str, Any] = dict(self._sums)
        values |= {name: getattr(self, name).distribution for name in ("queue_s", "ttft_s", "inter_token_s")}
        return Counters(**values)


class Metrics:
    """The meters of one engine."""

    def __init__(self) -> None:
        self.adapter_load_s = 0.0
        self._meters: dict[Subject, Meter] = {}
        self._drained: dict[Subject, Counters] = {}

    def of(self, adapter: str | None, business: str = "") -> Meter:
        """The meter to add to."""
        return self._meters.setdefault(Subject(adapter, business), Meter())

    def drain(self) -> dict[Subject, Counters]:
        """What was counted since the last time."""
        news = {subject: meter.counters for subject, meter in self._meters.items()}
        self._meters.clear()
        self._drained = _merged(self._drained, news)
        return news

    def by_subject(self) -> dict[Subject, Counters]:
        """All that was ever counted."""
        return _merged(self._drained, {subject: meter.counters for subject, meter in self._meters.items()})

    def total(self) -> Counters:
        """All subjects together."""
        total = Counters()
        for counters in self.by_subject().values():
            total = total.merge(counters)
        return total


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes.

    reserved: by kind, as the ledger has it. resident: by kind, the pages that were touched, as far as they are known.
    `pss_bytes` is this process's share of physical memory and `anonymous_bytes` what of it belongs to no file; both
    are 0 where the system does not tell.
    """

    reserved: Mapping[Kind, int]
    resident: Mapping[Kind, int]
    pss_bytes: int
    anonymous_bytes: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot. `adapter_switch_s`: seconds in steps spent on changing adapters; `adapter_load_s`: from disk."""

    base_digest: str
    backend: str
    total: Counters
    by_subject: Mapping[Subject, Counters]
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


def mapped_pss(smaps: Path = SMAPS) -> Counter[str]:
    """PSS of this process's mappings by the path of the file; empty where the kernel does not tell."""
    found: Counter[str] = Counter()
    try:
        lines = smaps.read_text().splitlines()
    except OSError:
        return found
    path = ""
    for line in lines:
        head, _, rest = line.partition(" ")
        if not head.endswith(":"):
            path = line.partition("/")[1] + line.partition("/")[2]
        elif head == "Pss:":
            found[path] += int(rest.split()[0]) * 1024
    return found


def _added(first: float | Distribution, second: float | Distribution) -> float | Distribution:
    if isinstance(first, Distribution):
        assert isinstance(second, Distribution)
        return first.merge(second)
    assert not isinstance(second, Distribution)
    return first + second


def _merged(first: Mapping[Subject, Counters], second: Mapping[Subject, Counters]) -> dict[Subject, Counters]:
    merged = dict(first)
    for subject, counters in second.items():
        merged[subject] = merged[subject].merge(counters) if subject in merged else counters
    return merged
