from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from fleet.devices.models import DeviceEvent
from fleet.rollouts import actions, handout, queries
from fleet.rollouts.models import RolloutDevice
from fleet.rollouts.tasks import tick_rollouts
from registry.models import ReleaseState
from registry.trust.ceremony import revoke_release
from registry.trust.keys import load_key
from tests.fleet.conftest import sign


@pytest.fixture
def base(publish: Any) -> Any:
    return publish("tiny@1.0.0")


@pytest.fixture
def home(publish: Any, base: Any) -> Any:
    return publish("home@1.0.0", base=base)


@pytest.fixture
def fleet(enrolled: Any) -> list[Any]:
    return [enrolled(f"device {number}", group="home") for number in range(3)]


def roll_out(operator: Any, **body: Any) -> dict[str, Any]:
    response = operator.post("/rollouts", body)
    assert response.status_code == 201, response.content
    return response.json()


def look(operator: Any, rollout: dict[str, Any]) -> dict[str, Any]:
    return operator.get(f"/rollouts/{rollout['id']}").json()


def counts(operator: Any, rollout: dict[str, Any]) -> dict[str, int]:
    return {step: num for step, num in look(operator, rollout)["counts"].items() if num}


def settle(device: Any) -> None:
    assert device.commits(device.desired()).status_code == 204


def test_the_whole_walk(operator: Any, fleet: Any, base: Any, home: Any) -> None:
    rollout = roll_out(operator, name="first", base="tiny@1.0.0", adapters=["home@1.0.0"], groups=["home"])
    assert (rollout["state"], rollout["counts"]["pending"]) == ("running", 3)
    wanted = fleet[0].desired()
    assert (wanted.revision, wanted.base.digest, [a.name for a in wanted.adapters]) == (1, base.digest, ["home"])
    assert wanted.base.size_bytes == base.size_bytes
    fleet[0].works_on(wanted)
    assert counts(operator, rollout) == {"updating": 1, "pending": 2}
    fleet[0].commits(wanted)
    fleet[1].fails(fleet[1].desired())
    assert counts(operator, rollout) == {"active": 1, "failed": 1, "pending": 1}
    assert look(operator, rollout)["state"] == "running"
    settle(fleet[2])
    ended = look(operator, rollout)
    assert (ended["state"], ended["counts"]["active"]) == ("completed", 2)
    assert ended["finished_at"] is not None
    assert [(row["device_name"], row["state"], row["reason"]) for row in ended["devices"]] == [
        ("device 1", "failed", "probe_failed"),
        ("device 0", "active", ""),
        ("device 2", "active", ""),
    ]


def test_a_device_that_fails_and_then_gets_there_is_believed(operator: Any, enrolled: Any, base: Any) -> None:
    device = enrolled()
    rollout = roll_out(operator, base="tiny", devices=[device.device_id])
    device.fails(device.desired(), "download_failed")
    assert look(operator, rollout)["state"] == "failed"
    settle(device)
    assert look(operator, rollout)["state"] == "completed"
    assert counts(operator, rollout) == {"active": 1}


def test_a_report_that_claims_the_revision_with_other_content_fails(
    operator: Any, enrolled: Any, base: Any, home: Any
) -> None:
    device = enrolled()
    rollout = roll_out(operator, base="tiny", adapters=["home"], devices=[device.device_id])
    wanted = device.desired()
    device.report("committed", revision=wanted.revision, target_revision=wanted.revision, base=wanted.base)
    assert look(operator, rollout)["devices"][0]["reason"] == "report_mismatch"


def test_adapters_are_added_and_removed_by_name(
    operator: Any, enrolled: Any, publish: Any, base: Any, home: Any
) -> None:
    device = enrolled()
    publish("car@1.0.0", base=base)
    publish("home@1.1.0", base=base)
    roll_out(operator, base="tiny", adapters=["home@1.0.0", "car"], devices=[device.device_id])
    roll_out(operator, adapters=["home@1.1.0"], devices=[device.device_id])
    assert [(a.name, a.version) for a in device.desired().adapters] == [("car", "1.0.0"), ("home", "1.1.0")]
    roll_out(operator, remove=["car"], devices=[device.device_id])
    wanted = device.desired()
    assert ([(a.name, a.version) for a in wanted.adapters], wanted.revision) == ([("home", "1.1.0")], 3)


