from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.db import connection
from django.test.utils import CaptureQueriesContext

from fleet.device_api.views import poll_after_s
from fleet.devices.models import DesiredRecord, Device


def test_a_new_device_shall_have_nothing_yet(enrolled: Any) -> None:
    wanted = enrolled().desired()
    assert (wanted.revision, wanted.base, wanted.adapters) == (0, None, ())


def test_a_poll_with_the_known_etag_is_a_304(enrolled: Any) -> None:
    device = enrolled()
    first = device.call("GET", "desired")
    again = device.call("GET", "desired", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["ETag"] == first.headers["ETag"]
    assert device.call("GET", "desired", headers={"If-None-Match": '"other"'}).status_code == 200


def test_the_etag_changes_with_the_document(enrolled: Any, operator: Any, publish: Any) -> None:
    device = enrolled()
    before = device.call("GET", "desired").headers["ETag"]
    publish("tiny@1.0.0")
    operator.post("/rollouts", {"base": "tiny@1.0.0", "devices": [device.device_id]})
    after = device.call("GET", "desired", headers={"If-None-Match": before})
    assert after.status_code == 200
    assert after.headers["ETag"] != before


def test_each_answer_says_when_to_poll_next(enrolled: Any, settings: Any) -> None:
    settings.SOCLE_POLL_INTERVAL_S = 10.0
    device = enrolled()
    first = device.call("GET", "desired")
    again = device.call("GET", "desired", headers={"If-None-Match": first.headers["ETag"]})
    for response in (first, again):
        assert 8 <= float(response.headers["Socle-Poll-After"]) <= 12


def test_the_interval_has_a_jitter_of_a_fifth(settings: Any) -> None:
    settings.SOCLE_POLL_INTERVAL_S = 100.0
    drawn = [poll_after_s() for _ in range(2000)]
    assert min(drawn) >= 80
    assert max(drawn) <= 120
    assert max(drawn) - min(drawn) > 30


def test_a_poll_that_changes_nothing_is_one_read(enrolled: Any) -> None:
    device = enrolled()
    etag = device.call("GET", "desired").headers["ETag"]
    with CaptureQueriesContext(
        connection,
    ) as queries:
        assert device.call("GET", "desired", headers={"If-None-Match": etag}).status_code == 304
    assert [query["sql"].split()[0] for query in queries] == ["SELECT"]


def test_last_seen_is_written_once_a_minute(enrolled: Any) -> None:
    device = enrolled()

    def seen() -> Any:
        device.call("GET", "desired")
        return Device.objects.get().last_seen_at

    enrolled_at = Device.objects.get().last_seen_at
    with time_machine.travel(enrolled_at + timedelta(seconds=59), tick=False):
        assert seen() == enrolled_at
    with time_machine.travel(enrolled_at + timedelta(seconds=61), tick=False):
        assert seen() == enrolled_at + timedelta(seconds=61)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_other_methods_are_refused(enrolled: Any, method: str) -> None:
    response = enrolled().call(method, "desired")
    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
    assert response.headers["Allow"] == "GET"


def test_the_document_is_stored_as_it_is_sent(enrolled: Any) -> None:
    device = enrolled()
    assert device.call("GET", "desired").content == bytes(DesiredRecord.objects.get().document)
