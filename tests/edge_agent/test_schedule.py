from __future__ import annotations

import pytest

from edge_agent.errors import FinalError, UnavailableError
from edge_agent.schedule import Backoff, PollSchedule, jittered_s


def test_delays_double_up_to_the_longest_and_spread() -> None:
    backoff = Backoff(1.0, 60.0)
    for failures, longest_s in ((1, 1), (2, 2), (5, 16), (7, 60), (1000, 60)):
        delays = [backoff.delay_s(failures) for _ in range(200)]
        assert longest_s / 2 <= min(delays) < 0.7 * longest_s
        assert 0.8 * longest_s < max(delays) <= longest_s


def test_the_servers_word_is_the_least() -> None:
    assert Backoff(1.0, 2.0).delay_s(1, retry_after_s=500.0) == 500.0


def test_intervals_are_spread_around_what_was_asked_for() -> None:
    intervals = [jittered_s(100.0) for _ in range(500)]
    assert 90 <= min(intervals) < 95
    assert 105 < max(intervals) <= 110


def test_polls_follow_the_server_and_slow_down_while_it_is_away() -> None:
    schedule = PollSchedule(60.0, longest_s=300.0)
    assert 90 <= schedule.succeeded(100.0) <= 110
    assert 90 <= schedule.succeeded(None) <= 110
    delays = [schedule.failed(UnavailableError("down")) for _ in range(10)]
    assert 50 <= delays[0] <= 100
    assert 150 <= delays[-1] <= 300
    assert schedule.failed(UnavailableError("down", retry_after_s=1000.0)) == 1000.0
    assert 90 <= schedule.succeeded(None) <= 110


@pytest.mark.parametrize("interval_s", [0.0, -5.0, 1e12])
def test_a_mad_interval_is_reined_in(interval_s: float) -> None:
    assert 0.01 <= PollSchedule(60.0, longest_s=300.0).succeeded(interval_s) <= 100_000


def test_a_refusal_backs_off_as_well() -> None:
    assert PollSchedule(60.0, longest_s=300.0).failed(FinalError("revoked")) >= 30.0
