from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import schemathesis
import yaml
from drf_spectacular.drainage import GENERATOR_STATS
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.renderers import OpenApiYamlRenderer
from drf_spectacular.validation import validate_schema
from hypothesis import HealthCheck, given, settings
from schemathesis.core import NOT_SET

COMMITTED = Path(__file__).resolve().parents[2] / "fleet" / "openapi.yaml"
COMMAND = "./dev manage spectacular --validate --fail-on-warn --file fleet/openapi.yaml"


def test_the_document_is_valid_and_made_without_warnings() -> None:
    GENERATOR_STATS.reset()
    document = SchemaGenerator().get_schema(public=True)
    assert not GENERATOR_STATS._warn_cache
    assert not GENERATOR_STATS._error_cache
    validate_schema(document)


def test_the_committed_document_is_up_to_date() -> None:
    served = OpenApiYamlRenderer().render(SchemaGenerator().get_schema(public=True), renderer_context={}).decode()
    assert COMMITTED.read_text(encoding="utf-8") == served, f"The API changed. Type: {COMMAND}"


def test_the_document_is_served(client: Any) -> None:
    response = client.get("/api/v1/schema")
    assert response.status_code == 200
    assert yaml.safe_load(response.content)["info"]["title"] == "Socle"


def test_every_operation_tells_of_problems_and_of_who_may_call() -> None:
    paths = yaml.safe_load(COMMITTED.read_text(encoding="utf-8"))["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():
            assert "application/problem+json" in operation["responses"]["default"]["content"], f"{method} {path}"
            assert {"operatorToken": []} in operation["security"], f"{method} {path}"
            assert (method != "post") or any(
                parameter["name"] == "Idempotency-Key" for parameter in operation["parameters"]
            ), f"{method} {path}"


schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")

OPERATIONS = [
    (method, path)
    for path, operations in yaml.safe_load(COMMITTED.read_text(encoding="utf-8"))["paths"].items()
    for method in operations
]


@pytest.fixture(scope="module")
def described() -> Any:
    return schemathesis.openapi.from_path(COMMITTED)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_nothing_that_anybody_sends_is_a_server_error(
    described: Any, operator_with: Any, django_capture_on_commit_callbacks: Any, method: str, path: str
) -> None:
    http = operator_with("admin").http

    @settings(max_examples=12, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=described[path][method.upper()].as_strategy())
    def attack(case: Any) -> None:
        query = "?" + urlencode(case.query or {}, doseq=True, errors="replace")
        body = getattr(case.body, "data", None)  # of a binary body
        if body is None:
            body = json.dumps(case.body, default=str).encode()
        with django_capture_on_commit_callbacks(execute=True):
            response = http.generic(
                case.method,
                case.formatted_path + query,
                b"" if case.body is NOT_SET else body,
                content_type=case.media_type or "application/json",
                headers={name: str(value) for name, value in (case.headers or {}).items()},
            )
        assert response.status_code < 500
        if response.status_code >= 400 and method != "head":
            assert response.headers["Content-Type"] == "application/problem+json"

    attack()
