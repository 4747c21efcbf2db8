from __future__ import annotations

import re

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from edge_agent.protocol import Problem, UpdateState
from fleet.devices.actions import apply_limits, update_group
from fleet.devices.models import Device, DeviceEvent
from fleet.devices.queries import get_group
from tests.fleet.dashboard.small_fleet import ACTOR, PROBLEM, enrol, publish, report, roll_out

EMPTY = {
    "/": "From here to a model on a device",
    "/devices": "No device is enrolled yet.",
    "/releases": "Nothing is published yet.",
    "/rollouts": "Nothing was rolled out yet.",
    "/rollouts/new": "No adapter is published yet.",
    "/devices/enrol": "Issue tokens",
}


def addresses(fleet) -> list[str]:
    """Every page, with rows on it."""
    device, rollout = fleet.devices["bedroom-speaker"], fleet.running
    lists = ["/", "/devices", "/releases", "/rollouts", "/rollouts/new", "/devices/enrol"]
    return [*lists, f"/devices/{device.pk}", "/releases/smart-home", "/releases/socle-demo", f"/rollouts/{rollout.pk}"]


def text_of(response) -> str:
    """What a person reads, without tags and runs of blanks."""
    assert response.status_code == 200
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", response.content.decode()))


@pytest.mark.parametrize("address", EMPTY)
def test_an_empty_fleet_shows_the_next_step(colleague, address):
    assert EMPTY[address] in text_of(colleague.get(address))


def test_the_overview_counts_and_names_what_needs_attention(colleague, fleet):
    text = text_of(colleague.get("/"))
    for counted in ("Online 2", "Updating 2", "Stale 1", "Offline 1", "Failed 1"):
        assert f"{counted} of 8 devices" in text
    assert f"bedroom-speaker Failed {PROBLEM.detail}" in text
    assert "car-31 Offline Heard from 5 h ago." in text
    assert "Smart home 1.1 Running 1 active 1 updating 1 pending 1 failed" in text
    assert "smart-home 1.1.0 1 of 7" in text
    assert "summary 1.0.1 adapter Converting quantising · 62 %" in text


def test_a_device_says_why_and_what_is_to_come(colleague, fleet):
    text = text_of(colleague.get(f"/devices/{fleet.devices['bedroom-speaker'].pk}"))
    assert "Revision 2 could not be reached: disk_full" in text
    assert f"{PROBLEM.detail} The device keeps serving revision 1. Missing bytes 42991616" in text
    assert re.search(r"smart-home 1\.0\.0 \w{12} 1\.1\.0 \w{12} To come", text)
    assert re.search(r"car 1\.0\.0 (\w{12}) 1\.0\.0 \1 In place", text)


def test_a_device_that_serves_and_does_not_believe_the_server_raises_an_alarm(colleague, fleet):
    device = fleet.devices["car-07"]
    problem = Problem("desired_rollback", "The server sent revision 1 after revision 7.", {"seen": "7"})
    report(device, UpdateState.IDLE, arrived=True, problem=problem)
    page = text_of(colleague.get(f"/devices/{device.pk}"))
    assert "The device reports a problem: desired_rollback" in page
    assert f"{problem.detail} The device keeps serving revision" in page
    assert re.search(r"Serves revision 1, and reports a problem \S.{0,20} The server sent revision 1 after", page)
    assert f"car-07 Alarm {problem.detail}" in text_of(colleague.get("/"))
    assert "car-07" in text_of(colleague.get("/devices?status=alarm"))
    report(device, UpdateState.IDLE, arrived=True)
    assert "reports a problem:" not in text_of(colleague.get(f"/devices/{device.pk}"))


def test_a_rollout_says_that_a_device_does_not_believe_what_it_was_handed(colleague, fleet):
    waiting = fleet.running.rows.filter(state="pending").exclude(revision=None).first()
    problem = {"code": "desired_not_signed", "detail": "The desired state is refused."}
    Device.objects.filter(pk=waiting.device_id).update(problem_code=problem["code"], report={"problem": problem})
    assert f"Pending {problem['detail']}" in text_of(colleague.get(f"/rollouts/{fleet.running.pk}"))


def test_a_device_shows_the_limits_of_its_groups(colleague, fleet):
    device = fleet.devices["kitchen-panel"]
    assert "Limits" not in text_of(colleague.get(f"/devices/{device.pk}"))
    limits = {"memory_bytes": 512 << 20, "download_window": "22:00-06:00 UTC", "min_decode_tokens_per_s": 5.5}
    group = update_group(group=get_group("homes"), actor=ACTOR, limits=limits | {"download_bytes_per_s": 1 << 20})
    apply_limits(group.pk)
    shown = text_of(colleague.get(f"/devices/{device.pk}"))
    assert (
        "at most 512 MiB of memory; downloads at 1.0 MiB/s at most; downloads at 22:00-06:00 UTC; "
        "a new set must reach 5.5 tokens/s"
    ) in shown
    assert "Got the limits of its groups" in shown


