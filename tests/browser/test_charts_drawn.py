from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.fleet.dashboard.small_fleet import measure

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

COUNT_OF_COLOUR = """async ([figure, colour]) => {
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const drawn = document.querySelector(`[data-src*="/charts/${figure}"] canvas`);
  const copy = Object.assign(document.createElement("canvas"), { width: drawn.width, height: drawn.height + 1 });
  const context = copy.getContext("2d", { willReadFrequently: true });
  context.drawImage(drawn, 0, 1);
  context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(colour);
  context.fillRect(0, 0, 1, 1);
  const { data } = context.getImageData(0, 0, copy.width, copy.height);
  let count = 0;
  for (let at = 4 * copy.width; at < data.length; at += 4)
    if ([0, 1, 2].every((i) => Math.abs(data[at + i] - data[i]) < 8) && data[at + 3] > 200) count++;
  return count;
}"""
"""Pixels of a chart in the colour of a custom property; the copy's first line holds that colour to compare with."""


def wait_until_drawn(page) -> None:
    expect(page.locator("[data-chart][data-state=drawn]")).to_have_count(3)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_are_drawn_in_the_theme_s_colours(colleague, scheme):
    page = colleague(color_scheme=scheme)
    wait_until_drawn(page)
    for figure, num_lines in (("speed", 2), ("ttft", 2), ("memory", 3)):
        for number in range(1, num_lines + 1):
            assert page.evaluate(COUNT_OF_COLOUR, [figure, f"--series-{number}"]) > 100, (figure, number)


def test_a_single_measured_minute_is_seen(colleague, fleet):
    measure(fleet.devices["hallway-hub"], minutes=1)
    page = colleague()
    page.goto(f"/devices/{fleet.devices['hallway-hub'].pk}?range=7d")
    wait_until_drawn(page)
    assert page.evaluate(COUNT_OF_COLOUR, ["memory", "--series-1"]) > 8


def test_a_change_of_theme_redraws(colleague):
    page = colleague(color_scheme="light")
    wait_until_drawn(page)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(COUNT_OF_COLOUR, ["speed", "--series-1"]) > 100


def test_figures_stand_in_a_table_too(colleague):
    page = colleague()
    wait_until_drawn(page)
    chart = page.locator("figure", has=page.get_by_role("heading", name="Decode speed"))
    assert chart.locator(".keys .value").first.inner_text().endswith("tokens/s")
    chart.get_by_text("Figures as a table").click()
    assert chart.get_by_role("columnheader").all_inner_texts() == ["Time", "car, tokens/s", "smart-home, tokens/s"]
    assert chart.get_by_role("row").count() > 55
    speeds = [cell for cell in chart.locator("tbody tr td:last-child").all_inner_texts() if cell != "–"]
    assert len(speeds) > 55
    assert all(150 < float(speed) < 200 for speed in speeds)


def test_the_cursor_reads_off_the_value_below_it(colleague):
    page = colleague()
    wait_until_drawn(page)
    keys = page.locator("figure", has=page.get_by_role("heading", name="Decode speed")).locator(".keys .value").first
    latest = keys.inner_text()
    over = page.locator(".u-over").first
    box = over.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(keys).not_to_have_text(latest)


def test_a_range_is_part_of_the_address(colleague):
    page = colleague()
    wait_until_drawn(page)
    page.get_by_role("navigation", name="Time range").get_by_role("link", name="15 min").click()
    page.wait_for_url("**/?range=15m")
    wait_until_drawn(page)
    assert page.locator("figure tbody").first.locator("tr").count() == 16


def test_a_device_without_figures_shows_what_to_type(colleague, fleet):
    page = colleague()
    page.goto(f"/devices/{fleet.devices['hallway-hub'].pk}")
    expect(page.locator("[data-chart][data-state=empty]")).to_have_count(3)
    expect(page.get_by_text("python -m edge_agent run --state-dir DIR")).to_be_visible()
    assert page.locator("canvas").count() == 0
