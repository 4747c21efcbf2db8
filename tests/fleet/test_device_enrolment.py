from __future__ import annotations

import base64
import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection

from edge_agent import protocol
from engine.strict_json import decode
from fleet.devices.models import Device, EnrolmentToken
from tests.fleet.device_simulator import DeviceSimulator


def test_an_operator_makes_tokens_and_devices_come_in_with_them(operator: Any) -> None:
    assert operator.post("/groups", {"name": "home"}).status_code == 201
    response = operator.post("/enrolment-tokens", {"count": 2, "group": "home", "tags": ["pilot"]})
    assert response.status_code == 201
    tokens = [row["token"] for row in response.json()["tokens"]]
    assert len(set(tokens)) == 2
    device = DeviceSimulator("kitchen")
    answer = decode(protocol.EnrolResponse, device.enrol(tokens[0]).content)
    row = operator.get(f"/devices/{answer.device_id}").json()
    assert (row["name"], row["groups"], row["tags"], row["state"]) == ("kitchen", ["home"], ["pilot"], "enrolled")
    assert [event["kind"] for event in row["events"]] == ["enrolled"]


def test_a_token_pins_the_root_and_the_device_gets_it(enrolment_token: Any) -> None:
    token = enrolment_token()
    answer = decode(protocol.EnrolResponse, DeviceSimulator().enrol(token).content)
    assert hashlib.sha256(answer.root.encode()).hexdigest() == token.partition(".")[2]


def test_an_unknown_root_is_refused_before_the_token_is_used(enrolment_token: Any) -> None:
    token = enrolment_token()
    assert DeviceSimulator().enrol(token, root_sha256="0" * 64).status_code == 422
    assert DeviceSimulator().enrol(token).status_code == 201


def test_only_the_hash_of_a_token_is_kept(enrolment_token: Any) -> None:
    secret = enrolment_token().partition(".")[0]
    row = EnrolmentToken.objects.get()
    assert secret not in str(vars(row))
    assert secret.startswith(row.prefix)


def test_a_token_lets_one_device_in(enrolment_token: Any) -> None:
    token = enrolment_token()
    assert DeviceSimulator().enrol(token).status_code == 201
    second = DeviceSimulator().enrol(token)
    assert (second.status_code, second.json()["code"]) == (403, "enrolment_token_refused")
    assert Device.objects.count() == 1


def test_a_device_that_lost_the_answer_gets_the_same_id(enrolment_token: Any) -> None:
    token, device = enrolment_token(), DeviceSimulator()
    first = device.enrol(token).json()["device_id"]
    assert device.enrol(token).json()["device_id"] == first
    assert Device.objects.count() == 1


def test_a_known_key_with_a_new_token_is_the_same_device(enrolment_token: Any) -> None:
    device = DeviceSimulator()
    first = device.enrol(enrolment_token()).json()["device_id"]
    assert device.enrol(enrolment_token(tags=("moved",)), name="moved").json()["device_id"] == first
    row = Device.objects.get()
    assert (row.name, row.tags) == ("moved", ["moved"])


def test_a_revoked_device_does_not_come_back_by_enrolling_its_key(operator: Any, enrolment_token: Any) -> None:
    device, token = DeviceSimulator(), enrolment_token()
    device.enrol(token)
    assert operator.post(f"/devices/{device.device_id}/revoke").status_code == 200
    for again in (token, enrolment_token()):
        refused = device.enrol(again)
        assert (refused.status_code, refused.json()["code"]) == (403, "device_revoked")


def test_an_expired_token_lets_nobody_in(enrolment_token: Any) -> None:
    response = DeviceSimulator().enrol(enrolment_token(lifetime=timedelta(seconds=-1)))
    assert (response.status_code, response.json()["code"]) == (403, "enrolment_token_refused")


@pytest.mark.django_db
def test_a_made_up_token_lets_nobody_in() -> None:
    assert DeviceSimulator().enrol("soe_guess").status_code == 403


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"public_key": "not base64!"}, 422),
        ({"public_key": base64.b64encode(b"short").decode()}, 422),
        ({"name": ""}, 422),
        ({"name": "x" * 101}, 422),
        ({"agent_version": "x" * 65}, 422),
        ({"protocol": 2}, 422),
    ],
)
def test_a_bad_introduction_is_refused_and_leaves_the_token_unused(
    enrolment_token: Any, changes: dict[str, Any], status: int
) -> None:
    token = enrolment_token()
    assert DeviceSimulator().enrol(token, **changes).status_code == status
    assert EnrolmentToken.objects.get().used_at is None


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"{", "not JSON"),
        (b"[]", "document"),
        (b'{"token": 1, "name": "n", "public_key": "", "agent_version": "", "hardware": {}}', "token"),
        (b'{"sneaky": 1}', "sneaky"),
        (b'{"token": "\\u0000"}', "NUL"),
        (b"\xff", "not JSON"),
    ],
)
def test_a_body_that_is_no_introduction_is_refused_by_place(db: None, client: Any, body: bytes, place: str) -> None:
    response = client.post("/device/v1/enrol", body, content_type="application/json")
    assert response.status_code == 400
    assert place in response.json()["detail"]
    assert response.headers["Content-Type"] == "application/problem+json"


def test_tokens_for_an_unknown_group_are_refused(operator: Any) -> None:
    response = operator.post("/enrolment-tokens", {"group": "nobody"})
    assert (response.status_code, response.json()["code"]) == (422, "unknown_group")


@pytest.mark.django_db(transaction=True)
def test_of_many_devices_with_one_token_at_once_one_comes_in(enrolment_token: Any) -> None:
    token = enrolment_token()

    def attempt(_: int) -> int:
        try:
            return DeviceSimulator().enrol(token).status_code
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        statuses = sorted(pool.map(attempt, range(4)))
    assert statuses == [201, 403, 403, 403]
    assert Device.objects.count() == 1
