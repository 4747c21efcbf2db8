from __future__ import annotations

import time
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.test import Client

from engine.strict_json import encode
from fleet.devices.models import Device

NONCE = "ab" * 16


def code_of(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


def test_a_signed_request_is_answered(enrolled: Any) -> None:
    assert enrolled().call("GET", "desired").status_code == 200


@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        ({"key": Ed25519PrivateKey.generate()}, "bad_signature"),
        ({"signed_body": b"another"}, "bad_signature"),
        ({"timestamp_s": int(time.time()) - 3600}, "clock_skew"),
        ({"timestamp_s": int(time.time()) + 3600}, "clock_skew"),
        ({"device_id": "dev_" + "0" * 16}, "unknown_device"),
        ({"device_id": "' OR 1=1"}, "unsigned_request"),
        ({"nonce": "short"}, "unsigned_request"),
        ({"nonce": "zz" * 16}, "unsigned_request"),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("GET", "desired"), ("POST", "report"), ("GET", "files/" + "0" * 64)])
def test_what_is_not_proven_is_refused(enrolled: Any, overrides: Any, code: str, method: str, path: str) -> None:
    response = enrolled().call(method, path, **overrides)
    assert code_of(response) == (401, code)
    assert response.headers["WWW-Authenticate"] == "Socle-Signature"


@pytest.mark.parametrize("missing", ["Socle-Device", "Socle-Timestamp", "Socle-Nonce", "Socle-Signature"])
def test_each_header_is_needed(enrolled: Any, missing: str) -> None:
    device = enrolled()
    headers = device.signature("GET", "/device/v1/desired")
    headers.pop(missing)
    assert code_of(Client().get("/device/v1/desired", headers=headers)) == (401, "unsigned_request")


@pytest.mark.parametrize(
    ("method", "target"),
    [("GET", "/device/v1/desired?x=1"), ("POST", "/device/v1/report"), ("GET", "/device/v1/desired/")],
)
def test_a_signature_counts_for_one_method_and_target_only(enrolled: Any, method: str, target: str) -> None:
    headers = enrolled().signature(method, target)
    assert code_of(Client().get("/device/v1/desired", headers=headers)) == (401, "bad_signature")


def test_the_query_is_signed_as_it_is_sent(enrolled: Any) -> None:
    headers = enrolled().signature("GET", "/device/v1/desired?a=%20b&c")
    assert Client().get("/device/v1/desired?a=%20b&c", headers=headers).status_code == 200


def test_a_device_does_not_speak_with_the_key_of_another(enrolled: Any) -> None:
    mine, theirs = enrolled("mine"), enrolled("theirs")
    assert code_of(mine.call("GET", "desired", device_id=theirs.device_id)) == (401, "bad_signature")


def test_a_body_about_another_device_is_refused(enrolled: Any) -> None:
    mine, theirs = enrolled("mine"), enrolled("theirs")
    body = encode(theirs.report_of("idle"))
    assert code_of(mine.call("POST", "report", body)) == (403, "wrong_device")
    assert Device.objects.get(pk=theirs.device_id).report is None


@pytest.mark.parametrize(("method", "path"), [("GET", "desired"), ("POST", "report")])
def test_a_nonce_counts_once(enrolled: Any, method: str, path: str) -> None:
    device = enrolled()
    body = encode(device.report_of("idle")) if method == "POST" else b""
    assert device.call(method, path, body, nonce=NONCE).status_code < 300
    assert code_of(device.call(method, path, body, nonce=NONCE)) == (401, "replayed_request")


def test_two_devices_may_choose_the_same_nonce(enrolled: Any) -> None:
    for device in (enrolled("one"), enrolled("two")):
        assert device.call("POST", "report", encode(device.report_of("idle")), nonce=NONCE).status_code == 204


def test_a_stranger_does_not_use_up_a_nonce(enrolled: Any) -> None:
    device = enrolled()
    body = encode(device.report_of("idle"))
    stranger = Ed25519PrivateKey.generate()
    assert code_of(device.call("POST", "report", body, nonce=NONCE, key=stranger)) == (401, "bad_signature")
    assert device.call("POST", "report", body, nonce=NONCE).status_code == 204


def test_a_revoked_device_is_told_so(operator: Any, enrolled: Any) -> None:
    device = enrolled()
    operator.post(f"/devices/{device.device_id}/revoke")
    for method, path in (("GET", "desired"), ("POST", "report"), ("POST", "telemetry")):
        assert code_of(device.call(method, path)) == (403, "device_revoked")


def test_an_operators_token_opens_nothing_for_devices(operator: Any) -> None:
    assert operator.http.get("/device/v1/desired").status_code == 401
