from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import time_machine
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.urls import URLPattern, URLResolver, get_resolver
from rest_framework.test import APIClient

from fleet.operators.actions import create_token
from fleet.operators.models import OperatorToken
from fleet.operators.scopes import Scope, grants


def bearer(token: str) -> APIClient:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {token}")
    return client


def test_the_command_prints_a_token_that_works(db: None, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("create_operator_token", "ci", "--scope", "fleet:read")
    secret = capsys.readouterr().out.strip()
    assert secret.startswith("soc_")
    assert bearer(secret).get("/api/v1/devices").status_code == 200
    row = OperatorToken.objects.get()
    assert secret not in str(vars(row))
    assert secret.startswith(row.prefix)


def test_the_command_writes_a_file_that_only_its_owner_reads(db: None, tmp_path: Path) -> None:
    file = tmp_path / "token"
    call_command("create_operator_token", "ci", "--scope", "admin", "--token-file", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    assert bearer(file.read_text().strip()).get("/api/v1/operator-tokens").status_code == 200


def test_a_name_is_given_once(db: None) -> None:
    create_token(name="ci", scopes=["admin"])
    with pytest.raises(CommandError, match="exists"):
        call_command("create_operator_token", "ci", "--scope", "admin")


@pytest.mark.parametrize(
    ("held", "needed", "expected"),
    [
        ({"fleet:read"}, "fleet:read", True),
        ({"fleet:read"}, "fleet:write", False),
        ({"fleet:write"}, "fleet:read", False),
        ({"admin"}, "registry:publish", True),
        (set(), "fleet:read", False),
    ],
)
def test_what_a_scope_grants(held: set[str], needed: str, *, expected: bool) -> None:
    assert grants(held, needed) is expected


def test_a_token_may_do_what_its_scope_says_and_learns_what_it_lacks(db: None) -> None:
    client = bearer(create_token(name="reader", scopes=["fleet:read"])[1])
    assert client.get("/api/v1/devices").status_code == 200
    refused = client.post("/api/v1/groups", {"name": "home"}, format="json")
    assert (refused.status_code, refused.json()["code"]) == (403, "permission_denied")
    assert "fleet:write" in refused.json()["detail"]


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer soc_guess", "Basic dXNlcjpwYXNz", "Bearer \xff"])
def test_strangers_are_asked_for_a_token(db: None, header: str) -> None:
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=header)
    response = client.get("/api/v1/devices")
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_an_expired_or_revoked_token_is_refused(db: None) -> None:
    now = datetime.now(UTC)
    _, expiring = create_token(name="short", scopes=["fleet:read"], expires_at=now + timedelta(hours=1))
    assert bearer(expiring).get("/api/v1/devices").status_code == 200
    with time_machine.travel(now + timedelta(hours=2)):
        assert bearer(expiring).get("/api/v1/devices").status_code == 401
    row, revoked = create_token(name="gone", scopes=["fleet:read"])
    admin = bearer(create_token(name="boss", scopes=["admin"])[1])
    assert admin.post(f"/api/v1/operator-tokens/{row.pk}/revoke").json()["revoked_at"] is not None
    assert bearer(revoked).get("/api/v1/devices").status_code == 401


def test_last_use_is_noted_once_a_minute(db: None) -> None:
    row, secret = create_token(name="ci", scopes=["fleet:read"])
    start = datetime(2030, 1, 1, tzinfo=UTC)
    for after_s, noted_s in ((0, 0), (59, 0), (60, 60)):
        with time_machine.travel(start + timedelta(seconds=after_s), tick=False):
            bearer(secret).get("/api/v1/devices")
        row.refresh_from_db()
        assert row.last_used_at == start + timedelta(seconds=noted_s)


def test_an_admin_makes_lists_and_revokes_tokens(db: None) -> None:
    admin = bearer(create_token(name="boss", scopes=["admin"])[1])
    made = admin.post("/api/v1/operator-tokens", {"name": "ci", "scopes": ["fleet:read"]}, format="json")
    assert made.status_code == 201
    assert bearer(made.json()["token"]).get("/api/v1/devices").status_code == 200
    listed = admin.get("/api/v1/operator-tokens").json()["results"]
    assert [(row["name"], row["created_by"]) for row in listed] == [("ci", "token:boss"), ("boss", "")]
    assert "token" not in listed[0]
    again = admin.post("/api/v1/operator-tokens", {"name": "ci", "scopes": ["fleet:read"]}, format="json")
    assert (again.status_code, again.json()["code"]) == (409, "token_name_taken")
    bad = admin.post("/api/v1/operator-tokens", {"name": "x", "scopes": ["everything"]}, format="json")
    assert bad.status_code == 400


def test_a_token_does_not_revoke_itself(db: None) -> None:
    row, secret = create_token(name="boss", scopes=["admin"])
    assert bearer(secret).post(f"/api/v1/operator-tokens/{row.pk}/revoke").status_code == 403
    assert bearer(secret).post("/api/v1/operator-tokens/999999/revoke").status_code == 404


@pytest.mark.parametrize(("is_staff", "status"), [(True, 201), (False, 403)])
def test_signed_in_staff_may_do_all_and_other_users_nothing(db: None, *, is_staff: bool, status: int) -> None:
    client = APIClient()
    client.force_login(User.objects.create_user("ada", is_staff=is_staff))
    assert client.post("/api/v1/groups", {"name": "home"}, format="json").status_code == status


def test_a_session_needs_its_csrf_token(db: None) -> None:
    client = APIClient(enforce_csrf_checks=True)
    client.force_login(User.objects.create_user("ada", is_staff=True))
    refused = client.post("/api/v1/groups", {"name": "home"}, format="json")
    assert refused.status_code == 403
    assert "CSRF" in refused.json()["detail"]


def api_views() -> list[Any]:
    def walk(resolver: URLResolver, prefix: str = "") -> list[tuple[str, Any]]:
        found = []
        for entry in resolver.url_patterns:
            path = prefix + str(entry.pattern)
            found += [(path, entry.callback)] if isinstance(entry, URLPattern) else walk(entry, path)
        return found

    return [
        (path, callback.view_class)
        for path, callback in walk(get_resolver())
        if path.startswith("api/v1/") and path not in ("api/v1/schema", "api/v1/docs")
    ]


@pytest.mark.parametrize(("path", "view"), api_views())
def test_every_view_names_a_known_scope_for_each_of_its_methods(path: str, view: Any) -> None:
    methods = {method for method in ("GET", "POST", "PUT", "PATCH", "DELETE") if hasattr(view, method.lower())}
    assert methods
    assert methods <= set(view.required_scopes)
    assert set(view.required_scopes.values()) <= set(Scope)
