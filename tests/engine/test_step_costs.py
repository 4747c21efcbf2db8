import pytest

from engine.step_costs import StepCosts


def test_nothing_is_known_at_first():
    assert (StepCosts().decode_s(3), StepCosts().prefill_s(100)) == (0.0, 0.0)


def test_between_measured_numbers_of_rows_costs_lie_on_a_line():
    costs = StepCosts()
    for rows, seconds in ((2, 1.0), (6, 3.0)):
        costs.observe_decode(rows, seconds)
    assert [costs.decode_s(rows) for rows in (1, 2, 3, 5, 6, 9)] == [1.0, 1.0, 1.5, 2.5, 3.0, 3.0]


def test_averages_follow_the_newest_steps():
    costs = StepCosts()
    for seconds in (1.0, 2.0):
        costs.observe_decode(1, seconds)
    assert costs.decode_s(1) == pytest.approx(1.2)
    for _ in range(30):
        costs.observe_decode(1, 5.0)
        costs.observe_prefill(10, 5.0)
    assert costs.decode_s(1) == pytest.approx(5.0, rel=0.01)
    assert costs.prefill_s(2) == pytest.approx(1.0)


def test_one_slow_moment_does_not_rule_a_number_of_rows_out_for_ever():
    costs = StepCosts()
    costs.observe_decode(2, 100.0)
    for _ in range(200):
        costs.observe_decode(1, 1.0)
    assert costs.decode_s(2) == 1.0
    costs.observe_decode(2, 2.0)
    assert costs.decode_s(2) == 2.0


def test_prompts_of_a_few_tokens_say_little_about_long_ones():
    """A token alone takes ten times its share of a bucket; many such prompts must not shrink the buckets."""
    costs = StepCosts()
    for _ in range(20):
        costs.observe_prefill(128, 1.28)
        costs.observe_prefill(1, 0.1)
    assert costs.prefill_s(128) == pytest.approx(1.28, rel=0.1)
    for _ in range(50):
        costs.observe_prefill(1, 0.1)
    costs.observe_prefill(32, 0.32)
    assert costs.prefill_s(128) < 3.2