def test_a_newer_rollout_supersedes_an_older_one_on_its_devices_only(
    operator: Any, fleet: Any, base: Any, home: Any
) -> None:
    older = roll_out(operator, base="tiny", groups=["home"])
    newer = roll_out(operator, adapters=["home"], devices=[fleet[0].device_id])
    assert counts(operator, older) == {"superseded": 1, "pending": 2}
    for device in fleet:
        settle(device)
    assert counts(operator, older) == {"superseded": 1, "active": 2}
    assert counts(operator, newer) == {"active": 1}
    assert {look(operator, rollout)["state"] for rollout in (older, newer)} == {"completed"}


def test_a_late_report_about_an_older_revision_moves_nothing(
    operator: Any, enrolled: Any, base: Any, home: Any
) -> None:
    device = enrolled()
    roll_out(operator, base="tiny", devices=[device.device_id])
    old = device.desired()
    newer = roll_out(operator, adapters=["home"], devices=[device.device_id])
    device.commits(old)
    device.fails(old)
    assert counts(operator, newer) == {"pending": 1}


def test_what_a_device_has_already_is_skipped(operator: Any, enrolled: Any, base: Any) -> None:
    device = enrolled()
    roll_out(operator, base="tiny", devices=[device.device_id])
    again = roll_out(operator, base="tiny", devices=[device.device_id])
    assert look(operator, again)["devices"][0]["reason"] == "unchanged"
    assert look(operator, again)["state"] == "completed"
    assert device.desired().revision == 1


def test_a_draft_waits_for_start(operator: Any, enrolled: Any, base: Any) -> None:
    device = enrolled()
    rollout = roll_out(operator, base="tiny", devices=[device.device_id], start=False)
    assert rollout["state"] == "draft"
    tick_rollouts()
    assert device.desired().revision == 0
    assert operator.post(f"/rollouts/{rollout['id']}/start").json()["state"] == "running"
    assert device.desired().revision == 1


def test_pause_takes_the_change_back_from_who_has_not_begun(operator: Any, fleet: Any, base: Any) -> None:
    rollout = roll_out(operator, base="tiny", groups=["home"])
    at_work, waiting, _ = fleet
    at_work.works_on(at_work.desired())
    assert operator.post(f"/rollouts/{rollout['id']}/pause").json()["state"] == "paused"
    assert (waiting.desired().base, waiting.desired().revision) == (None, 2)
    assert at_work.desired().base is not None
    settle(at_work)
    tick_rollouts()
    assert look(operator, rollout)["state"] == "paused"
    assert counts(operator, rollout) == {"active": 1, "pending": 2}
    operator.post(f"/rollouts/{rollout['id']}/resume")
    assert (waiting.desired().base.name, waiting.desired().revision) == ("tiny", 3)
    for device in fleet[1:]:
        settle(device)
    assert look(operator, rollout)["state"] == "completed"


def test_abort_gives_back_what_was_there_but_not_to_who_is_active(
    operator: Any, fleet: Any, publish: Any, base: Any, home: Any
) -> None:
    roll_out(operator, base="tiny", adapters=["home"], groups=["home"])
    for device in fleet:
        settle(device)
    publish("home@2.0.0", base=base)
    rollout = roll_out(operator, adapters=["home@2.0.0"], groups=["home"])
    active, failed, waiting = fleet
    settle(active)
    failed.fails(failed.desired())
    assert operator.post(f"/rollouts/{rollout['id']}/abort").json()["state"] == "aborted"
    assert [device.desired().adapters[0].version for device in fleet] == ["2.0.0", "1.0.0", "1.0.0"]
    assert [device.desired().revision for device in fleet] == [2, 3, 3]
    assert counts(operator, rollout) == {"active": 1, "failed": 1, "skipped": 1}
    settle(waiting)
    assert counts(operator, rollout) == {"active": 1, "failed": 1, "skipped": 1}


