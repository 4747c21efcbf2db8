"""What a finished request and a look at the engine are worth in metrics: for the fleet, and for a local Prometheus.

Knows metrics' names and what they are computed from; keeping and sending them is `telemetry`'s matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from edge_agent.engine_child import EngineChild
from edge_agent.engine_wire import Timing
from edge_agent.host import Host, Model
from edge_agent.openai_responses import decode_tokens_per_s, prefill_tokens_per_s
from edge_agent.protocol import Metric
from edge_agent.telemetry import Subject, Telemetry

_TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Outcome(StrEnum):
    """How a request ended."""

    FINISHED = "finished"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Recorder:
    """Notes what happens on this device."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.decode_tokens_per_s: float | None = None
        """Of the last answer, for people who look."""
        self.ttft_s: float | None = None
        self._telemetry = telemetry
        self._num_restarts = 0
        self._counted: Mapping[str, float] = {}
        self._counted_of: EngineChild | None = None
        self._registry = CollectorRegistry()
        self._requests = Counter("socle_requests", "Requests", ["model", "outcome"], registry=self._registry)
        self._tokens = Counter("socle_tokens", "Tokens", ["model", "phase"], registry=self._registry)
        self._ttft = Histogram(
            "socle_ttft_seconds", "Time to first token", ["model"], buckets=_TTFT_BUCKETS_S, registry=self._registry
        )
        self._pss = Gauge("socle_engine_pss_bytes", "Memory of the engine process", registry=self._registry)
        self._in_flight = Gauge("socle_requests_in_flight", "Requests running or queued", registry=self._registry)
        self._restarts = Gauge("socle_engine_restarts", "Engine restarts", registry=self._registry)
        self._revision = Gauge("socle_served_revision", "Revision of the served set", registry=self._registry)

    def request_ended(self, model: Model, outcome: Outcome, timing: Timing | None) -> None:
        """Note a request, with what it took if that is known."""
        values: dict[Metric, float] = {Metric.REQUESTS: 1}
        if outcome is Outcome.FAILED:
            values[Metric.REQUESTS_FAILED] = 1
        self._requests.labels(model.name, outcome).inc()
        if timing:
            values |= _values_of(timing)
            self._note_locally(model, timing)
        self._telemetry.observe(values, _subject_of(model))

    def look_at(self, host: Host) -> None:
        """Note memory, restarts and adapter switches since the last look."""
        self._note_restarts(host.num_restarts)
        self._in_flight.set(host.num_in_flight)
        served = host.served
        if served is None:
            return
        child = served.child
        base = served.desired.base
        self._revision.set(served.desired.revision)
        values: dict[Metric, float] = self._switches_of(child)
        if pss_bytes := child.pss_bytes():
            self._pss.set(pss_bytes)
            values[Metric.ENGINE_PSS_BYTES] = pss_bytes
        if values:
            self._telemetry.observe(values, Subject(base=base.digest if base else "", backend=child.backend))

    def update_committed(self) -> None:
        """Note that a new set is served."""
        self._telemetry.observe({Metric.UPDATES: 1})

    def exposition(self) -> bytes:
        """Prometheus's text format."""
        return generate_latest(self._registry)

    def _note_locally(self, model: Model, timing: Timing) -> None:
        self.decode_tokens_per_s = decode_tokens_per_s(timing) or self.decode_tokens_per_s
        self.ttft_s = timing.ttft_s
        self._ttft.labels(model.name).observe(timing.ttft_s)
        self._tokens.labels(model.name, "prefill").inc(timing.prompt_tokens)
        self._tokens.labels(model.name, "decode").inc(timing.completion_tokens)

    def _note_restarts(self, num_restarts: int) -> None:
        if num_restarts > self._num_restarts:
            self._telemetry.observe({Metric.ENGINE_RESTARTS: num_restarts - self._num_restarts})
        self._num_restarts = num_restarts
        self._restarts.set(num_restarts)

    def _switches_of(self, child: EngineChild) -> dict[Metric, float]:
        """Switches since the last look; the counters of another process begin at zero."""
        before = self._counted if self._counted_of is child else {}
        self._counted, self._counted_of = child.counters, child
        switches, seconds = (
            child.counters.get(name, 0.0) - before.get(name, 0.0) for name in ("adapter_switches", "adapter_switch_s")
        )
        if switches <= 0:
            return {}
        return {Metric.ADAPTER_SWITCHES: switches, Metric.ADAPTER_SWITCH_S: seconds / switches}


def _subject_of(model: Model) -> Subject:
    adapter_name = model.name if model.adapter else ""
    return Subject(model.base.digest, model.adapter or "", adapter_name, model.child.backend)


def _values_of(timing: Timing) -> dict[Metric, float]:
    rates = {
        Metric.PREFILL_TOKENS_PER_S: prefill_tokens_per_s(timing),
        Metric.DECODE_TOKENS_PER_S: decode_tokens_per_s(timing),
    }
    return {
        Metric.TTFT_S: timing.ttft_s,
        Metric.PREFILL_TOKENS: timing.prompt_tokens,
        Metric.PREFILL_S: timing.prefill_s,
        Metric.DECODE_TOKENS: timing.completion_tokens,
        Metric.DECODE_S: timing.decode_s,
        **{metric: rate for metric, rate in rates.items() if rate},
    }
