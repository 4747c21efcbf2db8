from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from edge_agent import protocol
from fleet.devices import queries
from fleet.devices.models import DesiredRecord, Device

BASE = protocol.ReleaseRef("tiny", "1.0.0", "a" * 64)


def ids(operator: Any, **query: Any) -> set[str]:
    return {row["name"] for row in operator.get("/devices", **query).json()["results"]}


@pytest.mark.parametrize(
    ("device", "wanted_revision", "status"),
    [
        ({}, 0, "online"),
        ({"revision": 2, "target_revision": 2}, 2, "online"),
        ({"silent": timedelta(minutes=5)}, 0, "stale"),
        ({"silent": timedelta(minutes=20)}, 0, "offline"),
        ({"last_seen_at": None}, 0, "offline"),
        ({"revision": 1}, 2, "updating"),
        ({"revision": 1, "target_revision": 2, "update_state": "failed"}, 2, "failed"),
        ({"revision": 1, "target_revision": 2, "update_state": "failed"}, 3, "updating"),
        ({"revision": 2, "target_revision": 2, "problem_code": "desired_rollback"}, 2, "alarm"),
        ({"revision": 2, "target_revision": 2, "problem_code": "desired_not_signed"}, 3, "alarm"),
        ({"revision": 1, "target_revision": 2, "update_state": "rolling_back", "problem_code": "x"}, 2, "updating"),
        ({"revision": 1, "target_revision": 2, "update_state": "failed", "problem_code": "x"}, 3, "updating"),
        ({"revision": 1, "silent": timedelta(minutes=20)}, 2, "offline"),
        ({"state": "revoked"}, 0, "revoked"),
    ],
)
def test_the_status_of_a_device(
    enrolled: Any, operator: Any, device: dict[str, Any], wanted_revision: int, status: str
) -> None:
    enrolled()
    if silent := device.pop("silent", None):
        device["last_seen_at"] = timezone.now() - silent
    Device.objects.update(**device)
    DesiredRecord.objects.update(revision=wanted_revision)
    assert operator.get("/devices").json()["results"][0]["status"] == status
    counts = queries.fleet_counts()
    assert {name: num for name, num in counts.items() if num} == {"total": 1, status: 1}
    assert ids(operator, status=status) == {"kitchen"}


def test_devices_are_found_by_group_tag_name_and_release(enrolled: Any, operator: Any) -> None:
    enrolled("kitchen lamp", group="home")
    enrolled("kitchen door", tags=("pilot",))
    car = enrolled("car")
    car.report("idle", base=BASE)
    assert ids(operator) == {"kitchen lamp", "kitchen door", "car"}
    assert ids(operator, group="home") == {"kitchen lamp"}
    assert ids(operator, tag="pilot") == {"kitchen door"}
    assert ids(operator, search="door kitchen") == {"kitchen door"}
    assert ids(operator, search=car.device_id[4:12]) == {"car"}
    assert ids(operator, release="a" * 64) == {"car"}
    assert ids(operator, search="nobody") == set()


def test_lists_come_in_pages(enrolled: Any, operator: Any) -> None:
    names = {f"device {number}" for number in range(5)}
    for name in names:
        enrolled(name)
    seen, page = set(), operator.get("/devices", limit=2).json()
    while True:
        seen |= {row["name"] for row in page["results"]}
        if page["next"] is None:
            break
        page = operator.http.get(page["next"]).json()
    assert seen == names


@pytest.mark.parametrize("path", ["/devices", "/groups"])
def test_lists_take_a_fixed_number_of_queries(enrolled: Any, operator: Any, path: str) -> None:
    def num_queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            operator.get(path)
        return len(captured)

    enrolled("one", group="home").report("idle", base=BASE)
    operator.get(path)
    first = num_queries()
    for name in ("two", "three", "four"):
        enrolled(name, group=f"{name}-group", tags=("a", "b")).report("idle", base=BASE)
    assert num_queries() == first