def test_a_device_shows_what_each_business_got(colleague, fleet):
    text = text_of(colleague.get(f"/devices/{fleet.devices['kitchen-panel'].pk}"))
    assert re.search(r"car 240 60 refused 4\.0 ms \d\d ms, \d\d ms 5\.6 ms 0 %", text)
    assert re.search(r"smart-home 240 2\.0 ms \d\d ms, \d\d ms 5\.6 ms 75 %", text)
    assert "Weights 278 MiB resident Kv 12.0 MiB resident Adapters 9.0 MiB resident" in text


def test_an_adapter_that_is_not_run_any_more_says_so(colleague, fleet):
    device = fleet.devices["car-07"]
    quarantined = tuple(installed.digest for installed in device.installed.all() if installed.name == "car")
    report(device, UpdateState.COMMITTED, arrived=True, quarantined=quarantined)
    assert re.search(r"car 1\.0\.0 (\w{12}) 1\.0\.0 \1 Not run", text_of(colleague.get(f"/devices/{device.pk}")))


def test_a_release_that_the_device_shall_lose_is_to_go(colleague, fleet):
    roll_out(remove=("car",), devices=(fleet.devices["car-07"].pk,))
    assert re.search(
        r"car 1\.0\.0 \w{12} nothing To go", text_of(colleague.get(f"/devices/{fleet.devices['car-07'].pk}"))
    )


def test_releases_stand_under_their_base(colleague, fleet):
    text = text_of(colleague.get("/releases"))
    assert "weather 0.1.0 adapter Failed Every matrix of the adapter is zero. all_zero Try: Train it, then" in text
    assert re.search(r"socle-demo 1\.0\.0 base .*smart-home 1\.1\.0 @stable Published \w{12} 2\.0 MiB 1 ", text)
    assert re.search(r"summary 1\.0\.0 – Yanked \w{12} 2\.0 MiB 0 ", text)


def test_an_artifact_shows_versions_aliases_notes_and_yanks(colleague, fleet):
    text = text_of(colleague.get("/releases/smart-home"))
    assert "smart-home@stable 1.1.0 ada" in text
    assert "Notes of smart-home 1.0.0." in text
    assert "Agreement top 1 0.987" in text
    assert "Cuts long messages. Devices that have it keep it" in text_of(colleague.get("/releases/summary"))


def test_a_rollout_shows_each_device_with_its_reason(colleague, fleet):
    text = text_of(colleague.get(f"/rollouts/{fleet.running.pk}"))
    assert "50 % of 4 devices settled" in text
    assert f"bedroom-speaker Failed {PROBLEM.detail} disk_full" in text
    assert "客厅音箱 Updating Downloads, 33 % of 2.0 MiB." in text
    assert "hallway-hub Pending Waits for its next poll." in text


def test_a_rollout_can_be_narrowed_to_one_step(colleague, fleet):
    text = text_of(colleague.get(f"/rollouts/{fleet.running.pk}?step=failed"))
    assert "bedroom-speaker" in text
    assert "hallway-hub" not in text


def test_rollouts_can_be_narrowed_to_one_state(colleague, fleet):
    text = text_of(colleague.get("/rollouts?state=completed"))
    assert "First models" in text
    assert "Smart home 1.1" not in text


@pytest.mark.parametrize("address", ["/devices/dev_none", "/releases/none", "/rollouts/rol_none"])
def test_what_is_not_there_is_said_in_the_same_frame(colleague, address):
    response = colleague.get(address)
    assert response.status_code == 404
    assert "Back to the list" in response.content.decode()


def test_addresses_that_nobody_made_do_no_harm(colleague, fleet):
    for address in ("/?range=nonsense", "/devices?page=x&status=none", "/rollouts?state=none&page=9"):
        assert colleague.get(address).status_code == 200


def test_what_devices_say_is_never_markup(colleague, fleet):
    device = enrol("<script>alert(1)</script>")
    for address in ("/", "/devices", f"/devices/{device.pk}"):
        assert "<script>alert(1)" not in colleague.get(address).content.decode()


def test_an_event_of_an_unknown_kind_shows_its_own_name(colleague, fleet):
    device = fleet.devices["car-07"]
    DeviceEvent.objects.create(device=device, at=device.created_at, actor=ACTOR, kind="battery_low", detail={"x": 1})
    assert "Battery low" in text_of(colleague.get(f"/devices/{device.pk}"))


def _num_queries(client, address) -> int:
    with CaptureQueriesContext(
        connection,
    ) as captured:
        assert client.get(address).status_code == 200
    return len(captured)


def _grow(fleet, numbers) -> None:
    for number in numbers:
        device = enrol(f"new-{number}", group="homes", tags=("new", "pilot"))
        roll_out(base="socle-demo@1.0.0", adapters=("car", "smart-home@1.0.0"), devices=(device.pk,))
        report(device, UpdateState.FAILED, problem=PROBLEM)
        publish("smart-home", f"2.{number}.0", base=fleet.base)
        publish("socle-demo", f"2.{number}.0")


def test_more_rows_take_no_more_queries(colleague, fleet):
    _grow(fleet, range(1))
    before = {address: _num_queries(colleague, address) for address in addresses(fleet)}
    _grow(fleet, range(1, 6))
    assert {address: _num_queries(colleague, address) for address in before} == before
    assert max(before.values()) <= 20
