"""What the browser is given: nothing inline, and vendor files exactly as their packages had them."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

import pytest

import fleet.dashboard
from tests.fleet.dashboard.test_pages import addresses

ROOT = Path(fleet.dashboard.__file__).parent
VENDOR = ROOT / "static/dashboard/vendor"
TEMPLATES = "".join(path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.html")))
LIBRARIES = ("htmx.min.js", "uplot.iife.min.js", "uplot.min.css")


@pytest.mark.parametrize("name", LIBRARIES)
def test_pages_and_readme_name_the_hash_that_the_file_has(name):
    integrity = "sha384-" + base64.b64encode(hashlib.sha384((VENDOR / name).read_bytes()).digest()).decode()
    assert re.search(rf"vendor/{re.escape(name)}' %}}\" integrity=\"{re.escape(integrity)}\"", TEMPLATES)
    assert integrity in (VENDOR / "README.md").read_text(encoding="utf-8")


def test_nothing_stands_inline(colleague, fleet):
    for address in [*addresses(fleet), "/login"]:
        page = colleague.get(address).content.decode()
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|hx-on", page), address
        assert not re.search(r"<script(?![^>]*\ssrc=)", page), address


def test_the_policy_allows_nothing_inline(client):
    policy = client.get("/login")["Content-Security-Policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy


def test_nothing_comes_from_elsewhere():
    sources = re.findall(r'(?:src|href|action)="(https?:|//)', TEMPLATES)
    styles = (ROOT / "static/dashboard/socle.css").read_text(encoding="utf-8")
    assert sources == []
    assert "url(" not in styles


def test_each_icon_that_a_page_uses_is_drawn(colleague, fleet):
    drawn = set(re.findall(r'<symbol id="(\w+)"', (ROOT / "static/dashboard/icons.svg").read_text(encoding="utf-8")))
    for address in addresses(fleet):
        used = set(re.findall(r"icons\.svg#(\w+)", colleague.get(address).content.decode()))
        assert used <= drawn
