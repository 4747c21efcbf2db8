import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.business import Business
from engine.errors import CapacityError
from engine.ledger import Caps, Kind, Ledger

HOME, CAR = Business("home", memory_bytes=50), Business("car")


def ledger():
    return Ledger(Caps(100, {Kind.KV: 70}))


@pytest.mark.parametrize(
    ("kind", "size_bytes", "business", "whose"),
    [
        (Kind.SCRATCH, 101, None, "the engine's memory"),
        (Kind.KV, 71, CAR, "the memory for kv"),
        (Kind.PREFIX_CACHE, 51, HOME, "business 'home'"),
    ],
)
def test_each_cap_holds_and_a_refusal_reserves_nothing(kind, size_bytes, business, whose):
    books = ledger()
    with pytest.raises(CapacityError, match=whose):
        books.reserve(kind, size_bytes, business)
    assert books.reserved_bytes() == 0
    books.reserve(kind, size_bytes - 1, business)
    assert books.reserved_bytes() == size_bytes - 1


def test_reservations_are_known_by_kind_and_business():
    books = ledger()
    books.reserve(Kind.WEIGHTS, 30)
    books.reserve(Kind.KV, 20, HOME)
    books.reserve(Kind.PREFIX_CACHE, 10, HOME)
    books.reserve(Kind.KV, 5, CAR)
    assert books.reserved_bytes() == 65
    assert books.reserved_bytes(Kind.KV) == 25
    assert books.reserved_bytes(business="home") == 30
    assert books.reserved_bytes(Kind.KV, "car") == 5
    assert (books.total_room_bytes, books.kind_room_bytes(Kind.KV), books.room_bytes(Kind.KV)) == (35, 45, 35)
    assert (books.business_room_bytes(HOME), books.business_room_bytes(CAR)) == (20, math.inf)


def test_weights_do_not_count_as_those_of_a_business_without_a_name():
    books = ledger()
    books.reserve(Kind.WEIGHTS, 60)
    books.reserve(Kind.KV, 40, Business(memory_bytes=40))
    assert books.reserved_bytes(business="") == 40


def test_what_is_used_for_something_else_now_needs_room_below_that_kinds_cap_alone():
    books = Ledger(Caps(100, {Kind.PREFIX_CACHE: 30}))
    books.reserve(Kind.KV, 50, HOME)
    books.reserve(Kind.WEIGHTS, 50)
    books.move(30, Kind.KV, Kind.PREFIX_CACHE, HOME)
    assert (books.reserved_bytes(Kind.KV), books.reserved_bytes(Kind.PREFIX_CACHE)) == (20, 30)
    with pytest.raises(CapacityError, match="prefix_cache"):
        books.move(1, Kind.KV, Kind.PREFIX_CACHE, HOME)
    assert books.reserved_bytes(business="home") == 50


@given(st.lists(st.tuples(st.sampled_from(Kind), st.integers(0, 60), st.sampled_from([None, HOME, CAR]))))
def test_no_cap_is_ever_broken_and_giving_all_back_leaves_nothing(wishes):
    books, held = ledger(), []
    for wish in wishes:
        try:
            books.reserve(*wish)
            held.append(wish)
        except CapacityError:
            continue
        assert books.reserved_bytes() <= 100
        assert books.reserved_bytes(Kind.KV) <= 70
        assert books.reserved_bytes(business="home") <= 50
    for reservation in held:
        books.release(*reservation)
    assert books.reserved_bytes() == 0


def test_more_than_was_reserved_cannot_be_given_back():
    books = ledger()
    books.reserve(Kind.KV, 5, HOME)
    with pytest.raises(AssertionError):
        books.release(Kind.KV, 6, HOME)
