import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.business import Business
from engine.errors import RateLimitError
from engine.token_budgets import TokenBudgets

HOME = Business("home", tokens_per_minute=60)


def test_a_request_that_begins_within_the_budget_is_let_through_whole_and_the_next_one_waits():
    budgets = TokenBudgets()
    budgets.require(HOME, 0.0)
    budgets.spend(HOME, 90, 0.0)
    with pytest.raises(RateLimitError, match="try again in 31 s") as refused:
        budgets.require(HOME, 0.0)
    assert refused.value.retry_after_s == 31.0
    with pytest.raises(RateLimitError):
        budgets.require(HOME, 30.0)
    budgets.require(HOME, refused.value.retry_after_s)


def test_an_idle_business_saves_up_no_more_than_a_minute():
    budgets = TokenBudgets()
    budgets.require(HOME, 0.0)
    budgets.spend(HOME, 60, 1e6)
    with pytest.raises(RateLimitError):
        budgets.require(HOME, 1e6)


def test_businesses_have_budgets_of_their_own_and_some_have_none():
    budgets = TokenBudgets()
    budgets.spend(HOME, 1000, 0.0)
    budgets.require(Business("car", tokens_per_minute=60), 0.0)
    free = Business("free")
    budgets.spend(free, 10**9, 0.0)
    budgets.require(free, 0.0)


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 200)), max_size=50))
def test_on_average_no_more_than_the_budget_is_used(asks):
    """Beyond the minute that the bucket holds, and the last request."""
    budgets, now_s, used = TokenBudgets(), 0.0, 0
    for wait_s, num_tokens in asks:
        now_s += wait_s
        try:
            budgets.require(HOME, now_s)
        except RateLimitError:
            continue
        assert used < 60 + now_s + 1e-6
        budgets.spend(HOME, num_tokens, now_s)
        used += num_tokens
