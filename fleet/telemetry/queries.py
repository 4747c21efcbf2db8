"""Reads of telemetry: series of merged distributions per group and step. Nothing here writes.

The database filters and orders; merging sketches happens here, row by row, so memory holds the result and not the rows.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from django.db.models import QuerySet

from edge_agent.protocol import Distribution, Metric
from fleet.telemetry.errors import BadRangeError, QueryTooWideError
from fleet.telemetry.models import TelemetryRow
from fleet.telemetry.rules import MINUTE_S, is_counter

GROUPABLE = ("adapter_name", "adapter", "base", "backend", "business", "device")
MAX_POINTS = 3000
MAX_SERIES = 200
MAX_ROWS = 300_000
_VALUES = ("count", "sum", "min", "max", "zeros", "buckets")


@dataclass(frozen=True, slots=True)
class SeriesQuery:
    """Which metric, over which time, cut into which steps, told apart by what; empty filters mean all."""

    metric: Metric
    start: datetime
    end: datetime
    step_s: int = MINUTE_S
    group_by: tuple[str, ...] = ()
    device: str = ""
    group: str = ""
    adapter_name: str = ""
    business: str = ""
    base: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    """The merged observations of one step; `at` is its beginning."""

    at: datetime
    value: Distribution


@dataclass(slots=True)
class Series:
    """Points of one group, in time order; steps without observations are left out."""

    group: Mapping[str, str]
    points: list[Point] = field(default_factory=list)
    total: Distribution = field(default_factory=Distribution)

    def add(self, at: datetime, value: Distribution) -> None:
        """Merge a row's observations into the last point, or begin a new one."""
        if self.points and self.points[-1].at == at:
            self.points[-1] = Point(at, self.points[-1].value.merge(value))
        else:
            self.points.append(Point(at, value))


def series(query: SeriesQuery) -> list[Series]:
    """One series per group, by group; raises `BadRangeError` or `QueryTooWideError`."""
    _check(query)
    found: dict[tuple[str, ...], Series] = {}
    for row in _rows(query):
        key = tuple(row[name] for name in _columns(query.group_by))
        if key not in found:
            found[key] = Series(dict(zip(query.group_by, key, strict=True)))
        if len(found) > MAX_SERIES:
            raise QueryTooWideError(f"The answer would have more than {MAX_SERIES} series.")
        found[key].add(_step_of(row["minute"], query), Distribution(**{name: row[name] for name in _VALUES}))
    for one in found.values():
        for point in one.points:
            one.total = one.total.merge(point.value)
    return [found[key] for key in sorted(found)]


def summary(value: Distribution, metric: Metric, *, seconds: float) -> dict[str, float]:
    """What people read off a distribution; counters have the rate over that many seconds as well."""
    numbers = {
        "count": value.count,
        "sum": value.sum,
        "min": value.min,
        "max": value.max,
        "avg": value.sum / value.count if value.count else 0.0,
        "p50": value.quantile(0.50),
        "p95": value.quantile(0.95),
    }
    return numbers | {"rate_per_s": value.sum / seconds} if is_counter(metric) else numbers


def totals(query: SeriesQuery, metrics: Collection[Metric]) -> dict[str, dict[Metric, Distribution]]:
    """All observations of some metrics in the query's time, merged per group (of one column) and metric."""
    _check(query)
    (column,) = _columns(query.group_by)
    found: dict[str, dict[Metric, Distribution]] = {}
    for metric in metrics:
        for row in _rows(replace(query, metric=metric)):
            group = found.setdefault(str(row[column]), {})
            value = Distribution(**{name: row[name] for name in _VALUES})
            group[metric] = group.get(metric, Distribution()).merge(value)
    return found


def newest_minute() -> datetime | None:
    """When the fleet was last heard of by its telemetry."""
    return TelemetryRow.objects.order_by("-minute").values_list("minute", flat=True).first()


def known_metrics(*, device: str = "") -> list[str]:
    """Metrics that there are rows of."""
    rows = TelemetryRow.objects.filter(device=device) if device else TelemetryRow.objects.all()
    return list(rows.order_by("metric").values_list("metric", flat=True).distinct())


def num_rows() -> int:
    """Rows that are kept now."""
    return TelemetryRow.objects.count()


def _check(query: SeriesQuery) -> None:
    if query.start >= query.end:
        raise BadRangeError("`from` does not lie before `to`.")
    if (query.end - query.start) / timedelta(seconds=query.step_s) > MAX_POINTS:
        raise QueryTooWideError(f"The range has more than {MAX_POINTS} steps.")


def _filtered(query: SeriesQuery) -> QuerySet[TelemetryRow]:
    wanted = {
        "device_id": query.device,
        "device__groups__name": query.group,
        "adapter_name": query.adapter_name,
        "business": query.business,
        "base": query.base,
    }
    rows = TelemetryRow.objects.filter(metric=query.metric, minute__gte=query.start, minute__lt=query.end)
    return rows.filter(**{name: value for name, value in wanted.items() if value})


def _rows(query: SeriesQuery) -> Iterator[Mapping[str, object]]:
    columns = ("minute", *_columns(query.group_by), *_VALUES)
    rows = _filtered(query).order_by("minute", "pk").values(*columns)
    for number, row in enumerate(rows.iterator(chunk_size=2000)):
        if number >= MAX_ROWS:
            raise QueryTooWideError(f"More than {MAX_ROWS} rows would have to be merged.")
        yield row


def _columns(group_by: tuple[str, ...]) -> tuple[str, ...]:
    return tuple("device_id" if name == "device" else name for name in group_by)


def _step_of(minute: datetime, query: SeriesQuery) -> datetime:
    """Steps begin at multiples of the step since 1970, so that two queries cut time alike."""
    seconds = int(minute.timestamp())
    return datetime.fromtimestamp(seconds - seconds % query.step_s, UTC)
