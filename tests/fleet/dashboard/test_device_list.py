from __future__ import annotations

import csv
import io
import re

from fleet.devices.models import Device
from tests.fleet.dashboard.small_fleet import enrol


def names_in(response) -> set[str]:
    assert response.status_code == 200
    return set(re.findall(r'<th scope="row"><span><a href="/devices/dev_\w+">([^<]+)</a>', response.content.decode()))


def rows_of(response) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(response.content.decode())))


FILTERS = {
    "": {"kitchen-panel", "客厅音箱", "bedroom-speaker", "hallway-hub", "car-07", "car-12", "car-31", "old-tablet"},
    "status=online": {"kitchen-panel", "car-07"},
    "status=updating": {"客厅音箱", "hallway-hub"},
    "status=failed": {"bedroom-speaker"},
    "status=stale": {"car-12"},
    "status=offline": {"car-31"},
    "status=revoked": {"old-tablet"},
    "group=cars": {"car-07", "car-12", "car-31"},
    "tag=pilot": {"kitchen-panel"},
    "search=CAR": {"car-07", "car-12", "car-31"},
    "search=客厅": {"客厅音箱"},
    "search=speaker bed": {"bedroom-speaker"},
    "group=cars&status=online": {"car-07"},
    "group=cars&search=kitchen": set(),
}


def test_the_address_says_which_devices_are_shown(colleague, fleet):
    assert {query: names_in(colleague.get(f"/devices?{query}")) for query in FILTERS} == FILTERS


def test_the_csv_has_the_devices_that_the_list_has(colleague, fleet):
    downloads = {query: rows_of(colleague.get(f"/devices.csv?{query}")) for query in FILTERS}
    assert {query: {row["name"] for row in rows} for query, rows in downloads.items()} == FILTERS


def test_devices_can_be_found_by_what_they_serve(colleague, fleet):
    newest = fleet.base.artifact.releases.model.objects.get(artifact__name="smart-home", version="1.1.0")
    assert names_in(colleague.get(f"/devices?release={newest.digest}")) == {"kitchen-panel"}


def test_the_csv_says_all_that_the_list_says(colleague, fleet):
    [row] = rows_of(colleague.get("/devices.csv?search=kitchen"))
    assert row["status"] == "online"
    assert row["reason"] == "Has what it shall have."
    assert (row["groups"], row["tags"]) == ("homes", "pilot")
    assert (row["base"], row["adapters"]) == ("socle-demo@1.0.0", "car@1.0.0 smart-home@1.1.0")
    assert (row["revision"], row["wanted_revision"]) == ("2", "2")


FORMULAS = ['=HYPERLINK("x")', "+1", "-1", "@SUM(A1)", "\tx"]


def test_a_spreadsheet_runs_nothing_that_a_device_said(colleague):
    device = enrol("plain")
    for formula in FORMULAS:
        Device.objects.filter(pk=device.pk).update(name=formula)
        assert [row["name"] for row in rows_of(colleague.get("/devices.csv"))] == [f"'{formula}"]


def test_filters_survive_in_links_and_in_the_search_form(colleague, fleet):
    page = colleague.get("/devices?status=online&group=cars&search=car&page=3").content.decode()
    assert 'href="/devices.csv?status=online&amp;group=cars&amp;search=car"' in page
    assert 'href="?group=cars&amp;search=car"' in page
    assert '<input type="hidden" name="status" value="online">' in page
    assert re.search(r'<option value="cars" selected>cars \(3\)', page)


def test_long_lists_come_in_pages(colleague):
    key = "k" * 40
    Device.objects.bulk_create(Device(name=f"bulk-{n:03}", public_key=f"{key}{n:04}") for n in range(60))
    first = colleague.get("/devices?search=bulk")
    second = colleague.get("/devices?search=bulk&page=2")
    assert (len(names_in(first)), len(names_in(second))) == (50, 10)
    assert not names_in(first) & names_in(second)
    assert 'href="?search=bulk&amp;page=2"' in first.content.decode()
    assert len(rows_of(colleague.get("/devices.csv?search=bulk"))) == 60


def test_no_match_offers_the_way_back(colleague, fleet):
    assert "No device matches these filters." in colleague.get("/devices?search=nobody").content.decode()