def test_a_devices_page_takes_a_fixed_number_of_queries(
    enrolled: Any, publish: Any, operator: Any, django_assert_num_queries: Any
) -> None:
    base = publish("tiny@1.0.0")
    for name in ("home", "car", "summary"):
        publish(f"{name}@1.0.0", base=base)
    device = enrolled()
    body = {"base": "tiny", "adapters": ["home", "car", "summary"], "devices": [device.device_id]}
    assert operator.post("/rollouts", body).status_code == 201
    device.commits(device.desired())
    with django_assert_num_queries(7):
        detail = queries.device_detail(device.device_id)
    with django_assert_num_queries(0):
        has = [(row.name, row.version) for row in detail.has]
        wants = [detail.wants_base.ref, *(adapter.ref for adapter in detail.wants_adapters)]
        assert (len(detail.device.tags), [event.kind for event in detail.events][-1]) == (0, "enrolled")
    assert has == [("tiny", "1.0.0"), ("car", "1.0.0"), ("home", "1.0.0"), ("summary", "1.0.0")]
    assert wants == ["tiny@1.0.0", "car@1.0.0", "home@1.0.0", "summary@1.0.0"]


def test_versions_are_counted_over_enrolled_devices(enrolled: Any, operator: Any) -> None:
    devices = [enrolled(f"device {number}") for number in range(3)]
    for device in devices:
        device.report("idle", base=BASE)
    operator.post(f"/devices/{devices[0].device_id}/revoke")
    (row,) = queries.version_distribution()
    assert (row["name"], row["version"], row["num_devices"]) == ("tiny", "1.0.0", 2)


def test_names_and_tags_are_changed_and_told(enrolled: Any, operator: Any) -> None:
    device = enrolled(tags=("old", "kept"))
    changed = operator.send("PATCH", f"/devices/{device.device_id}", {"name": "hall", "tags": ["new", "kept"]}).json()
    assert (changed["name"], changed["tags"]) == ("hall", ["kept", "new"])
    assert [event["kind"] for event in changed["events"]] == ["tagged", "renamed", "enrolled"]
    assert changed["events"][0]["actor"].startswith("token:")
    again = operator.send("PATCH", f"/devices/{device.device_id}", {"name": "hall", "tags": ["kept", "new"]}).json()
    assert len(again["events"]) == 3


def test_groups_are_joined_and_left(enrolled: Any, operator: Any) -> None:
    device = enrolled()
    operator.post("/groups", {"name": "home", "description": "At home"})
    place = f"/groups/home/devices/{device.device_id}"
    for _ in range(2):
        assert operator.send("PUT", place).status_code == 204
    [listed] = operator.get("/groups").json()
    assert (listed["name"], listed["description"], listed["num_devices"]) == ("home", "At home", 1)
    assert operator.send("DELETE", place).status_code == 204
    kinds = [event["kind"] for event in operator.get(f"/devices/{device.device_id}").json()["events"]]
    assert kinds == ["group_left", "group_joined", "enrolled"]
    assert operator.post("/groups", {"name": "home"}).json()["code"] == "group_exists"


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/devices/dev_x", "device_not_found"),
        ("PATCH", "/devices/dev_x", "device_not_found"),
        ("POST", "/devices/dev_x/revoke", "device_not_found"),
        ("GET", "/devices/dev_x/events", "device_not_found"),
        ("PUT", "/groups/nobody/devices/dev_x", "group_not_found"),
    ],
)
def test_what_is_not_there(operator: Any, method: str, path: str, code: str) -> None:
    response = operator.get(path) if method == "GET" else operator.send(method, path, {})
    assert (response.status_code, response.json()["code"]) == (404, code)


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/groups"), ("POST", "/enrolment-tokens"), ("PATCH", "/devices/x"), ("POST", "/devices/x/revoke")],
)
def test_readers_change_nothing(operator_with: Any, method: str, path: str) -> None:
    assert operator_with("fleet:read").send(method, path, {}).status_code == 403
    assert operator_with().send(method, path, {}).status_code == 401


def test_who_needs_attention(enrolled: Any) -> None:
    for name, changes in (("fine", {}), ("broken", {"update_state": "failed"}), ("silent", {"last_seen_at": None})):
        device = enrolled(name)
        Device.objects.filter(pk=device.device_id).update(**changes)
    assert {device.name for device in queries.needs_attention()} == {"broken", "silent"}
