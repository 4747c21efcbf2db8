"""Releases: bases with the adapters made for them, publications on their way, and one artifact with its versions."""

from collections.abc import Iterable

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from fleet.dashboard.access import page
from fleet.dashboard.views.shell import not_found, page_of, show
from fleet.devices import queries as devices
from registry import queries
from registry.errors import ApiError
from registry.states import PublicationState

SECTION = "dashboard:releases"
NUM_FAILED = 5


@require_GET
@page
def release_list(request: HttpRequest) -> HttpResponse:
    """Every base with the adapters that fit it, and what is on its way or failed."""
    found = page_of(request, queries.lineage())
    return show(
        request,
        "releases",
        SECTION,
        page=found,
        deployed=_deployed(),
        in_progress=queries.publications_in_progress(),
        failed=queries.publications(state=PublicationState.FAILED)[:NUM_FAILED],
    )


@require_GET
@page
def release_detail(request: HttpRequest, name: str) -> HttpResponse:
    """One artifact: its versions with aliases, notes, reports, and where each is deployed."""
    try:
        artifact = queries.get_artifact(name)
    except ApiError as error:
        return not_found(request, SECTION, error)
    return show(
        request,
        "release",
        SECTION,
        artifact=artifact,
        page=page_of(request, queries.releases(name=name)),
        deployed=_deployed(),
    )


def _deployed() -> dict[str, int]:
    """Number of devices that serve each release, by digest."""
    rows: Iterable[dict[str, object]] = devices.version_distribution()
    return {str(row["digest"]): int(str(row["num_devices"])) for row in rows}
