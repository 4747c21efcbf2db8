from __future__ import annotations

import base64
import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.db import connection
from django.test.utils import CaptureQueriesContext

from edge_agent import protocol
from engine.strict_json import decode
from engine.trust_documents import Policy
from fleet.device_api.views import poll_after_s
from fleet.devices.models import DesiredRecord, Device
from registry.trust.ceremony import read_policy, rotate
from registry.trust.keys import load_key, make_online_key


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
    with time_machine.travel(time.time(), tick=False):
        device.call("GET", "desired", headers={"If-None-Match": etag})  # looks up who signs
        with CaptureQueriesContext(connection) as queries:
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


def test_the_stored_document_is_sent_signed_by_a_key_of_the_policy(enrolled: Any) -> None:
    device = enrolled()
    signed = decode(protocol.SignedDesired, device.call("GET", "desired").content)
    statement = decode(protocol.DesiredStatement, signed.statement.encode())
    assert statement.desired == decode(protocol.DesiredState, bytes(DesiredRecord.objects.get().document))
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(read_policy().desired_keys[signed.keyid]))
    key.verify(base64.b64decode(signed.signature), protocol.desired_signing_input(signed.statement))


def test_a_device_holds_a_statement_that_is_good_for_half_of_its_time_at_least(enrolled: Any, settings: Any) -> None:
    device, half = enrolled(), settings.SOCLE_DESIRED_VALID_S / 2
    start = (int(time.time() / half) + 1) * half  # a period begins
    with time_machine.travel(start, tick=False):
        first = device.call("GET", "desired")
    with time_machine.travel(start + half - 1, tick=False):
        known = {"If-None-Match": first.headers["ETag"]}
        assert device.call("GET", "desired", headers=known).status_code == 304
    assert device.read(first).expires_at_s >= start + half - 1 + half
    with time_machine.travel(start + half, tick=False):
        later = device.call("GET", "desired", headers=known)
    assert device.read(later).expires_at_s >= start + 2 * half


def test_a_new_key_signs_what_is_asked_for_next(enrolled: Any, trusted: Any) -> None:
    device = enrolled()
    first = device.call("GET", "desired")
    rotate(role="desired", new=make_online_key("desired"), keys=[load_key(trusted / "targets.pem", b"words")])
    with time_machine.travel(time.time() + 10):
        second = device.call("GET", "desired", headers={"If-None-Match": first.headers["ETag"]})
    keys = [decode(protocol.SignedDesired, response.content).keyid for response in (first, second)]
    assert keys[0] not in read_policy().desired_keys
    assert keys[1] in read_policy().desired_keys


def test_without_a_ceremony_devices_are_told_nothing(enrolled: Any, settings: Any, tmp_path: Path) -> None:
    device = enrolled()
    settings.SOCLE_TRUST_KEY_DIR = tmp_path
    response = device.call("GET", "desired")
    assert (response.status_code, response.json()["code"]) == (503, "trust_not_ready")


def test_metadata_and_targets_are_served_to_devices_alone(enrolled: Any) -> None:
    device = enrolled()
    for path in ("metadata/1.root.json", "metadata/timestamp.json", "metadata/1.snapshot.json"):
        response = device.call("GET", f"trust/{path}")
        assert (response.status_code, response.json()["signed"]["_type"]) == (200, path.split(".")[-2].split("/")[-1])
        assert device.http.get(f"/device/v1/trust/{path}").status_code == 401
    targets = device.call("GET", "trust/metadata/1.targets.json").json()["signed"]["targets"]
    policy = device.call("GET", f"trust/targets/{targets['policy.json']['hashes']['sha256']}.policy.json")
    assert decode(Policy, policy.content) == read_policy()
    for path in ("metadata/2.root.json", "metadata/x.json", "targets/policy.json", f"targets/{'0' * 64}.policy.json"):
        response = device.call("GET", f"trust/{path}")
        assert (response.status_code, response.json()["code"]) == (404, "no_such_metadata")


def test_an_agent_of_before_a_field_can_read_what_does_not_use_it(enrolled: Any) -> None:
    signed = decode(protocol.SignedDesired, enrolled().call("GET", "desired").content)
    desired = json.loads(signed.statement)["desired"]
    assert desired["limits"] == {}
    assert set(desired) == {"device_id", "revision", "limits", "poll_interval_s", "protocol"}
