from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edge_agent.errors import RefusedError, UnreachableError
from edge_agent.protocol import Metric, Sample, TelemetryBatch, distribution_of
from edge_agent.spool import Spool
from edge_agent.telemetry import Subject, Telemetry
from engine.strict_json import decode

pytestmark = pytest.mark.anyio
HOME = Subject("b" * 64, "a" * 64, "home", "onnx")


@dataclass(slots=True)
class Clock:
    now_s: float = 600.0

    def __call__(self) -> float:
        return self.now_s


@dataclass(slots=True)
class Server:
    """Takes batches, or raises what it is told to."""

    received: list[TelemetryBatch] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)

    async def telemetry(self, gzipped: bytes) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.received.append(decode(TelemetryBatch, gzip.decompress(gzipped)))

    def samples(self, metric: Metric) -> list[Sample]:
        return [sample for batch in self.received for sample in batch.samples if sample.metric is metric]

    def total(self, metric: Metric) -> float:
        return sum(sample.value.sum for sample in self.samples(metric))


@pytest.fixture
def clock() -> Clock:
    return Clock()


def telemetry_in(directory: Path, clock: Clock, *, max_bytes: int = 1 << 20) -> Telemetry:
    """As after a start of the agent: nothing but the directory is remembered."""
    return Telemetry(Spool(directory, max_bytes=max_bytes), "dev_1", clock)


async def test_observations_of_a_minute_become_one_sample(tmp_path: Path, clock: Clock) -> None:
    telemetry, server = telemetry_in(tmp_path, clock), Server()
    for value in (0.1, 0.2, 0.4):
        telemetry.observe({Metric.TTFT_S: value, Metric.REQUESTS: 1}, HOME)
    clock.now_s = 660.0
    telemetry.observe({Metric.TTFT_S: 0.8}, HOME)
    telemetry.observe({Metric.TTFT_S: 1.6})
    await telemetry.flush()
    assert await telemetry.send(server) == 1
    first, second, bare = server.samples(Metric.TTFT_S)
    assert first.value == distribution_of([0.1, 0.2, 0.4])
    assert (first.minute_s, first.base, first.adapter, first.adapter_name, first.backend) == (600, *astuple(HOME))
    assert (second.minute_s, second.value) == (660, distribution_of([0.8]))
    assert (bare.minute_s, bare.adapter) == (660, "")
    assert server.total(Metric.REQUESTS) == 3
    assert server.received[0].device_id == "dev_1"


def astuple(subject: Subject) -> tuple[str, ...]:
    return (subject.base, subject.adapter, subject.adapter_name, subject.backend)


async def test_a_kill_before_the_flush_loses_nothing(tmp_path: Path, clock: Clock) -> None:
    telemetry_in(tmp_path, clock).observe({Metric.REQUESTS: 1}, HOME)
    again, server = telemetry_in(tmp_path, clock), Server()
    again.observe({Metric.REQUESTS: 1}, HOME)
    await again.flush()
    await again.send(server)
    assert server.total(Metric.REQUESTS) == 2


async def test_a_kill_between_batch_and_segment_makes_no_second_batch(
    tmp_path: Path, clock: Clock, monkeypatch
) -> None:
    telemetry, server = telemetry_in(tmp_path, clock), Server()
    telemetry.observe({Metric.REQUESTS: 1}, HOME)

    def killed(_path: Path, **_: object) -> None:
        raise KeyboardInterrupt

    telemetry.close()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            telemetry._spool.fold(telemetry._fold)
    again = telemetry_in(tmp_path, clock)
    await again.flush()
    assert await again.send(server) == 1
    assert server.total(Metric.REQUESTS) == 1


