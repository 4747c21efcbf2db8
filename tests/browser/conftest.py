"""A real Chromium against a live server with a small fleet behind it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from django.contrib.auth.models import User
from playwright.sync_api import Browser, Page, sync_playwright

from tests.fleet.dashboard.small_fleet import Fleet

# Playwright keeps an event loop in this thread, and Django would refuse the ORM beside one. Nothing here is async.
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def fleet(transactional_db) -> Fleet:
    User.objects.create_user("ada", password="lovelace", is_staff=True)
    return Fleet.build()


@pytest.fixture
def open_page(browser, live_server) -> Iterator[Callable[..., Page]]:
    """Opens pages with given settings. Whatever one says in its console fails the test, unless it is excused."""
    contexts, complaints = [], []

    def opened(*, excuse: str = "", **settings) -> Page:
        def listen(text: str) -> None:
            if not excuse or excuse not in text:
                complaints.append(text)

        context = browser.new_context(base_url=live_server.url, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda message: message.type in ("error", "warning") and listen(message.text))
        page.on("pageerror", lambda error: listen(str(error)))
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def colleague(open_page, fleet) -> Callable[..., Page]:
    """Opens pages for somebody who has signed in by the form."""

    def signed_in(**settings) -> Page:
        page = open_page(**settings)
        page.goto("/login")
        page.get_by_label("User name").fill("ada")
        page.get_by_label("Password").fill("lovelace")
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("heading", name="Fleet").wait_for()
        return page

    return signed_in
