from __future__ import annotations

import json
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation, ValidationError
from django.http import Http404
from django.test import Client, RequestFactory
from rest_framework import exceptions

from fleet import errors
from registry.errors import ApiError

MEMBERS = {"type", "title", "status", "detail", "code", "hint", "fields"}


def check(response: Any, status: int, code: str) -> dict[str, Any]:
    problem = response.json()
    assert response.headers["Content-Type"] == "application/problem+json"
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert set(problem) == MEMBERS
    return problem


class TeapotError(ApiError):
    status = 418
    code = "teapot"
    title = "A teapot"
    default_hint = "Make tea."


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (TeapotError("short and stout"), 418, "teapot"),
        (exceptions.NotAuthenticated(), 401, "not_authenticated"),
        (exceptions.MethodNotAllowed("PUT"), 405, "method_not_allowed"),
        (exceptions.UnsupportedMediaType("text/plain"), 415, "unsupported_media_type"),
        (exceptions.ParseError(), 400, "parse_error"),
        (Http404(), 404, "not_found"),
        (PermissionDenied(), 403, "permission_denied"),
        (RequestDataTooBig(), 413, "payload_too_large"),
        (ValidationError("wrong"), 400, "malformed_request"),
        (SuspiciousOperation(), 400, "malformed_request"),
    ],
)
def test_every_error_is_a_problem_document(error: Exception, status: int, code: str) -> None:
    response = errors.exception_handler(error, {})
    assert response.status_code == status
    document = json.loads(response.content)
    assert (document["code"], document["status"], set(document)) == (code, status, MEMBERS)


def test_our_own_bugs_are_not_dressed_up() -> None:
    assert errors.exception_handler(ZeroDivisionError(), {}) is None


def test_throttling_says_when_to_come_back() -> None:
    assert errors.exception_handler(exceptions.Throttled(wait=2.3), {}).headers["Retry-After"] == "3"


@pytest.mark.parametrize(("path"), ["/api/v1/nothing", "/device/v1/nothing", "/api/", "/device/v2/enrol"])
def test_paths_for_machines_that_do_not_exist(client: Client, path: str) -> None:
    check(client.get(path), 404, "not_found")


def test_pages_for_people_that_do_not_exist_are_html(client: Client) -> None:
    assert client.get("/nothing").headers["Content-Type"].startswith("text/html")


def test_a_bug_below_the_api_is_a_problem_without_details() -> None:
    response = errors.server_error(RequestFactory().get("/api/v1/devices"))
    assert response.status_code == 500
    assert b"Traceback" not in response.content


def test_a_method_that_a_path_does_not_have(operator: Any) -> None:
    check(operator.send("DELETE", "/devices"), 405, "method_not_allowed")


def test_validation_errors_name_their_fields(operator: Any) -> None:
    problem = check(operator.post("/enrolment-tokens", {"count": 0, "tags": ["ok", "Not OK"]}), 400, "invalid")
    assert set(problem["fields"]) == {"count", "tags.1"}


def test_unknown_fields_are_refused_and_the_known_ones_named(operator: Any) -> None:
    problem = check(operator.post("/groups", {"name": "home", "colour": "red"}), 400, "invalid")
    assert problem["fields"]["colour"] == ["Unknown field. Known are: name, description."]


def test_unknown_query_parameters_are_refused(operator: Any) -> None:
    check(operator.get("/devices", colour="red"), 400, "invalid")


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000, b"[]", b"null", b'"text"'])
def test_bodies_that_are_no_document(operator: Any, body: bytes) -> None:
    response = operator.http.post("/api/v1/groups", body, content_type="application/json")
    assert response.status_code == 400
    assert response.headers["Content-Type"] == "application/problem+json"


def test_a_bad_cursor(operator: Any) -> None:
    assert operator.get("/devices", cursor="nonsense").status_code == 404
    assert operator.get("/devices", cursor="cD1ub3BlLW5vdC1hLWRhdGU=").status_code == 400


def test_a_form_without_its_csrf_token_is_a_page_for_people() -> None:
    response = Client(enforce_csrf_checks=True).post("/admin/login/", {})
    assert response.status_code == 403
    assert response.headers["Content-Type"].startswith("text/html")


def test_the_security_headers(client: Client, db: None) -> None:
    headers = client.get("/admin/login/").headers
    policy = headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_the_api_document_page_runs_under_the_policy(client: Client, db: None) -> None:
    page = client.get("/api/v1/docs").content.decode()
    assert "swagger-ui" in page
    assert "<style" not in page
    assert page.count("<script") == page.count("<script src=")
