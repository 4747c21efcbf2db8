"""The overview: how the fleet is, what needs attention, what is going on, how fast it is."""

from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from fleet.dashboard.access import page
from fleet.dashboard.charts import CHARTS, RANGES, chosen_range
from fleet.dashboard.reasons import reason_of
from fleet.dashboard.timeline import line_of
from fleet.dashboard.views.shell import show
from fleet.devices import queries as devices
from fleet.rollouts import queries as rollouts
from registry import queries as registry

STATUSES = ("online", "updating", "stale", "offline", "alarm", "failed")
NUM_ATTENTION = 6
NUM_EVENTS = 8
NUM_ROLLOUTS = 4


@require_GET
@page
def overview(request: HttpRequest) -> HttpResponse:
    """The whole fleet on one page."""
    time_range = chosen_range(request.GET.get("range", ""))
    attention = devices.needs_attention()
    counts = devices.fleet_counts()
    return show(
        request,
        "overview",
        "dashboard:overview",
        statuses=STATUSES,
        counts=counts,
        attention=[(device, reason_of(device)) for device in attention[:NUM_ATTENTION]],
        num_attention=sum(counts[status] for status in devices.NEED_ATTENTION),
        distribution=devices.version_distribution(),
        num_serving=counts["total"] - counts["revoked"],
        rollouts=[(row, rollouts.progress(row)) for row in rollouts.active_rollouts()[:NUM_ROLLOUTS]],
        newest_rollout=rollouts.rollouts().first(),
        publications=registry.publications_in_progress()[:NUM_ROLLOUTS],
        events=[line_of(event) for event in devices.recent_events()[:NUM_EVENTS]],
        charts=CHARTS.values(),
        ranges=RANGES,
        range=time_range,
        query=urlencode({"range": time_range.name}),
    )
