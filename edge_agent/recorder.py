"""What a finished request and a look at the engine are worth in metrics: for the fleet, and for a local Prometheus.

Knows metrics' names and what they are computed from; keeping and sending them is `telemetry`'s matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from edge_agent.engine_child import EngineChild
from edge_agent.engine_wire import Heartbeat, Reading
from edge_agent.errors import CLIENTS_FAULTS, AgentError
from edge_agent.host import Host
from edge_agent.protocol import Metric
from edge_agent.served import Model
from edge_agent.telemetry import Subject, Telemetry
from edge_agent.temperature import temperature_c
from engine.metrics import Counters, Meter, Usage

_LATENCY_BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_MEMORY_METRICS: Final[Mapping[str, Metric]] = {
    "weights": Metric.ENGINE_WEIGHTS_BYTES,
    "scratch": Metric.ENGINE_SCRATCH_BYTES,
    "adapters": Metric.ENGINE_ADAPTERS_BYTES,
    "kv": Metric.ENGINE_KV_BYTES,
    "prefix_cache": Metric.ENGINE_PREFIX_CACHE_BYTES,
}


_REFUSALS: Final = CLIENTS_FAULTS | {"capacity", "rate_limited", "queue_full", "not_serving", "adapter_quarantined"}


class Outcome(StrEnum):
    """How a request ended.

    `refused`: it was wrong in itself, or there was no room or budget for it, so that it never ran. `failed`: it should
    have been answered and was not; running out of time is of that kind.
    """

    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"
    REFUSED = "refused"


_OUTCOME_METRICS: Final[Mapping[Outcome, Metric]] = {
    Outcome.CANCELLED: Metric.REQUESTS_CANCELLED,
    Outcome.FAILED: Metric.REQUESTS_FAILED,
    Outcome.REFUSED: Metric.REQUESTS_REFUSED,
}


def outcome_of(error: AgentError) -> Outcome:
    """What became of a request that ended with this error."""
    return Outcome.REFUSED if error.code in _REFUSALS else Outcome.FAILED


class Recorder:
    """Notes what happens on this device."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.last_usage: Usage | None = None
        """Of the last answer, for people who look."""
        self._meters: dict[str, Meter] = {}
        self._telemetry = telemetry
        self._num_restarts = 0
        self._cpu_of: tuple[int, psutil.Process] | None = None
        self._prometheus = _Prometheus()

    def request_ended(self, model: Model, outcome: Outcome, usage: Usage | None) -> None:
        """Note a request, with what it took if that is known."""
        values: dict[Metric, float] = {Metric.REQUESTS: 1}
        meter = self._meters.setdefault(model.profile.business.name, Meter())
        meter.add(requests=1, **({outcome.value: 1} if outcome in _OUTCOME_METRICS else {}))
        if metric := _OUTCOME_METRICS.get(outcome):
            values[metric] = 1
        self._prometheus.requests.labels(model.name, outcome).inc()
        if usage:
            values |= _values_of(usage)
            self.last_usage = usage
            _note_usage(meter, usage)
            self._prometheus.note_usage(model.name, usage)
        self._telemetry.observe(values, _subject_of(model))

    def engine_beat(self, host: Host, child: EngineChild, heartbeat: Heartbeat) -> None:
        """Note what an engine has counted since its last heartbeat."""
        for reading in heartbeat.readings:
            self._note_reading(host, child, reading)
        if heartbeat.update_pause_s:
            subject = Subject(base=child.base, backend=child.backend)
            self._telemetry.observe({Metric.UPDATE_PAUSE_S: heartbeat.update_pause_s}, subject)

    def look_at(self, host: Host) -> None:
        """Note memory, processor time, temperature and restarts."""
        self._note_restarts(host.num_restarts)
        self._prometheus.in_flight.set(host.num_in_flight)
        served = host.served
        values: dict[Metric, float] = {}
        if (degrees := temperature_c()) is not None:
            values[Metric.TEMPERATURE_C] = degrees
        if served is None:
            self._telemetry.observe(values)
            return
        child = served.child
        self._prometheus.revision.set(served.desired.revision)
        if pss_bytes := child.pss_bytes():
            values[Metric.ENGINE_PSS_BYTES] = pss_bytes
        values |= {m: child.memory_bytes[kind] for kind, m in _MEMORY_METRICS.items() if kind in child.memory_bytes}
        if (share := self._cpu_share(child)) is not None:
            values[Metric.ENGINE_CPU_SHARE] = share
        self._prometheus.note_look(values, child)
        base = served.desired.base
        self._telemetry.observe(values, Subject(base=base.digest if base else "", backend=child.backend))

    def update_committed(self) -> None:
        """Note that a new set is served."""
        self._telemetry.observe({Metric.UPDATES: 1})

    def adapter_quarantined(self) -> None:
        """Note that an adapter is not run any more."""
        self._prometheus.quarantined.inc()
        self._telemetry.observe({Metric.ADAPTERS_QUARANTINED: 1})

    def by_business(self) -> Mapping[str, Counters]:
        """What the businesses' requests got since the agent started."""
        return {name: meter.counters for name, meter in self._meters.items()}

    def exposition(self) -> bytes:
        """Prometheus's text format."""
        return generate_latest(self._prometheus.registry)

    def _note_reading(self, host: Host, child: EngineChild, reading: Reading) -> None:
        counters = reading.counters
        values: dict[Metric, float] = {
            Metric.PRE_EMPTIONS: counters.pre_emptions,
            Metric.EVICTIONS: counters.evictions,
            Metric.ADAPTER_SWITCHES: counters.adapter_switches,
        }
        if counters.adapter_switches:
            values[Metric.ADAPTER_SWITCH_S] = counters.adapter_switch_s / counters.adapter_switches
        seen = {metric: value for metric, value in values.items() if value or metric is Metric.ADAPTER_SWITCH_S}
        distributions = {Metric.INTER_TOKEN_S: counters.inter_token_s} if counters.inter_token_s.count else {}
        name = next((m.name for m in host.models if m.adapter == reading.adapter and m.adapter), "")
        subject = Subject(child.base, reading.adapter or "", name, child.backend, reading.business)
        if seen or distributions:
            self._telemetry.observe(seen, subject, distributions)
        self._prometheus.note_reading(name or "base", reading)

    def _note_restarts(self, num_restarts: int) -> None:
        if num_restarts > self._num_restarts:
            self._telemetry.observe({Metric.ENGINE_RESTARTS: num_restarts - self._num_restarts})
        self._num_restarts = num_restarts
        self._prometheus.restarts.set(num_restarts)

    def _cpu_share(self, child: EngineChild) -> float | None:
        """Processors that the engine kept busy since the last look; None at the first one."""
        try:
            if self._cpu_of is None or self._cpu_of[0] != child.pid:
                self._cpu_of = (child.pid, psutil.Process(child.pid))
                self._cpu_of[1].cpu_percent()
                return None
            return float(self._cpu_of[1].cpu_percent()) / 100
        except psutil.Error:
            return None


