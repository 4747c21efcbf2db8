"""What each business got on one device: the rows of a table, read off the device's telemetry."""

from dataclasses import dataclass

from django.utils import timezone

from edge_agent.protocol import Distribution, Metric
from fleet.dashboard.charts import TimeRange
from fleet.telemetry import queries
from fleet.telemetry.queries import SeriesQuery

_READ = (
    Metric.REQUESTS,
    Metric.REQUESTS_FAILED,
    Metric.REQUESTS_REFUSED,
    Metric.QUEUE_S,
    Metric.TTFT_S,
    Metric.INTER_TOKEN_S,
    Metric.PREFILL_TOKENS,
    Metric.CACHED_TOKENS,
    Metric.PRE_EMPTIONS,
)


@dataclass(frozen=True, slots=True)
class BusinessRow:
    """A business over a time. Milliseconds are None where nothing was measured; so is the share of cached tokens."""

    name: str
    num_requests: int
    num_failed: int
    num_refused: int
    num_pre_emptions: int
    queue_p95_ms: float | None
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    inter_token_p50_ms: float | None
    cached_percent: float | None


def business_rows(device_id: str, time_range: TimeRange) -> list[BusinessRow]:
    """The businesses whose requests the device got in this time, by name."""
    end = timezone.now()
    query = SeriesQuery(
        metric=Metric.REQUESTS,
        start=end - time_range.span,
        end=end,
        step_s=time_range.step_s,
        group_by=("business",),
        device=device_id,
    )
    found = queries.totals(query, _READ)
    return [_row(name, found[name]) for name in sorted(found) if name]


def _row(name: str, totals: dict[Metric, Distribution]) -> BusinessRow:
    def total(metric: Metric) -> float:
        return totals.get(metric, Distribution()).sum

    def milliseconds(metric: Metric, quantile: float) -> float | None:
        return 1000 * totals[metric].quantile(quantile) if metric in totals else None

    num_tokens = total(Metric.PREFILL_TOKENS) + total(Metric.CACHED_TOKENS)
    return BusinessRow(
        name=name,
        num_requests=round(total(Metric.REQUESTS)),
        num_failed=round(total(Metric.REQUESTS_FAILED)),
        num_refused=round(total(Metric.REQUESTS_REFUSED)),
        num_pre_emptions=round(total(Metric.PRE_EMPTIONS)),
        queue_p95_ms=milliseconds(Metric.QUEUE_S, 0.95),
        ttft_p50_ms=milliseconds(Metric.TTFT_S, 0.50),
        ttft_p95_ms=milliseconds(Metric.TTFT_S, 0.95),
        inter_token_p50_ms=milliseconds(Metric.INTER_TOKEN_S, 0.50),
        cached_percent=100 * total(Metric.CACHED_TOKENS) / num_tokens if num_tokens else None,
    )
