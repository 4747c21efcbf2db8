"""The charts: which metric, read off how, told apart by what; and their figures on an even grid of time.

Knows nothing of drawing: `static/dashboard/charts.js` does that from the document made here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from django.utils import timezone

from edge_agent.protocol import Distribution, Metric
from fleet.devices import queries as devices
from fleet.rollouts import queries as rollouts
from fleet.telemetry import queries
from fleet.telemetry.queries import Series, SeriesQuery

MAX_LINES = 6  # as many as the stylesheet has colours that can be told apart
MAX_MARKS = 20


@dataclass(frozen=True, slots=True)
class TimeRange:
    """How far back a chart looks, and in which steps."""

    name: str
    label: str
    span: timedelta
    step_s: int


RANGES = (
    TimeRange("15m", "15 min", timedelta(minutes=15), 60),
    TimeRange("1h", "1 h", timedelta(hours=1), 60),
    TimeRange("6h", "6 h", timedelta(hours=6), 300),
    TimeRange("24h", "24 h", timedelta(hours=24), 900),
    TimeRange("7d", "7 d", timedelta(days=7), 7200),
)
_DEFAULT_RANGE = RANGES[1]


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart. `scale` turns the metric's unit into `unit`; `hint` and `command` stand where there is no data."""

    name: str
    title: str
    note: str
    metric: Metric
    statistic: Literal["p50", "p95", "max"]
    unit: str
    group_by: Literal["adapter_name", "device", ""]
    hint: str
    command: str
    scale: float = 1.0


_ASK = """curl http://127.0.0.1:PORT/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{"model": "ADAPTER", "messages": [{"role": "user", "content": "你好"}]}'"""
_RUN = "python -m edge_agent run --state-dir DIR"
_NO_REQUESTS = "No requests in this time. Send one on a device:"
_NO_ENGINE = "No engine ran in this time. Start the agent on a device:"
_MIB = 1 / (1 << 20)

_SPEED = Chart(
    "speed",
    "Decode speed",
    "median request, per adapter",
    Metric.DECODE_TOKENS_PER_S,
    "p50",
    "tokens/s",
    "adapter_name",
    _NO_REQUESTS,
    _ASK,
)
_TTFT = Chart(
    "ttft",
    "Time to first token",
    "95th percentile, per adapter",
    Metric.TTFT_S,
    "p95",
    "ms",
    "adapter_name",
    _NO_REQUESTS,
    _ASK,
    scale=1000,
)
_MEMORY = Chart(
    "memory",
    "Engine memory",
    "peak, per device",
    Metric.ENGINE_PSS_BYTES,
    "max",
    "MiB",
    "device",
    _NO_ENGINE,
    _RUN,
    scale=_MIB,
)
CHARTS = {chart.name: chart for chart in (_SPEED, _TTFT, _MEMORY)}


def chosen_range(name: str) -> TimeRange:
    """The range that the address names; an hour if it names none."""
    return next((known for known in RANGES if known.name == name), _DEFAULT_RANGE)


def document(chart: Chart, time_range: TimeRange, *, device_id: str = "") -> dict[str, Any]:
    """The chart's lines on one grid of times, None where nothing was measured; raises what telemetry refuses."""
    end = timezone.now()
    start = end - time_range.span
    query = SeriesQuery(
        metric=chart.metric,
        start=start,
        end=end,
        step_s=time_range.step_s,
        group_by=(chart.group_by,) if chart.group_by else (),
        device=device_id,
    )
    found = sorted(queries.series(query), key=lambda line: -_read(chart, line.total))
    shown = found[:MAX_LINES]
    grid = _grid(start, end, time_range.step_s)
    names = _names(chart, shown)
    return {
        "title": chart.title,
        "unit": chart.unit,
        "start": start.timestamp(),
        "end": end.timestamp(),
        "at": grid,
        "series": [_line(chart, line, grid, names) for line in sorted(shown, key=lambda line: _label(line, names))],
        "num_left_out": len(found) - len(shown),
        "marks": _marks(start, device_id),
    }


def _grid(start: datetime, end: datetime, step_s: int) -> list[int]:
    """Beginnings of all steps in the range, at multiples of the step since 1970 as telemetry cuts them."""
    first = int(start.timestamp()) // step_s * step_s
    return list(range(first, int(end.timestamp()) + 1, step_s))


def _line(chart: Chart, line: Series, grid: Sequence[int], names: Mapping[str, str]) -> dict[str, Any]:
    values = {int(point.at.timestamp()): _read(chart, point.value) for point in line.points}
    return {"label": _label(line, names), "values": [values.get(at) for at in grid]}


def _read(chart: Chart, value: Distribution) -> float:
    read = {"p50": lambda: value.quantile(0.50), "p95": lambda: value.quantile(0.95), "max": lambda: value.max}
    return round(read[chart.statistic]() * chart.scale, 3)


def _label(line: Series, names: Mapping[str, str]) -> str:
    key = next(iter(line.group.values()), "")
    return names.get(key, key)


def _names(chart: Chart, lines: Sequence[Series]) -> dict[str, str]:
    """What people call the groups: devices by name, and requests without an adapter by what they ran on."""
    if chart.group_by != "device":
        return {"": "base model"}
    return devices.names_of([line.group["device"] for line in lines])


def _marks(start: datetime, device_id: str) -> list[dict[str, Any]]:
    """When rollouts began in this time, to be seen on the same axis."""
    begun = rollouts.rollouts_begun(since=start, device_id=device_id)[:MAX_MARKS]
    return [{"at": rollout.started_at.timestamp(), "label": str(rollout)} for rollout in begun]
