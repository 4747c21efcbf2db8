"""What happened, minute by minute: observations are noted as they happen, summed up, spooled, and sent.

An observation is one line in the spool's open segment, so that killing the agent loses none. `fold` makes a
`TelemetryBatch` of a segment, one `Sample` per minute, metric, base, adapter and back end. Knows metrics and batches;
where lines lie is `spool`'s matter, when to send `daemon`'s.
"""

from __future__ import annotations

import asyncio
import gzip
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import structlog

from edge_agent.errors import RefusedError
from edge_agent.protocol import Distribution, Metric, Sample, TelemetryBatch, distribution_of
from edge_agent.spool import Spool
from engine.strict_json import DecodeError, decode, encode

log = structlog.get_logger()

_UNAUTHORISED = frozenset({401, 403})


@dataclass(frozen=True, slots=True)
class Subject:
    """What was running and for whom: release digests, names, the back end; empty where it doesn't apply."""

    base: str = ""
    adapter: str = ""
    adapter_name: str = ""
    backend: str = ""
    business: str = ""


@dataclass(frozen=True, slots=True)
class Observation:
    """Values of some metrics, seen at one moment (Unix seconds); of others many values that were summed up before."""

    at_s: float
    values: Mapping[str, float]
    subject: Subject = field(default_factory=Subject)
    distributions: Mapping[str, Distribution] = field(default_factory=dict)


class Sender(Protocol):
    """The part of `FleetClient` that is needed here."""

    async def telemetry(self, gzipped: bytes) -> None:
        """Hand over a batch."""


class Telemetry:
    """Notes observations and gets them to the server, whatever dies in between."""

    def __init__(self, spool: Spool, device_id: str, clock: Callable[[], float] = time.time) -> None:
        self._spool = spool
        self._device_id = device_id
        self._clock = clock
        self._num_unwritten = 0
        self._lock = asyncio.Lock()

    @property
    def spool_bytes(self) -> int:
        """Bytes that wait to be sent."""
        return self._spool.size_bytes()

    @property
    def num_batches(self) -> int:
        """Batches that wait to be sent."""
        return len(self._spool.batches())

    def observe(
        self,
        values: Mapping[Metric, float],
        subject: Subject | None = None,
        distributions: Mapping[Metric, Distribution] | None = None,
    ) -> None:
        """Note what was seen just now. A full disk costs the observation, never the caller."""
        plain = {str(metric): float(value) for metric, value in values.items()}
        summed = {str(metric): value for metric, value in (distributions or {}).items()}
        if not plain and not summed:
            return
        line = encode(Observation(self._clock(), plain, subject or Subject(), summed))
        try:
            self._spool.append(line)
        except OSError as error:
            self._num_unwritten += len(values)
            log.warning("telemetry.not_written", error=str(error), dropped=self._num_unwritten)

    async def sync(self) -> None:
        """Bound what a power loss costs."""
        async with self._lock:
            await asyncio.to_thread(self._spool.sync)

    def close(self) -> None:
        """End the running segment; it becomes a batch at the next start."""
        self._spool.close_segment()

    async def flush(self) -> None:
        """End the running segment, make batches of all segments, and keep the spool within its bound."""
        if self._num_unwritten:
            num_unwritten, self._num_unwritten = self._num_unwritten, 0
            self.observe({Metric.SAMPLES_DROPPED: num_unwritten})
        async with self._lock:
            self._spool.close_segment()
            await asyncio.to_thread(self._spool.fold, self._fold)
        for batch in self._spool.surplus():
            self._drop(batch, "spool_full")

    async def send(self, sender: Sender) -> int:
        """Send all batches, the oldest first; returns how many went. Raises `TransientError` to be tried again later.

        What the server refuses for good is dropped and counted: one bad batch must not hold up the others. A refused
        signature says nothing about the batch, so it stays.
        """
        num_sent = 0
        for batch in self._spool.batches():
            try:
                await sender.telemetry(batch.read_bytes())
            except FileNotFoundError:  # dropped in the meantime, because the spool is full
                continue
            except RefusedError as error:
                if error.status in _UNAUTHORISED:
                    raise
                self._drop(batch, error.code)
                continue
            self._spool.remove(batch)
            num_sent += 1
        return num_sent

    def _drop(self, batch: Path, reason: str) -> None:
        """Count first, remove then: a kill in between counts twice rather than not at all."""
        num_samples = _num_samples(batch)
        log.warning("telemetry.dropped", batch=batch.name, samples=num_samples, reason=reason)
        self.observe({Metric.SAMPLES_DROPPED: num_samples})
        self._spool.remove(batch)

    def _fold(self, batch_id: str, lines: list[bytes]) -> bytes | None:
        found: dict[tuple[int, Metric, Subject], Distribution] = defaultdict(Distribution)
        for line in filter(None, lines):
            observation = _read_line(line)
            if observation:
                minute_s = int(observation.at_s // 60 * 60)
                single = {name: distribution_of([value]) for name, value in observation.values.items()}
                for name, value in (*single.items(), *observation.distributions.items()):
                    key = (minute_s, Metric(name), observation.subject)
                    found[key] = found[key].merge(value)
        if not found:
            return None
        samples = tuple(_sample(*key, value) for key, value in found.items())
        return gzip.compress(encode(TelemetryBatch(batch_id, self._device_id, samples)), mtime=0)


def _read_line(line: bytes) -> Observation | None:
    """An observation; None for the torn last line of a power loss."""
    try:
        observation = decode(Observation, line)
        [Metric(name) for name in (*observation.values, *observation.distributions)]
    except (DecodeError, ValueError) as error:
        log.warning("telemetry.bad_line", error=str(error))
        return None
    return observation


def _sample(minute_s: int, metric: Metric, subject: Subject, value: Distribution) -> Sample:
    return Sample(
        minute_s=minute_s,
        metric=metric,
        value=value,
        base=subject.base,
        adapter=subject.adapter,
        adapter_name=subject.adapter_name,
        backend=subject.backend,
        business=subject.business,
    )


def _num_samples(batch: Path) -> int:
    """Samples that are lost with a batch; those that it said were lost before count on."""
    try:
        samples = decode(TelemetryBatch, gzip.decompress(batch.read_bytes())).samples
    except (OSError, EOFError, DecodeError) as error:
        log.warning("telemetry.bad_batch", batch=batch.name, error=str(error))
        return 1
    return sum(round(s.value.sum) if s.metric is Metric.SAMPLES_DROPPED else 1 for s in samples)
