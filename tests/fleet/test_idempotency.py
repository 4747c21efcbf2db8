from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.utils import timezone

from fleet.devices.models import DeviceGroup, EnrolmentToken
from fleet.idempotency import actions
from fleet.idempotency.models import IdempotencyRecord

KEY = {"Idempotency-Key": "order-66"}
BODY = {"count": 1}


def test_a_repeat_gets_the_first_answer_and_has_no_second_effect(operator: Any) -> None:
    first = operator.post("/enrolment-tokens", BODY, **KEY)
    again = operator.post("/enrolment-tokens", BODY, **KEY)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.headers["Content-Type"] == first.headers["Content-Type"]
    assert EnrolmentToken.objects.count() == 1


def test_without_a_key_each_request_counts(operator: Any) -> None:
    for _ in range(2):
        operator.post("/enrolment-tokens", BODY)
    assert EnrolmentToken.objects.count() == 2


@pytest.mark.parametrize(("path", "body"), [("/enrolment-tokens", {"count": 2}), ("/groups", BODY)])
def test_the_key_does_not_serve_another_request(operator: Any, path: str, body: Any) -> None:
    operator.post("/enrolment-tokens", BODY, **KEY)
    response = operator.post(path, body, **KEY)
    assert (response.status_code, response.json()["code"]) == (409, "idempotency_key_reused")


def test_two_callers_may_choose_the_same_key(operator_with: Any) -> None:
    for _ in range(2):
        assert operator_with("fleet:write").post("/enrolment-tokens", BODY, **KEY).status_code == 201
    assert EnrolmentToken.objects.count() == 2


def test_a_stranger_learns_nothing_from_a_key(operator: Any, operator_with: Any) -> None:
    operator.post("/enrolment-tokens", BODY, **KEY)
    assert operator_with().post("/enrolment-tokens", BODY, **KEY).status_code == 401


def test_a_refusal_for_what_the_body_says_is_kept_but_not_one_for_who_asks(operator: Any, operator_with: Any) -> None:
    bad = {"group": "later"}
    assert operator.post("/enrolment-tokens", bad, **KEY).status_code == 422
    DeviceGroup.objects.create(name="later")
    assert operator.post("/enrolment-tokens", bad, **KEY).status_code == 422
    reader = operator_with("fleet:read")
    assert reader.post("/enrolment-tokens", BODY, **KEY).status_code == 403
    assert IdempotencyRecord.objects.count() == 1


def test_while_the_first_request_is_at_work_a_repeat_waits(operator: Any) -> None:
    operator.post("/enrolment-tokens", BODY, **KEY)
    IdempotencyRecord.objects.update(status=None)
    response = operator.post("/enrolment-tokens", BODY, **KEY)
    assert (response.status_code, response.json()["code"]) == (409, "idempotency_key_in_use")


def test_a_claim_whose_process_died_is_taken_over(operator: Any) -> None:
    operator.post("/enrolment-tokens", BODY, **KEY)
    IdempotencyRecord.objects.update(status=None, created_at=timezone.now() - timedelta(minutes=3))
    assert operator.post("/enrolment-tokens", BODY, **KEY).status_code == 201


@pytest.mark.parametrize("key", ["", "x" * 201, "with blank"])
def test_bad_keys_are_refused(operator: Any, key: str) -> None:
    response = operator.post("/enrolment-tokens", BODY, **{"Idempotency-Key": key})
    assert (response.status_code, response.json()["code"]) == (400, "malformed_request")


def test_records_are_forgotten_after_a_day(operator: Any) -> None:
    operator.post("/enrolment-tokens", BODY, **KEY)
    assert actions.forget_old() == 0
    with time_machine.travel(timezone.now() + timedelta(days=1, minutes=1)):
        assert actions.forget_old() == 1