async def test_a_kill_after_the_server_has_taken_a_batch_sends_the_same_one(
    tmp_path: Path, clock: Clock, monkeypatch
) -> None:
    telemetry, server = telemetry_in(tmp_path, clock), Server()
    telemetry.observe({Metric.REQUESTS: 1}, HOME)
    await telemetry.flush()

    def killed(_spool: Spool, _batch: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Spool, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            await telemetry.send(server)
    await telemetry_in(tmp_path, clock).send(server)
    first, second = server.received
    assert first == second


async def test_a_torn_line_costs_itself_only(tmp_path: Path, clock: Clock) -> None:
    telemetry = telemetry_in(tmp_path, clock)
    telemetry.observe({Metric.REQUESTS: 1}, HOME)
    telemetry.close()
    segment = next(iter(tmp_path.glob("open-*")))  # noqa: ASYNC240 - a test may wait for the disk
    segment.write_bytes(segment.read_bytes() + b'{"at_s":60')
    again, server = telemetry_in(tmp_path, clock), Server()
    await again.flush()
    await again.send(server)
    assert server.total(Metric.REQUESTS) == 1


async def test_an_outage_keeps_all_in_order(tmp_path: Path, clock: Clock) -> None:
    telemetry, server = telemetry_in(tmp_path, clock), Server()
    for minute in range(12):
        clock.now_s = 60.0 * minute
        telemetry.observe({Metric.REQUESTS: minute}, HOME)
        await telemetry.flush()
    server.errors = [UnreachableError("away")]
    with pytest.raises(UnreachableError):
        await telemetry.send(server)
    assert await telemetry_in(tmp_path, clock).send(server) == 12
    assert [sample.minute_s for sample in server.samples(Metric.REQUESTS)] == [60 * minute for minute in range(12)]
    assert telemetry.num_batches == 0


async def test_a_full_spool_drops_the_oldest_and_counts_it(tmp_path: Path, clock: Clock) -> None:
    telemetry, server = telemetry_in(tmp_path, clock, max_bytes=2000), Server()
    for minute in range(30):
        clock.now_s = 60.0 * minute
        telemetry.observe({Metric.REQUESTS: 1, Metric.TTFT_S: 1.0 + minute}, HOME)
        await telemetry.flush()
        assert telemetry.spool_bytes <= 2000
    for _ in range(2):
        await telemetry.flush()
        await telemetry.send(server)
    kept = [sample.minute_s // 60 for sample in server.samples(Metric.REQUESTS)]
    assert kept == list(range(30 - len(kept), 30))
    assert len(kept) < 30
    assert server.total(Metric.SAMPLES_DROPPED) == 2 * (30 - len(kept))


async def test_a_refused_batch_does_not_hold_up_the_others(tmp_path: Path, clock: Clock) -> None:
    telemetry, server = telemetry_in(tmp_path, clock), Server(errors=[RefusedError("bad", status=400)])
    for _ in range(2):
        telemetry.observe({Metric.REQUESTS: 1}, HOME)
        await telemetry.flush()
    assert await telemetry.send(server) == 1
    await telemetry.flush()
    await telemetry.send(server)
    assert server.total(Metric.REQUESTS) == 1
    assert server.total(Metric.SAMPLES_DROPPED) == 1


async def test_a_refused_signature_keeps_the_batch(tmp_path: Path, clock: Clock) -> None:
    telemetry, server = telemetry_in(tmp_path, clock), Server(errors=[RefusedError("who?", status=401)])
    telemetry.observe({Metric.REQUESTS: 1}, HOME)
    await telemetry.flush()
    with pytest.raises(RefusedError):
        await telemetry.send(server)
    assert await telemetry.send(server) == 1


async def test_a_full_disk_costs_the_observation_not_the_caller(tmp_path: Path, clock: Clock, monkeypatch) -> None:
    telemetry, server = telemetry_in(tmp_path, clock), Server()

    def full(_spool: Spool, _line: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Spool, "append", full)
        telemetry.observe({Metric.REQUESTS: 1, Metric.TTFT_S: 1.0}, HOME)
    await telemetry.flush()
    await telemetry.send(server)
    assert server.total(Metric.SAMPLES_DROPPED) == 2
