"""`/metrics` for Prometheus, collected from the database at scrape time: right under any number of workers."""

from collections.abc import Iterator

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_safe
from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from fleet.devices import queries as devices
from fleet.rollouts import queries as rollouts
from fleet.telemetry import queries as telemetry
from registry import queries as registry


class FleetCollector:
    """What the fleet looks like now."""

    def collect(self) -> Iterator[Metric]:
        """All gauges."""
        counts = devices.fleet_counts()
        counts.pop("total")
        yield _by_label("socle_devices", "Devices by status", "status", counts)
        yield _by_label("socle_rollouts", "Rollouts by state", "state", rollouts.state_counts())
        yield _served_releases()
        yield GaugeMetricFamily("socle_telemetry_rows", "Telemetry rows kept", value=telemetry.num_rows())
        yield GaugeMetricFamily("socle_releases", "Releases published", value=registry.releases().count())
        newest = telemetry.newest_minute()
        yield GaugeMetricFamily(
            "socle_telemetry_newest_timestamp_seconds",
            "The newest minute that telemetry is there for",
            value=newest.timestamp() if newest else 0,
        )


@require_safe
def metrics(_request: HttpRequest) -> HttpResponse:
    """The exposition format."""
    collected = CollectorRegistry()
    collected.register(FleetCollector())
    return HttpResponse(exposition.generate_latest(collected), content_type=exposition.CONTENT_TYPE_LATEST)


def _by_label(name: str, documentation: str, label: str, counts: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(name, documentation, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _served_releases() -> Metric:
    family = GaugeMetricFamily(
        "socle_devices_serving", "Enrolled devices by release that they serve", labels=["name", "version", "digest"]
    )
    for row in devices.version_distribution():
        family.add_metric([str(row["name"]), str(row["version"]), str(row["digest"])], row["num_devices"])
    return family