class _Prometheus:
    """The same for a Prometheus that runs on the device."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("socle_requests", "Requests", ["model", "outcome"], registry=registry)
        self.tokens = Counter("socle_tokens", "Tokens", ["model", "phase"], registry=registry)
        self.ttft = _histogram("socle_ttft_seconds", "Time to first token", registry)
        self.queue = _histogram("socle_queue_seconds", "Time before a request began", registry)
        self.inter_token = _histogram("socle_inter_token_seconds", "Mean time between tokens of an answer", registry)
        labels = ["model", "business"]
        self.pre_emptions = Counter(
            "socle_pre_emptions", "Running requests that others were put before", labels, registry=registry
        )
        self.evictions = Counter("socle_evictions", "States that were taken away", labels, registry=registry)
        self.switches = Counter("socle_adapter_switches", "Changes to the adapter", labels, registry=registry)
        self.switch_s = Counter("socle_adapter_switch_seconds", "Seconds of these", labels, registry=registry)
        self.memory = Gauge("socle_engine_memory_bytes", "Resident memory of the engine", ["kind"], registry=registry)
        self.pss = Gauge("socle_engine_pss_bytes", "Memory of the engine process", registry=registry)
        self.cpu_share = Gauge("socle_engine_cpu_share", "Processors that the engine keeps busy", registry=registry)
        self.temperature = Gauge("socle_temperature_celsius", "Of the hottest sensor", registry=registry)
        self.in_flight = Gauge("socle_requests_in_flight", "Requests running or queued", registry=registry)
        self.waiting = Gauge("socle_requests_waiting", "Requests queued in the engine", registry=registry)
        self.restarts = Gauge("socle_engine_restarts", "Engine restarts", registry=registry)
        self.quarantined = Counter("socle_adapters_quarantined", "Adapters taken out of service", registry=registry)
        self.revision = Gauge("socle_served_revision", "Revision of the served set", registry=registry)

    def note_usage(self, model: str, usage: Usage) -> None:
        """A finished answer."""
        self.ttft.labels(model).observe(usage.ttft_s)
        self.queue.labels(model).observe(usage.queue_s)
        if usage.decode_tokens_per_s:
            self.inter_token.labels(model).observe(1 / usage.decode_tokens_per_s)
        self.tokens.labels(model, "prefill").inc(usage.prompt_tokens - usage.cached_tokens)
        self.tokens.labels(model, "cached").inc(usage.cached_tokens)
        self.tokens.labels(model, "decode").inc(usage.completion_tokens)

    def note_reading(self, model: str, reading: Reading) -> None:
        """What an engine has counted."""
        labels, counters = (model, reading.business), reading.counters
        self.pre_emptions.labels(*labels).inc(counters.pre_emptions)
        self.evictions.labels(*labels).inc(counters.evictions)
        self.switches.labels(*labels).inc(counters.adapter_switches)
        self.switch_s.labels(*labels).inc(counters.adapter_switch_s)

    def note_look(self, values: Mapping[Metric, float], child: EngineChild) -> None:
        """A look at the engine's process."""
        for kind, size_bytes in child.memory_bytes.items():
            self.memory.labels(kind).set(size_bytes)
        self.waiting.set(child.num_waiting)
        gauges = {
            Metric.ENGINE_PSS_BYTES: self.pss,
            Metric.ENGINE_CPU_SHARE: self.cpu_share,
            Metric.TEMPERATURE_C: self.temperature,
        }
        for metric, gauge in gauges.items():
            if metric in values:
                gauge.set(values[metric])