def test_abort_leaves_alone_what_a_newer_rollout_wrote(operator: Any, enrolled: Any, base: Any, home: Any) -> None:
    device = enrolled()
    older = roll_out(operator, base="tiny", devices=[device.device_id])
    roll_out(operator, adapters=["home"], devices=[device.device_id])
    operator.post(f"/rollouts/{older['id']}/abort")
    assert [a.name for a in device.desired().adapters] == ["home"]


def test_a_rollout_that_failed_owns_nothing_once_a_newer_one_came(
    operator: Any, enrolled: Any, publish: Any, base: Any
) -> None:
    publish("tiny@2.0.0")
    device = enrolled()
    failed = roll_out(operator, base="tiny@2.0.0", devices=[device.device_id])
    device.fails(device.desired())
    newer = roll_out(operator, base="tiny@1.0.0", devices=[device.device_id])
    assert operator.post(f"/rollouts/{failed['id']}/abort").json()["state"] == "aborted"
    assert (device.desired().base.version, device.desired().revision) == ("1.0.0", 2)
    settle(device)
    assert counts(operator, failed) == {"failed": 1}
    assert counts(operator, newer) == {"active": 1}


@pytest.mark.parametrize(
    ("commands", "status"),
    [
        (["pause", "pause"], 409),
        (["resume"], 409),
        (["start"], 409),
        (["abort", "resume"], 409),
        (["abort", "abort"], 409),
        (["pause", "resume", "pause", "abort"], 200),
    ],
)
def test_commands_in_the_wrong_state_are_refused(
    operator: Any, enrolled: Any, base: Any, commands: list[str], status: int
) -> None:
    rollout = roll_out(operator, base="tiny", devices=[enrolled().device_id])
    responses = [operator.post(f"/rollouts/{rollout['id']}/{command}") for command in commands]
    assert responses[-1].status_code == status
    if status == 409:
        assert responses[-1].json()["code"] == "rollout_state"


def test_a_revoked_device_does_not_keep_a_rollout_open(operator: Any, fleet: Any, base: Any) -> None:
    rollout = roll_out(operator, base="tiny", groups=["home"])
    for device in fleet[:2]:
        settle(device)
    operator.post(f"/devices/{fleet[2].device_id}/revoke")
    tick_rollouts()
    assert look(operator, rollout)["state"] == "completed"
    assert counts(operator, rollout) == {"active": 2, "skipped": 1}


@pytest.mark.parametrize(
    ("body", "code", "item"),
    [
        ({"adapters": ["home@9.9.9"]}, "release_not_found", "home@9.9.9"),
        ({"base": "home"}, "release_not_found", "home"),
        ({"adapters": ["old@1.0.0"]}, "release_yanked", "old@1.0.0"),
        ({"adapters": ["home"], "groups": ["nobody"]}, "unknown_group", "nobody"),
        ({"adapters": ["home"], "devices": ["dev_x"]}, "unknown_device", "dev_x"),
        ({"adapters": ["home"], "groups": ["empty"]}, "empty_target", ""),
        ({"adapters": ["home"], "groups": []}, "empty_target", ""),
        ({"adapters": ["home", "home@1.0.0"]}, "duplicate_adapter", "home"),
        ({}, "empty_change", ""),
        ({"adapters": ["foreign"]}, "wrong_base", "foreign@1.0.0"),
        ({"base": "other"}, "adapter_left_behind", "home@1.0.0"),
    ],
)
def test_what_can_not_be_carried_out_is_refused_with_a_list(  # noqa: PLR0917 - fixtures
    operator: Any, enrolled: Any, publish: Any, base: Any, home: Any, body: dict[str, Any], code: str, item: str
) -> None:
    device = enrolled(group="home")
    other = publish("other@1.0.0")
    publish("foreign@1.0.0", base=other)
    old = publish("old@1.0.0", base=base)
    old.state = ReleaseState.YANKED
    old.save()
    operator.post("/groups", {"name": "empty"})
    roll_out(operator, base="tiny", adapters=["home"], groups=["home"])
    response = operator.post("/rollouts", {"groups": ["home"]} | body)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, code)
    assert [(conflict["code"], conflict["item"]) for conflict in problem["fields"]["conflicts"]] == [(code, item)]
    assert problem["hint"]
    assert device.desired().revision == 1


