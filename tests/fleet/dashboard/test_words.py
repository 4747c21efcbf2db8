"""How values read, each by a table."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.utils import timezone

from fleet.dashboard.looks import LOOKS, look_of
from fleet.dashboard.templatetags.dashboard import ago, ago_words, facts, segments, size
from fleet.devices.queries import DeviceStatus
from fleet.rollouts.states import RolloutState, Step
from registry.models import ReleaseState
from registry.states import PublicationState


@pytest.mark.parametrize(
    ("num_bytes", "words"),
    [
        (None, "–"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (300 << 20, "300 MiB"),
        (12 << 30, "12.0 GiB"),
        (1 << 50, "1024 TiB"),
    ],
)
def test_sizes(num_bytes, words):
    assert size(num_bytes) == words


@pytest.mark.parametrize(
    ("ago_s", "words"),
    [(0, "just now"), (-5, "just now"), (30, "30 s ago"), (300, "5 min ago"), (7200, "2 h ago"), (864_000, "10 d ago")],
)
def test_ages(ago_s, words):
    assert ago_words(timezone.now() - timedelta(seconds=ago_s)) == words


def test_an_age_carries_the_exact_time():
    moment = timezone.now().replace(2026, 3, 1, 12, 30, 5)
    assert 'datetime="2026-03-01T12:30:05+00:00"' in ago(moment)
    assert ago(None) == "never"


def test_a_report_reads_as_lines():
    report = {
        "num_layers": 28,
        "agreement": {"top1": 0.98765, "tied": True},
        "modules": ["q_proj", "o_proj"],
        "none": None,
    }
    assert facts(report) == [
        ("Num layers", "28"),
        ("Agreement top1", "0.9877"),
        ("Agreement tied", "yes"),
        ("Modules", "q_proj, o_proj"),
        ("None", "–"),
    ]


def test_the_parts_of_a_bar_fill_it():
    parts = segments("rollout_device", {"failed": 1, "active": 2, "pending": 0, "updating": 1})
    assert [(part["look"].word, part["x"], part["width"]) for part in parts] == [
        ("Active", "0.000", "50.000"),
        ("Updating", "50.000", "25.000"),
        ("Failed", "75.000", "25.000"),
    ]
    assert segments("rollout_device", {"active": 0}) == []


@pytest.mark.parametrize(
    ("family", "states"),
    [
        ("device", DeviceStatus),
        ("rollout", RolloutState),
        ("rollout_device", Step),
        ("release", ReleaseState),
        ("publication", PublicationState),
    ],
)
def test_each_state_has_a_look_of_its_own(family, states):
    assert set(LOOKS[family]) == {str(state.value) for state in states}


def test_a_state_without_a_look_shows_its_name():
    assert look_of("device", "on_fire").word == "On fire"