def _histogram(name: str, text: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(name, text, ["model"], buckets=_LATENCY_BUCKETS_S, registry=registry)


def _subject_of(model: Model) -> Subject:
    adapter_name = model.name if model.adapter else ""
    business = model.profile.business.name
    return Subject(model.base.digest, model.adapter or "", adapter_name, model.child.backend, business)


def _note_usage(meter: Meter, usage: Usage) -> None:
    meter.add(
        cached_tokens=usage.cached_tokens,
        prefill_tokens=usage.prompt_tokens - usage.cached_tokens,
        decode_tokens=usage.completion_tokens,
    )
    meter.ttft_s.observe(usage.ttft_s)
    meter.queue_s.observe(usage.queue_s)


def _values_of(usage: Usage) -> dict[Metric, float]:
    rates = {
        Metric.PREFILL_TOKENS_PER_S: usage.prefill_tokens_per_s,
        Metric.DECODE_TOKENS_PER_S: usage.decode_tokens_per_s,
    }
    return {
        Metric.QUEUE_S: usage.queue_s,
        Metric.TTFT_S: usage.ttft_s,
        Metric.CACHED_TOKENS: usage.cached_tokens,
        Metric.PREFILL_TOKENS: usage.prompt_tokens - usage.cached_tokens,
        Metric.PREFILL_S: usage.prefill_s,
        Metric.DECODE_TOKENS: usage.completion_tokens,
        Metric.DECODE_S: usage.decode_s,
        **{metric: rate for metric, rate in rates.items() if rate},
    }
