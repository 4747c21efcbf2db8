from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse

from fleet.dashboard.urls import urlpatterns

pytestmark = pytest.mark.django_db
DOORS = {"login", "logout"}


def _address(pattern) -> str:
    return reverse(f"dashboard:{pattern.name}", kwargs=dict.fromkeys(pattern.pattern.converters, "speed"))


PAGES = [_address(pattern) for pattern in urlpatterns if pattern.name not in DOORS]


@pytest.fixture
def outsider() -> Client:
    """A signed-in user without any right."""
    client = Client()
    client.force_login(User.objects.create_user("eve", password="dropper"))
    return client


def _try(client: Client, address: str, **headers: str):
    is_command = address.rsplit("/", 1)[-1] in {"start", "pause", "resume", "abort"}
    return (client.post if is_command else client.get)(address, headers=headers)


@pytest.mark.parametrize("address", PAGES)
def test_strangers_are_sent_to_the_door(client, address):
    response = _try(client, address)
    assert (response.status_code, response["Location"]) == (302, f"/login?next={address}")


@pytest.mark.parametrize("address", PAGES)
def test_users_without_the_right_are_sent_to_the_door(outsider, address):
    response = _try(outsider, address)
    assert (response.status_code, response["Location"]) == (302, f"/login?next={address}")


def test_a_poll_after_signing_out_moves_the_whole_page(client):
    response = client.get("/devices?status=failed", headers={"HX-Request": "true"})
    assert response.status_code == 401
    assert response["HX-Redirect"] == "/login?next=/devices%3Fstatus%3Dfailed"


def _sign_in(client: Client, after: str = "", password: str = "lovelace"):
    User.objects.create_user("ada", password="lovelace", is_staff=True)
    return client.post("/login", {"username": "ada", "password": password, "next": after})


@pytest.mark.parametrize(
    ("after", "location"),
    [
        ("", "/"),
        ("/devices?status=failed", "/devices?status=failed"),
        ("https://evil.example/", "/"),
        ("//evil.example/devices", "/"),
        ("javascript:alert(1)", "/"),
    ],
)
def test_signing_in_leads_to_pages_of_ours_only(client, after, location):
    response = _sign_in(client, after)
    assert (response.status_code, response["Location"]) == (302, location)
    assert client.get("/").status_code == 200


def test_a_wrong_password_is_told(client):
    response = _sign_in(client, password="wrong")
    assert response.status_code == 200
    assert "Please enter a correct username and password" in response.content.decode()
    assert client.get("/").status_code == 302


def test_an_account_without_the_right_is_told_at_the_door(client):
    User.objects.create_user("eve", password="dropper")
    response = client.post("/login", {"username": "eve", "password": "dropper"})
    assert "may not see the fleet" in response.content.decode()
    assert "_auth_user_id" not in client.session


def test_signing_out_ends_the_session(colleague):
    assert colleague.get("/logout").status_code == 405
    assert colleague.post("/logout")["Location"] == "/login"
    assert colleague.get("/").status_code == 302


@pytest.mark.parametrize("address", ["/login", "/devices/enrol", "/rollouts/new", "/rollouts/rol_1/abort", "/logout"])
def test_forms_without_their_token_are_refused(colleague, address):
    careful = Client(enforce_csrf_checks=True)
    careful.cookies = colleague.cookies
    assert careful.post(address).status_code == 403


@pytest.mark.parametrize("address", ["/rollouts/rol_1/abort", "/rollouts/rol_1/pause"])
def test_commands_are_never_given_by_a_link(colleague, address):
    assert colleague.get(address).status_code == 405
