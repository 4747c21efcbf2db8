"""Devices: the list with its filters and its CSV, and one device's page."""

import csv
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from edge_agent.protocol import Limits
from fleet.dashboard.access import page
from fleet.dashboard.businesses import business_rows
from fleet.dashboard.charts import CHARTS, RANGES, chosen_range
from fleet.dashboard.reasons import reason_of
from fleet.dashboard.templatetags.dashboard import size
from fleet.dashboard.timeline import line_of
from fleet.dashboard.views.shell import not_found, page_of, show
from fleet.devices import queries
from fleet.devices.errors import DeviceNotFoundError
from fleet.devices.models import Device, InstalledRelease

SECTION = "dashboard:devices"
STATUSES = ("online", "updating", "stale", "offline", "alarm", "failed", "revoked")
FILTERS = ("status", "group", "tag", "search", "release")
CSV_COLUMNS = (
    "id",
    "name",
    "status",
    "reason",
    "groups",
    "tags",
    "base",
    "adapters",
    "agent_version",
    "revision",
    "wanted_revision",
    "last_seen_at",
)


@require_GET
@page
def device_list(request: HttpRequest) -> HttpResponse:
    """Devices that the filters in the address leave."""
    filters = _filters(request)
    found = page_of(request, queries.devices(**filters))
    return show(
        request,
        "devices",
        SECTION,
        page=found,
        rows=[(device, reason_of(device)) for device in found],
        filters=filters,
        statuses=STATUSES,
        counts=queries.fleet_counts(),
        groups=queries.groups(),
    )


@require_GET
@page
def device_csv(request: HttpRequest) -> HttpResponse:
    """The same devices as the list, all pages of them, for a spreadsheet."""
    disposition = 'attachment; filename="devices.csv"'
    response = HttpResponse(content_type="text/csv; charset=utf-8", headers={"Content-Disposition": disposition})
    writer = csv.writer(response)
    writer.writerow(CSV_COLUMNS)
    for device in queries.devices(**_filters(request)).iterator(chunk_size=500):
        writer.writerow([_harmless(value) for value in _csv_row(device)])
    return response


@require_GET
@page
def device_detail(request: HttpRequest, device_id: str) -> HttpResponse:
    """One device: its status with the reason, what it has and wants, its timeline and charts."""
    try:
        detail = queries.device_detail(device_id)
    except DeviceNotFoundError as error:
        return not_found(request, SECTION, error)
    time_range = chosen_range(request.GET.get("range", ""))
    return show(
        request,
        "device",
        SECTION,
        device=detail.device,
        report=detail.device.report or {},
        reason=reason_of(detail.device),
        has_problem=detail.device.status in (queries.DeviceStatus.FAILED, queries.DeviceStatus.ALARM),
        comparison=_comparison(detail),
        businesses=business_rows(device_id, time_range),
        memory=_memory(detail.device),
        limits=list(_limits(detail.limits)),
        events=[line_of(event) for event in detail.events],
        charts=CHARTS.values(),
        ranges=RANGES,
        range=time_range,
        query=urlencode({"range": time_range.name, "device": device_id}),
    )


def _filters(request: HttpRequest) -> dict[str, str]:
    return {name: request.GET.get(name, "").strip() for name in FILTERS}


def _comparison(detail: queries.DeviceDetail) -> list[dict[str, Any]]:
    """Has and wants side by side: one row per name, the base first."""
    wants = {release.name: release for release in detail.wants_adapters}
    if detail.wants_base:
        wants = {detail.wants_base.name: detail.wants_base} | wants
    has: dict[str, InstalledRelease] = {installed.name: installed for installed in detail.has}
    bases = {installed.name for installed in detail.has if installed.is_base}
    bases |= {detail.wants_base.name} if detail.wants_base else set()
    rows = [{"name": name, "has": has.get(name), "wants": wants.get(name)} for name in wants | has]
    quarantined = set((detail.device.report or {}).get("quarantined") or ())
    for row in rows:
        row["is_quarantined"] = bool(row["has"] and row["has"].digest in quarantined)
        row["is_base"] = row["name"] in bases
        row["is_same"] = bool(row["has"] and row["wants"] and row["has"].digest == row["wants"].digest)
    return sorted(rows, key=lambda row: (not row["is_base"], row["name"]))


def _memory(device: Device) -> list[tuple[str, int]]:
    """The engine's memory by kind, the largest first, without the sum."""
    sizes = (device.report or {}).get("memory_bytes") or {}
    return sorted(((kind, size) for kind, size in sizes.items() if kind != "pss"), key=lambda pair: -pair[1])


def _limits(limits: Limits) -> Iterator[str]:
    """What the device's groups allow it, in words."""
    if limits.memory_bytes:
        yield f"at most {size(limits.memory_bytes)} of memory"
    if limits.download_bytes_per_s:
        yield f"downloads at {size(limits.download_bytes_per_s)}/s at most"
    for window in limits.download_windows:
        yield f"downloads at {window}"
    if limits.min_decode_tokens_per_s:
        yield f"a new set must reach {limits.min_decode_tokens_per_s:g} tokens/s"


def _csv_row(device: Device) -> list[Any]:
    installed = list(device.installed.all())
    return [
        device.pk,
        device.name,
        device.status,
        reason_of(device),
        " ".join(group.name for group in device.groups.all()),
        " ".join(device.tags),
        " ".join(str(release) for release in installed if release.is_base),
        " ".join(str(release) for release in installed if not release.is_base),
        device.agent_version,
        device.revision,
        device.wanted_revision,
        device.last_seen_at.isoformat(timespec="seconds") if device.last_seen_at else "",
    ]


def _harmless(value: Any) -> Any:
    """Devices choose their names; a spreadsheet would run one that begins like a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
