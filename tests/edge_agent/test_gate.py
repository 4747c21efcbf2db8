from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from edge_agent.config import load_config
from edge_agent.errors import UserError
from edge_agent.gate import Gate
from edge_agent.protocol import Window

NIGHT = "22:00-06:00 Europe/Berlin"  # in winter an hour ahead of UTC, in summer two


@pytest.mark.parametrize(
    ("window", "now", "reason"),
    [
        (NIGHT, "2026-01-15T20:59", "outside_window"),
        (NIGHT, "2026-01-15T21:00", ""),
        (NIGHT, "2026-01-16T04:59", ""),
        (NIGHT, "2026-01-16T05:00", "outside_window"),
        (NIGHT, "2026-07-15T20:00", ""),
        (NIGHT, "2026-07-15T19:59", "outside_window"),
        ("09:30-17:00 UTC", "2026-01-15T09:29", "outside_window"),
        ("09:30-17:00 UTC", "2026-01-15T09:30", ""),
        ("09:30-17:00 UTC", "2026-01-15T17:00", "outside_window"),
        ("09:30-17:00 Asia/Shanghai", "2026-01-15T02:00", ""),
    ],
)
def test_when_a_window_is_open(window: str, now: str, reason: str) -> None:
    moment = datetime.fromisoformat(now).replace(tzinfo=UTC)
    assert Gate(Window.parse(window), now=lambda: moment).reason == reason


@pytest.mark.parametrize(
    ("own", "fleets", "reason"),
    [
        (None, [], ""),
        (None, ["09:00-11:00 UTC"], ""),
        (None, ["11:00-12:00 UTC"], "outside_window"),
        ("09:00-11:00 UTC", ["09:30-10:30 UTC"], ""),
        ("11:00-12:00 UTC", ["09:00-11:00 UTC"], "outside_window"),
        ("09:00-11:00 UTC", ["09:00-11:00 UTC", "11:00-12:00 UTC"], "outside_window"),
    ],
)
def test_the_windows_of_device_and_fleet_all_hold(own: str | None, fleets: list[str], reason: str) -> None:
    gate = Gate(Window.parse(own) if own else None, now=lambda: datetime(2026, 1, 15, 10, tzinfo=UTC))
    with gate.within([Window.parse(window) for window in fleets]):
        assert gate.reason == reason
    assert gate.reason == ("" if own != "11:00-12:00 UTC" else "outside_window")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("at night", "is no window"),
        ("22:00-06:00", "is no window"),
        ("25:00-06:00 UTC", "hour|isoformat"),
        ("06:00-06:00 UTC", "is empty"),
        ("22:00-06:00 Europe/Atlantis", "knows no time zone"),
        ("22:00-06:00 ../../etc/passwd", "knows no time zone"),
    ],
)
def test_a_window_that_makes_no_sense(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_config({"download_window": text})


def test_a_window_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOCLE_AGENT_DOWNLOAD_WINDOW", NIGHT)
    assert load_config({}).download_window == Window.parse(NIGHT)


def test_a_pause_shuts_the_gate(tmp_path: Path) -> None:
    gate = Gate(paused=tmp_path / "paused")
    assert gate.reason == ""
    (tmp_path / "paused").touch()
    assert gate.reason == "paused"
