from __future__ import annotations

import re

import pytest

from fleet.devices.models import Device, EnrolmentToken
from fleet.rollouts.models import Rollout
from fleet.rollouts.states import Step
from tests.fleet.dashboard.small_fleet import enrol, publish

pytestmark = pytest.mark.django_db


def page(client, rollout) -> str:
    return client.get(f"/rollouts/{rollout.pk}").content.decode()


def told(response) -> str:
    """What the next page says at its top."""
    return "".join(re.findall(r'<div class="callout[^>]*>.*?<p>(.*?)</p>', response.content.decode(), re.DOTALL))


def test_buttons_name_what_they_touch(colleague, fleet):
    shown = page(colleague, fleet.running)
    assert "1 device that has not begun will wait; 1 device at work goes on." in shown
    assert "3 devices go back to what they had; 1 that is active keeps the new releases." in shown
    assert "Resume rollout" not in shown


def test_a_rollout_is_paused_and_resumed(colleague, fleet):
    colleague.post(f"/rollouts/{fleet.running.pk}/pause")
    fleet.running.refresh_from_db()
    assert fleet.running.state == "paused"
    shown = page(colleague, fleet.running)
    assert "Resume rollout" in shown
    assert "Pause rollout" not in shown
    response = colleague.post(f"/rollouts/{fleet.running.pk}/resume", follow=True)
    fleet.running.refresh_from_db()
    assert fleet.running.state == "running"
    assert told(response) == "Smart home 1.1 was told to resume."


def test_an_aborted_rollout_gives_devices_back_what_they_had(colleague, fleet):
    colleague.post(f"/rollouts/{fleet.running.pk}/abort")
    fleet.running.refresh_from_db()
    assert fleet.running.state == "aborted"
    wanted = Device.objects.get(name="hallway-hub").desired.adapters.get(artifact__name="smart-home")
    assert wanted.version == "1.0.0"
    assert "Control" not in page(colleague, fleet.running)


def test_a_command_that_comes_too_late_is_explained(colleague, fleet):
    response = colleague.post(f"/rollouts/{fleet.done.pk}/pause", follow=True)
    assert "A rollout that is completed can&#x27;t be told to pause." in told(response)


def test_a_command_to_no_rollout_is_not_found(colleague):
    assert colleague.post("/rollouts/rol_none/pause").status_code == 404


def test_a_rollout_is_planned_and_started(colleague, fleet, django_capture_on_commit_callbacks):
    form = {"name": "Car again", "adapters": ["smart-home@1.1.0"], "groups": ["cars"], "remove": "", "tags": ""}
    with django_capture_on_commit_callbacks(execute=True):
        response = colleague.post("/rollouts/new", form)
    made = Rollout.objects.get(name="Car again")
    assert response["Location"] == f"/rollouts/{made.pk}"
    assert (made.state, made.created_by) == ("running", "ada")
    rows = made.rows.filter(state=Step.PENDING).exclude(revision=None)
    assert {row.device.name for row in rows} == {"car-07", "car-12", "car-31"}


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"groups": ["cars"]}, "The rollout changes nothing."),
        ({"adapters": ["car@1.0.0"]}, "The rollout is for no device."),
        ({"remove": "car", "devices": "dev_none"}, "&#x27;dev_none&#x27;"),
        ({"adapters": ["smart-home@1.0.0", "smart-home@1.1.0"], "groups": ["cars"]}, "smart-home is named 2 times."),
        ({"adapters": ["summary@1.0.0"], "groups": ["cars"]}, "summary@1.0.0 is not one of the available choices."),
        ({"remove": "Car!", "groups": ["cars"]}, "Use a-z, 0-9, dash, dot, underscore."),
    ],
)
def test_a_rollout_that_cannot_be_is_explained(colleague, fleet, form, words):
    response = colleague.post("/rollouts/new", form)
    assert response.status_code == 200
    assert words in response.content.decode()
    assert Rollout.objects.count() == 2


def test_a_refused_form_keeps_what_was_typed(colleague, fleet):
    shown = colleague.post("/rollouts/new", {"name": "Mine", "adapters": ["car@1.0.0"]}).content.decode()
    assert 'value="Mine"' in shown
    assert re.search(r'value="car@1\.0\.0"[^>]*checked', shown)


def test_tokens_are_shown_once_and_let_a_device_in(colleague, fleet):
    response = colleague.post("/devices/enrol", {"count": 2, "group": "cars", "tags": "new, fast", "lifetime_s": 3600})
    secrets = re.findall(r"--token (soe_\S+)", response.content.decode())
    assert len(secrets) == 2
    assert "no-store" in response["Cache-Control"]
    token = EnrolmentToken.objects.latest("pk")
    assert (token.group.name, token.tags, token.created_by) == ("cars", ["fast", "new"], "ada")
    assert not any(secret in colleague.get("/devices/enrol").content.decode() for secret in secrets)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"count": 101}, {"group": "none"}, {"tags": "a b!"}])
def test_no_token_is_made_of_a_wrong_order(colleague, fleet, wrong):
    before = EnrolmentToken.objects.count()
    response = colleague.post("/devices/enrol", {"count": 1, "group": "", "tags": "", "lifetime_s": 3600} | wrong)
    assert 'class="error"' in response.content.decode()
    assert EnrolmentToken.objects.count() == before


def test_used_tokens_name_their_device(colleague):
    device = enrol("kitchen")
    assert f'used by <a href="/devices/{device.pk}">kitchen</a>' in colleague.get("/devices/enrol").content.decode()


def test_a_release_that_nobody_has_signed_is_explained(colleague, trusted):
    publish("unsigned-base", "1.0.0")
    enrol("kitchen", tags=("pilot",))
    shown = colleague.post("/rollouts/new", {"base": "unsigned-base@1.0.0", "tags": "pilot"}).content.decode()
    assert "No publisher has signed unsigned-base@1.0.0, so no device takes it." in shown
    assert "`manage.py trust sign unsigned-base@1.0.0 --publisher NAME --key FILE`" in shown
    assert not Rollout.objects.exists()
