"""The figures behind the charts, as JSON."""

from django.http import Http404, HttpRequest, JsonResponse
from django.views.decorators.http import require_GET

from fleet.dashboard.access import page
from fleet.dashboard.charts import CHARTS, chosen_range, document
from fleet.errors import problem_response
from registry.errors import ApiError


@require_GET
@page
def chart(request: HttpRequest, name: str) -> JsonResponse:
    """One chart's lines over the chosen range, of the whole fleet or of one device."""
    if name not in CHARTS:
        raise Http404
    time_range = chosen_range(request.GET.get("range", ""))
    try:
        return JsonResponse(document(CHARTS[name], time_range, device_id=request.GET.get("device", "")))
    except ApiError as error:
        return problem_response(error)
