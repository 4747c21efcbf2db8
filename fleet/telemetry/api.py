"""The operators' API about telemetry: GET /telemetry. Parses, calls, answers."""

from datetime import UTC, datetime, timedelta
from typing import Any

from django.utils import timezone
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from edge_agent.protocol import Metric
from fleet.operators.scopes import Scope
from fleet.serializers import StrictSerializer, validated
from fleet.telemetry import queries
from fleet.telemetry.rules import MINUTE_S, unit_of

_DEFAULT_RANGE = timedelta(hours=1)
_YEAR_3000_S = 32_503_680_000


class InstantField(serializers.DateTimeField):
    """An ISO 8601 time, or Unix seconds."""

    def to_internal_value(self, value: Any) -> datetime:
        """A time with its zone."""
        text = str(value)
        if text.isascii() and text.isdigit() and len(text) <= 11 and int(text) < _YEAR_3000_S:
            return datetime.fromtimestamp(int(text), UTC)
        instant: datetime = super().to_internal_value(value)
        if not 1970 <= instant.year < 3000:
            self.fail("invalid", format="1970 to 2999")
        return instant


class GroupByField(serializers.CharField):
    """Names of columns, separated by commas."""

    def to_internal_value(self, data: Any) -> Any:
        """The names as a tuple, each once."""
        names = tuple(dict.fromkeys(filter(None, super().to_internal_value(data).split(","))))
        if unknown := [name for name in names if name not in queries.GROUPABLE]:
            raise serializers.ValidationError(f"{unknown[0]!r} is none of {', '.join(queries.GROUPABLE)}.")
        return names


class TelemetryQuery(StrictSerializer):
    """Which series: by default the last hour, by minute, of the whole fleet as one."""

    metric = serializers.ChoiceField([str(metric) for metric in Metric])
    group_by = GroupByField(max_length=100, required=False, help_text="Any of: " + ", ".join(queries.GROUPABLE))
    step = serializers.IntegerField(min_value=MINUTE_S, max_value=31 * 86400, default=MINUTE_S)
    device = serializers.CharField(max_length=32, required=False)
    group = serializers.CharField(max_length=63, required=False)
    adapter_name = serializers.CharField(max_length=63, required=False)
    business = serializers.CharField(max_length=63, required=False)
    base = serializers.CharField(max_length=64, required=False)

    def get_fields(self) -> dict[str, serializers.Field]:
        """`from` is a word of Python's, so the two ends of the range are added by name."""
        ends = {"from": InstantField(required=False), "to": InstantField(required=False)}
        return super().get_fields() | ends

    def validate_step(self, step_s: int) -> int:
        """Rows are minutes."""
        if step_s % MINUTE_S:
            raise serializers.ValidationError(f"Must be a multiple of {MINUTE_S} seconds.")
        return step_s


class Numbers(serializers.Serializer[Any]):
    """What people read off a distribution. Quantiles are within 1 %; counters have a rate."""

    count = serializers.IntegerField()
    sum = serializers.FloatField()
    min = serializers.FloatField()
    max = serializers.FloatField()
    avg = serializers.FloatField()
    p50 = serializers.FloatField()
    p95 = serializers.FloatField()
    rate_per_s = serializers.FloatField(required=False)


class TelemetryPoint(Numbers):
    """One step."""

    at = serializers.DateTimeField()


class TelemetrySeries(serializers.Serializer[Any]):
    """One group's points in time order; steps without observations are left out."""

    group = serializers.DictField(child=serializers.CharField(allow_blank=True))
    points = TelemetryPoint(many=True)
    total = Numbers()


class TelemetryAnswer(serializers.Serializer[Any]):
    """All series of the query."""

    metric = serializers.CharField()
    unit = serializers.CharField(allow_blank=True)
    step_s = serializers.IntegerField()
    series = TelemetrySeries(many=True)


class TelemetryView(APIView):
    """What the fleet measured."""

    required_scopes = {"GET": Scope.TELEMETRY_READ}

    @extend_schema(operation_id="query_telemetry", parameters=[TelemetryQuery], responses=TelemetryAnswer)
    def get(self, request: Request) -> Response:
        """Merge the devices' summaries per step and group."""
        query = _query_of(validated(TelemetryQuery, request.query_params))
        range_s = (query.end - query.start).total_seconds()
        answer = {
            "metric": query.metric,
            "unit": unit_of(query.metric),
            "step_s": query.step_s,
            "series": [_rendered(one, query, range_s) for one in queries.series(query)],
        }
        return Response(answer)


def _query_of(values: dict[str, Any]) -> queries.SeriesQuery:
    end = values.pop("to", None) or timezone.now()
    start = values.pop("from", None) or end - _DEFAULT_RANGE
    metric, step_s = Metric(values.pop("metric")), values.pop("step")
    return queries.SeriesQuery(metric=metric, start=start, end=end, step_s=step_s, **values)


def _rendered(one: queries.Series, query: queries.SeriesQuery, range_s: float) -> dict[str, Any]:
    points = [
        {"at": point.at} | queries.summary(point.value, query.metric, seconds=query.step_s) for point in one.points
    ]
    total = queries.summary(one.total, query.metric, seconds=range_s)
    return {"group": one.group, "points": points, "total": total}
