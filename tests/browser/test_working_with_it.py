"""What people do: find a device, watch a page change, stop a rollout, be signed out."""

from __future__ import annotations

import re

import pytest
from django.contrib.sessions.models import Session
from playwright.sync_api import expect

from edge_agent.protocol import UpdateState
from tests.fleet.dashboard.small_fleet import report

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def shown_devices(page):
    return page.locator("#results tbody th")


def test_pages_are_a_click_apart(colleague):
    page = colleague()
    for section in ("Devices", "Releases", "Rollouts"):
        page.get_by_role("navigation", name="Main").get_by_role("link", name=section).click()
        expect(page.get_by_role("heading", name=section, exact=True)).to_be_visible()
        expect(page.locator("nav a[aria-current=page]")).to_have_text(section)
    page.get_by_role("link", name="Smart home 1.1").click()
    page.get_by_role("link", name="bedroom-speaker").click()
    expect(page.get_by_text("Revision 2 could not be reached")).to_be_visible()
    page.get_by_role("link", name="smart-home", exact=True).click()
    expect(page.get_by_text("smart-home@stable")).to_be_visible()


def test_typing_narrows_the_list_and_the_address_follows(colleague):
    page = colleague()
    page.goto("/devices")
    expect(shown_devices(page)).to_have_count(8)
    page.get_by_role("searchbox").fill("car")
    expect(shown_devices(page)).to_have_text(["car-31", "car-12", "car-07"])
    expect(page).to_have_url(re.compile(r"/devices\?search=car$"))
    page.get_by_role("link", name=re.compile("^Offline")).click()
    expect(shown_devices(page)).to_have_text(["car-31"])
    expect(page.get_by_role("searchbox")).to_have_value("car")
    page.go_back()
    expect(shown_devices(page)).to_have_count(3)


def test_a_group_narrows_the_list(colleague):
    page = colleague()
    page.goto("/devices")
    page.get_by_role("combobox", name="Group").select_option("homes")
    expect(shown_devices(page)).to_have_count(4)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download 4 as CSV").click()
    assert len(download.value.path().read_text(encoding="utf-8").splitlines()) == 5


def test_the_list_can_be_searched_without_scripts(colleague):
    page = colleague(java_script_enabled=False)
    page.goto("/devices")
    page.get_by_role("searchbox").fill("car")
    page.get_by_role("button", name="Search").click()
    expect(shown_devices(page)).to_have_count(3)


def test_a_page_that_lies_open_follows_the_fleet(colleague, fleet):
    page = colleague()
    page.goto(f"/devices/{fleet.devices['客厅音箱'].pk}")
    expect(page.locator(".sub .badge")).to_have_text("Updating")
    page.locator("canvas").first.wait_for()
    page.evaluate("document.querySelector('canvas').dataset.mine = 'kept'")
    report(fleet.devices["客厅音箱"], UpdateState.COMMITTED, arrived=True)
    expect(page.locator(".sub .badge")).to_have_text("Online", timeout=15_000)
    expect(page.locator("[data-fresh]")).to_have_text(re.compile("updated"))
    assert page.locator("canvas").first.get_attribute("data-mine") == "kept"


def test_the_list_is_refreshed_as_it_was_narrowed(colleague, fleet):
    page = colleague()
    page.goto("/devices")
    page.get_by_role("searchbox").fill("speaker")
    expect(shown_devices(page)).to_have_count(1)
    report(fleet.devices["bedroom-speaker"], UpdateState.COMMITTED, arrived=True)
    expect(page.locator("#results .badge")).to_have_text("Online", timeout=15_000)
    expect(shown_devices(page)).to_have_count(1)


def test_aborting_asks_first_and_names_what_it_touches(colleague, fleet):
    page = colleague()
    page.goto(f"/rollouts/{fleet.running.pk}")
    page.get_by_role("button", name="Abort rollout …").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text("3 devices go back to what they had; 1 that is active keeps")).to_be_visible()
    dialog.get_by_role("button", name="Keep it").click()
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name="Abort rollout …").click()
    dialog.get_by_role("button", name="Abort rollout", exact=True).click()
    expect(page.get_by_text("Smart home 1.1 was told to abort.")).to_be_visible()
    expect(page.locator(".sub .badge")).to_have_text("Aborted")


def test_a_rollout_is_planned_by_ticking_boxes(colleague):
    page = colleague()
    page.goto("/rollouts/new")
    page.get_by_label("Name").fill("Cars first")
    page.get_by_label("smart-home@1.1.0").check()
    page.get_by_label("cars").check()
    page.get_by_role("button", name="Start the rollout").click()
    expect(page.get_by_role("heading", name="Cars first")).to_be_visible()
    expect(page.locator(".sub .badge")).to_have_text("Running")


def test_signed_out_elsewhere_leads_back_to_the_door(colleague):
    page = colleague(excuse="401")
    page.goto("/devices?status=failed")
    Session.objects.all().delete()
    expect(page).to_have_url(re.compile(r"/login\?next="), timeout=15_000)
    page.get_by_label("User name").fill("ada")
    page.get_by_label("Password").fill("lovelace")
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(re.compile(r"/devices\?status=failed$"))
