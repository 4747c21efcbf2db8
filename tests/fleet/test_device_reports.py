from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edge_agent import protocol
from engine.strict_json import encode
from fleet.devices.models import Device, InstalledRelease

BASE = protocol.ReleaseRef("tiny", "1.0.0", "a" * 64)
HOME = protocol.ReleaseRef("home", "1.0.0", "b" * 64)


def test_a_report_is_kept_as_it_came_and_indexed(enrolled: Any, operator: Any) -> None:
    device = enrolled()
    sent = device.report_of("idle", revision=3, base=BASE, adapters=(HOME,), free_disk_bytes=5, engine={"back": "onnx"})
    assert device.call("POST", "report", encode(sent)).status_code == 204
    row = operator.get(f"/devices/{device.device_id}").json()
    assert row["base"] == {"name": "tiny", "version": "1.0.0", "digest": "a" * 64}
    assert [adapter["name"] for adapter in row["adapters"]] == ["home"]
    assert (row["revision"], row["update_state"], row["report"]["engine"]) == (3, "idle", {"back": "onnx"})
    assert row["report"]["free_disk_bytes"] == 5


def test_the_index_follows_the_reports(enrolled: Any) -> None:
    device = enrolled()
    device.report("idle", base=BASE, adapters=(HOME,))
    before = set(InstalledRelease.objects.values_list("pk", flat=True))
    device.report("idle", base=BASE, adapters=(HOME,), free_disk_bytes=1)
    assert set(InstalledRelease.objects.values_list("pk", flat=True)) == before
    device.report("idle", base=BASE)
    assert [row.name for row in InstalledRelease.objects.all()] == ["tiny"]


def test_the_timeline_holds_changes_and_not_repetitions(enrolled: Any, operator: Any) -> None:
    device = enrolled()
    problem = protocol.Problem("no_space", "Free 1 GB.", {"free": "0"})
    for _ in range(2):
        device.report("downloading", target_revision=1)
    for _ in range(2):
        device.report("failed", target_revision=1, problem=problem)
    events = operator.get(f"/devices/{device.device_id}/events").json()["results"]
    assert [event["kind"] for event in events] == ["update_failed", "update_downloading", "enrolled"]
    assert events[0]["detail"]["problem"]["code"] == "no_space"
    assert operator.get(f"/devices/{device.device_id}").json()["problem_code"] == "no_space"


@pytest.mark.parametrize(
    "changes",
    [
        {"agent_version": "x" * 65},
        {"revision": -1},
        {"target_revision": -1},
        {"base": replace(BASE, digest="short")},
        {"base": replace(BASE, name="x" * 64)},
        {"adapters": (HOME,) * 257},
        {"quarantined": ("short",)},
        {"memory_bytes": {"kv": -1}},
        {"memory_bytes": {"Not A Kind": 1}},
        {"problem": protocol.Problem("Not A Code", "")},
        {"problem": protocol.Problem("code", "x" * 4001)},
        {"hardware": protocol.Hardware("x" * 201, 1, 1)},
    ],
)
def test_values_that_no_field_can_hold_are_refused(enrolled: Any, changes: dict[str, Any]) -> None:
    device = enrolled()
    response = device.call("POST", "report", encode(replace(device.report_of("idle"), **changes)))
    assert (response.status_code, response.json()["code"]) == (422, "bad_device_data")
    assert Device.objects.get().report is None


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{}", 400),
        (b'{"device_id": "\\ud800"}', 400),
        (b"[" * 100_000, 400),
        (b"1" * 10_000, 400),
        (b" " * (300 << 10), 413),
    ],
)
def test_bodies_that_are_no_report_are_refused(enrolled: Any, body: bytes, status: int) -> None:
    response = enrolled().call("POST", "report", body)
    assert response.status_code == status
    assert response.headers["Content-Type"] == "application/problem+json"


def test_an_unknown_encoding_is_refused(enrolled: Any) -> None:
    response = enrolled().call("POST", "report", b"{}", headers={"Content-Encoding": "br"})
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_encoding")
