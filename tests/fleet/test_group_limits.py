"""Limits that operators set on groups, on their way into devices' documents."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from edge_agent.protocol import Limits
from fleet.audit.models import AuditEntry
from fleet.devices import actions
from fleet.devices.limits import limits_of, tightest
from fleet.devices.models import DeviceGroup
from fleet.devices.tasks import apply_all_limits

NIGHT, NOON = "22:00-06:00 Europe/Berlin", "12:00-13:00 UTC"
NOTHING = {
    "memory_bytes": None,
    "download_bytes_per_s": None,
    "min_decode_tokens_per_s": None,
    "download_window": None,
}


@pytest.fixture
def device(enrolled: Any, publish: Any, operator: Any) -> Any:
    """In the groups `home` and `pilot`, with a base that it shall have."""
    found = enrolled(group="home")
    operator.post("/groups", {"name": "pilot"})
    operator.send("PUT", f"/groups/pilot/devices/{found.device_id}")
    publish("tiny@1.0.0")
    publish("tiny@2.0.0")
    operator.post("/rollouts", {"base": "tiny@1.0.0", "devices": [found.device_id]})
    return found


def limit(operator: Any, group: str = "home", **limits: Any) -> dict[str, Any]:
    response = operator.send("PATCH", f"/groups/{group}", {"limits": limits})
    assert response.status_code == 200, response.content
    return response.json()["limits"]


def test_the_tightest_of_each_limit_holds() -> None:
    home = limits_of({"memory_bytes": 100, "min_decode_tokens_per_s": 5.0, "download_window": NIGHT})
    pilot = limits_of({"memory_bytes": 200, "download_bytes_per_s": 10, "min_decode_tokens_per_s": 9.0})
    noon = limits_of({"download_window": NOON})
    assert tightest([home, pilot, noon]) == Limits(100, 10, 9.0, (NOON, NIGHT))
    assert tightest([]) == Limits()


def test_a_device_hears_of_its_groups_limits_under_a_new_revision(operator: Any, device: Any) -> None:
    before = device.call("GET", "desired").headers["ETag"]
    told = limit(operator, memory_bytes=1 << 30, download_bytes_per_s=500_000, download_window=NIGHT)
    assert told == NOTHING | {"memory_bytes": 1 << 30, "download_bytes_per_s": 500_000, "download_window": NIGHT}
    assert operator.get("/groups/home").json()["limits"] == told
    wanted = device.desired()
    assert (wanted.revision, wanted.base.version) == (2, "1.0.0")
    assert wanted.limits == Limits(1 << 30, 500_000, None, (NIGHT,))
    assert device.call("GET", "desired", headers={"If-None-Match": before}).status_code == 200
    shown = operator.get(f"/devices/{device.device_id}").json()["limits"]
    assert (shown["memory_bytes"], shown["download_windows"]) == (1 << 30, [NIGHT])


def test_only_the_limits_that_are_named_change_and_null_lifts_one(operator: Any, device: Any) -> None:
    limit(operator, memory_bytes=100, min_decode_tokens_per_s=3)
    assert limit(operator, memory_bytes=None, download_window=NOON)["min_decode_tokens_per_s"] == 3
    assert device.desired().limits == Limits(None, None, 3.0, (NOON,))
    changed = operator.send("PATCH", "/groups/home", {"description": "Living rooms"}).json()
    assert (changed["description"], changed["limits"]["download_window"]) == ("Living rooms", NOON)
    assert device.desired().revision == 3


def test_two_groups_and_leaving_one(operator: Any, device: Any) -> None:
    limit(operator, memory_bytes=200, download_window=NIGHT)
    limit(operator, "pilot", memory_bytes=100, download_window=NOON)
    assert device.desired().limits == Limits(100, download_windows=(NOON, NIGHT))
    operator.send("DELETE", f"/groups/pilot/devices/{device.device_id}")
    assert device.desired().limits == Limits(200, download_windows=(NIGHT,))
    operator.send("PUT", f"/groups/pilot/devices/{device.device_id}")
    assert device.desired().limits.memory_bytes == 100


def test_the_same_limits_again_are_no_news(operator: Any, device: Any) -> None:
    limit(operator, memory_bytes=200)
    limit(operator, memory_bytes=200)
    limit(operator, "pilot", memory_bytes=300)
    assert device.desired().revision == 2


def test_a_device_without_a_set_hears_of_limits_with_its_first(operator: Any, enrolled: Any, publish: Any) -> None:
    operator.post("/groups", {"name": "home"})
    limit(operator, memory_bytes=200)
    device = enrolled(group="home")
    assert (device.desired().revision, device.desired().limits.memory_bytes) == (0, 200)
    limit(operator, memory_bytes=100)
    assert (device.desired().revision, device.desired().limits.memory_bytes) == (0, 100)
    publish("tiny@1.0.0")
    operator.post("/rollouts", {"base": "tiny", "devices": [device.device_id]})
    assert (device.desired().revision, device.desired().limits.memory_bytes) == (1, 100)


def test_a_rollout_goes_on_when_limits_change_under_way(operator: Any, device: Any) -> None:
    rollout = operator.post("/rollouts", {"base": "tiny@2.0.0", "groups": ["home"]}).json()
    limit(operator, memory_bytes=200)
    wanted = device.desired()
    assert (wanted.revision, wanted.base.version) == (3, "2.0.0")
    device.works_on(wanted)
    assert operator.get(f"/rollouts/{rollout['id']}").json()["counts"]["updating"] == 1
    device.fails(wanted, "not_enough_memory")
    assert operator.get(f"/rollouts/{rollout['id']}").json()["state"] == "failed"
    limit(operator, memory_bytes=None)
    assert device.commits(device.desired()).status_code == 204
    assert operator.get(f"/rollouts/{rollout['id']}").json()["state"] == "completed"


def test_a_rollout_is_taken_back_under_the_limits_of_now(operator: Any, device: Any) -> None:
    rollout = operator.post("/rollouts", {"base": "tiny@2.0.0", "groups": ["home"]}).json()
    limit(operator, memory_bytes=200)
    operator.post(f"/rollouts/{rollout['id']}/abort")
    wanted = device.desired()
    assert (wanted.revision, wanted.base.version, wanted.limits.memory_bytes) == (4, "1.0.0", 200)


def test_a_lost_message_is_made_good_by_the_tick(operator: Any, device: Any) -> None:
    with operator.run_on_commit():  # and nothing of it is executed
        operator.http.patch("/api/v1/groups/home", {"limits": {"memory_bytes": 7}}, format="json")
    assert device.desired().limits == Limits()
    apply_all_limits()
    assert device.desired().limits == Limits(7)
    group = DeviceGroup.objects.get(name="home")
    assert group.limits_applied == group.limits_version == 1


def test_devices_get_their_limits_in_batches(operator: Any, enrolled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "LIMITS_BATCH_SIZE", 2)
    devices = [enrolled(f"device {number}", group="home") for number in range(3)]
    limit(operator, memory_bytes=200)
    assert {device.desired().limits.memory_bytes for device in devices} == {200}


def test_who_limited_what_is_in_the_chain(operator: Any, device: Any) -> None:
    limit(operator, memory_bytes=200)
    change, told = AuditEntry.objects.filter(kind__contains="limit")
    assert change.actor.startswith("token:operator")
    assert change.detail == {"group": "home", "before": {}, "after": {"memory_bytes": 200}}
    assert told.detail["devices"] == [device.device_id]


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        ({"memory_bytes": 0}, "memory_bytes"),
        ({"memory_bytes": "much"}, "memory_bytes"),
        ({"download_bytes_per_s": -1}, "download_bytes_per_s"),
        ({"min_decode_tokens_per_s": 0}, "min_decode_tokens_per_s"),
        ({"min_decode_tokens_per_s": "nan"}, "min_decode_tokens_per_s"),
        ({"min_decode_tokens_per_s": "inf"}, "min_decode_tokens_per_s"),
        ({"download_window": "at night"}, "download_window"),
        ({"download_window": "22:00-06:00 Europe/Atlantis"}, "download_window"),
        ({"download_window": "22:00-22:00 UTC"}, "download_window"),
        ({"max_memory": 1}, "max_memory"),
    ],
)
def test_a_bad_limit_is_refused_by_name(operator: Any, device: Any, limits: dict[str, Any], name: str) -> None:
    response = operator.send("PATCH", "/groups/home", {"limits": limits})
    assert response.status_code == 400, response.content
    assert list(response.json()["fields"]) == [f"limits.{name}"]
    assert device.desired().revision == 1


def test_strangers_and_readers_limit_nothing(operator_with: Any, operator: Any, device: Any) -> None:
    body = {"limits": {"memory_bytes": 1}}
    assert operator_with().send("PATCH", "/groups/home", body).status_code == 401
    assert operator_with("fleet:read").send("PATCH", "/groups/home", body).status_code == 403
    assert operator_with("fleet:read").get("/groups/home").status_code == 200
    assert operator_with("telemetry:read").get("/groups/home").status_code == 403
    assert operator.send("PATCH", "/groups/nobody", body).status_code == 404
    assert device.desired().revision == 1


def test_enrolment_tokens_bring_the_limits_of_their_group(operator: Any, enrolment_token: Any, enrolled: Any) -> None:
    enrolment_token(group="home", lifetime=timedelta(hours=1))
    limit(operator, download_bytes_per_s=9)
    assert enrolled("late", group="home").desired().limits.download_bytes_per_s == 9