def revoke(release: Any, keys: Path) -> None:
    revoke_release(release=release, keys=[load_key(keys / "targets.pem", b"words")])


def refusal(operator: Any, **body: Any) -> tuple[str, str]:
    """Code and hint of the one conflict for which a rollout is refused."""
    response = operator.post("/rollouts", body)
    assert response.status_code == 422, response.content
    [conflict] = response.json()["fields"]["conflicts"]
    return conflict["code"], conflict["hint"]


def test_what_no_publisher_has_signed_is_refused_until_it_is_signed(
    operator: Any, enrolled: Any, publish: Any, trusted: Path
) -> None:
    device, release = enrolled(), publish("tiny@1.0.0", is_signed=False)
    code, hint = refusal(operator, base="tiny", devices=[device.device_id])
    assert code == "release_not_signed"
    assert "`manage.py trust sign tiny@1.0.0 --publisher NAME --key FILE`" in hint
    sign(release, trusted)
    assert roll_out(operator, base="tiny", devices=[device.device_id])["state"] == "running"


def test_a_revoked_release_is_refused_also_if_the_device_has_it_already(
    operator: Any, enrolled: Any, publish: Any, base: Any, home: Any, trusted: Path
) -> None:
    device = enrolled()
    publish("car@1.0.0", base=base)
    roll_out(operator, base="tiny", adapters=["home"], devices=[device.device_id])
    revoke(home, trusted)
    assert refusal(operator, adapters=["home"], devices=[device.device_id])[0] == "release_revoked"
    code, hint = refusal(operator, adapters=["car"], devices=[device.device_id])
    assert (code, hint) == ("release_revoked", "Name another version of home, or list home in remove.")
    roll_out(operator, adapters=["car"], remove=["home"], devices=[device.device_id])
    assert [adapter.name for adapter in device.desired().adapters] == ["car"]


def test_a_running_rollout_stops_handing_a_revoked_release_out(
    operator: Any, fleet: Any, base: Any, trusted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handout, "BATCH_SIZE", 1)
    rollout = roll_out(operator, base="tiny", groups=["home"], start=False)
    actions.command(rollout=queries.get_rollout(rollout["id"]), command=actions.Command.START, actor="tests")
    handout.hand_out_batch(rollout["id"])
    revoke(base, trusted)
    tick_rollouts()
    assert sorted(device.desired().revision for device in fleet) == [0, 0, 1]
    rows = look(operator, rollout)["devices"]
    assert [(row["state"], row["reason"]) for row in rows if row["state"] != "pending"] == [
        ("skipped", "release_revoked")
    ] * 2


def test_the_metadata_is_read_once_for_all_releases(operator: Any, enrolled: Any, publish: Any, base: Any) -> None:
    device = enrolled()
    names = [publish(f"adapter-{number}@1.0.0", base=base).name for number in range(4)]
    with CaptureQueriesContext(connection) as captured:
        roll_out(operator, base="tiny", adapters=names, devices=[device.device_id], start=False)
    assert len([query for query in captured if "registry_trustmetadata" in query["sql"].lower()]) == 3


def test_several_obstacles_are_named_at_once(operator: Any, enrolled: Any, base: Any) -> None:
    response = operator.post("/rollouts", {"adapters": ["a", "b@1.0.0"], "devices": [enrolled().device_id]})
    assert [conflict["item"] for conflict in response.json()["fields"]["conflicts"]] == ["a", "b@1.0.0"]


def test_an_adapter_for_a_device_without_a_base_names_the_way_out(operator: Any, enrolled: Any, home: Any) -> None:
    response = operator.post("/rollouts", {"adapters": ["home"], "devices": [enrolled().device_id]})
    assert (response.status_code, response.json()["code"]) == (422, "no_base")
    assert "same rollout" in response.json()["hint"]


def test_a_change_that_stopped_fitting_meanwhile_is_skipped_with_the_reason(
    operator: Any, enrolled: Any, publish: Any, base: Any, home: Any
) -> None:
    device = enrolled()
    roll_out(operator, base="tiny", devices=[device.device_id])
    draft = roll_out(operator, adapters=["home"], devices=[device.device_id], start=False)
    publish("other@1.0.0")
    roll_out(operator, base="other", devices=[device.device_id])
    operator.post(f"/rollouts/{draft['id']}/start")
    assert look(operator, draft)["devices"][0]["reason"] == "wrong_base"
    assert device.desired().base.name == "other"


