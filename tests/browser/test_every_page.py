"""What holds for every page, in both themes, on a phone and on a desk."""

from __future__ import annotations

import re

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from playwright.sync_api import expect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS = {
    f"{scheme} {width}": {"color_scheme": scheme, "viewport": {"width": width, "height": 800}}
    for scheme in ("light", "dark")
    for width in (360, 1440)
}
OVERFLOW_PX = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def addresses(fleet) -> list[str]:
    failed, fine, rollout = fleet.devices["bedroom-speaker"], fleet.devices["kitchen-panel"], fleet.running
    lists = ["/", "/devices", "/devices?status=failed", "/releases", "/rollouts", "/rollouts/new", "/devices/enrol"]
    details = [f"/devices/{failed.pk}", f"/devices/{fine.pk}", "/releases/smart-home", f"/rollouts/{rollout.pk}"]
    return [*lists, *details, "/devices?search=nobody"]


def serious(page) -> list[str]:
    """Serious and critical findings of axe, in one line each."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['html']}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_pages_fit_and_can_be_read_by_everybody(colleague, fleet, settings):
    page = colleague(**settings)
    for address in addresses(fleet):
        page.goto(address)
        expect(page.locator("[data-state=loading]")).to_have_count(0)
        assert page.evaluate(OVERFLOW_PX) <= 0, address
        assert serious(page) == [], address


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_the_door_fits_and_can_be_read_by_everybody(open_page, fleet, settings):
    page = open_page(**settings)
    page.goto("/login")
    assert page.evaluate(OVERFLOW_PX) <= 0
    assert serious(page) == []


@pytest.mark.parametrize("width", [360, 1440])
def test_an_empty_fleet_fits(open_page, transactional_db, live_server, width):
    User.objects.create_user("ada", password="lovelace", is_staff=True)
    page = open_page(viewport={"width": width, "height": 800})
    page.goto("/login?next=/")
    page.get_by_label("User name").fill("ada")
    page.get_by_label("Password").fill("lovelace")
    page.get_by_role("button", name="Sign in").click()
    for address in ("/", "/devices", "/releases", "/rollouts", "/rollouts/new"):
        page.goto(address)
        expect(page.locator("[data-state=loading]")).to_have_count(0)
        assert page.evaluate(OVERFLOW_PX) <= 0, address
        assert serious(page) == [], address


def test_the_keyboard_reaches_the_content_first(colleague):
    page = colleague()
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the content")
    assert skip.evaluate("link => link === document.activeElement && link.getBoundingClientRect().left >= 0")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("#main$"))