def test_targets_are_groups_tags_and_devices_together(operator: Any, enrolled: Any, base: Any) -> None:
    grouped, tagged, named = enrolled("g", group="home"), enrolled("t", tags=("pilot",)), enrolled("n")
    enrolled("nobody")
    rollout = roll_out(operator, base="tiny", groups=["home"], tags=["pilot"], devices=[named.device_id])
    assert {row["device_id"] for row in rollout["devices"]} == {d.device_id for d in (grouped, tagged, named)}


def test_a_lost_message_is_made_good_by_the_tick(operator: Any, enrolled: Any, base: Any) -> None:
    device = enrolled()
    with operator.run_on_commit():  # and nothing of it is executed
        rollout = operator.http.post("/api/v1/rollouts", {"base": "tiny", "devices": [device.device_id]}).json()
    assert device.desired().revision == 0
    tick_rollouts()
    assert device.desired().revision == 1
    tick_rollouts()
    assert device.desired().revision == 1
    assert counts(operator, rollout) == {"pending": 1}


def test_devices_are_handed_their_documents_in_batches(
    operator: Any, fleet: Any, base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handout, "BATCH_SIZE", 2)
    draft = roll_out(operator, base="tiny", groups=["home"], start=False)
    rollout = queries.get_rollout(draft["id"])
    actions.command(rollout=rollout, command=actions.Command.START, actor="tests")
    assert [handout.hand_out_batch(rollout.pk) for _ in range(3)] == [2, 1, 0]
    assert {device.desired().revision for device in fleet} == {1}


def test_the_timeline_tells_who_did_what(operator: Any, enrolled: Any, base: Any) -> None:
    device = enrolled()
    rollout = roll_out(operator, base="tiny", devices=[device.device_id])
    settle(device)
    told = list(DeviceEvent.objects.order_by("pk").values_list("actor", "kind"))
    assert [kind for _, kind in told] == [
        "enrolled",
        "rollout_start",
        "rollout_handed_out",
        "update_committed",
        "rollout_active",
    ]
    assert told[1][0].startswith("token:operator")
    assert DeviceEvent.objects.get(kind="rollout_active").detail["rollout"] == rollout["id"]


def test_strangers_and_readers_start_nothing(operator_with: Any, enrolled: Any, base: Any) -> None:
    body = {"base": "tiny", "devices": [enrolled().device_id]}
    assert operator_with().post("/rollouts", body).status_code == 401
    assert operator_with("fleet:read").post("/rollouts", body).status_code == 403
    assert operator_with("telemetry:read").get("/rollouts").status_code == 403
    assert not RolloutDevice.objects.exists()


def test_lists_take_a_fixed_number_of_queries(operator: Any, fleet: Any, base: Any, home: Any) -> None:
    def num_queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert operator.get("/rollouts").status_code == 200
        return len(captured)

    roll_out(operator, base="tiny", adapters=["home"], groups=["home"])
    first = num_queries()
    for device in fleet:
        roll_out(operator, remove=["home"], devices=[device.device_id])
    assert num_queries() == first


def test_a_rollouts_devices_come_in_pages_and_by_state(operator: Any, fleet: Any, base: Any) -> None:
    rollout = roll_out(operator, base="tiny", groups=["home"])
    settle(fleet[0])
    page = operator.get(f"/rollouts/{rollout['id']}/devices", limit=1).json()
    assert len(page["results"]) == 1
    assert page["next"]
    pending = operator.get(f"/rollouts/{rollout['id']}/devices", state="pending").json()["results"]
    assert {row["device_name"] for row in pending} == {"device 1", "device 2"}
    assert operator.get("/rollouts", state="running").json()["results"][0]["id"] == rollout["id"]
    assert operator.get("/rollouts", state="failed").json()["results"] == []
    assert operator.get("/rollouts/rol_nobody").status_code == 404
