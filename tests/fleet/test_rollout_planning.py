from __future__ import annotations

from dataclasses import replace

import pytest

from fleet.rollouts.planning import Change, ChangeRefusedError, Offer, Plan, check_change, plan

BASE_1 = Offer(1, "tiny", "1.0.0", "b1")
BASE_2 = Offer(2, "tiny", "2.0.0", "b2")
HOME_1 = Offer(10, "home", "1.0.0", "h1", base_digest="b1")
HOME_1B = Offer(11, "home", "1.1.0", "h1b", base_digest="b1")
HOME_2 = Offer(12, "home", "2.0.0", "h2", base_digest="b2")
CAR_1 = Offer(20, "car", "1.0.0", "c1", base_digest="b1")
CAR_2 = Offer(21, "car", "2.0.0", "c2", base_digest="b2")
UNSIGNED = replace(CAR_1, is_unsigned=True)
REVOKED = replace(CAR_1, is_revoked=True)
YANKED = replace(CAR_1, release_id=22, version="1.0.1", is_yanked=True)

NOTHING = Plan()
BARE = Plan(BASE_1)
FULL = Plan(BASE_1, (CAR_1, HOME_1))


@pytest.mark.parametrize(
    ("current", "change", "expected"),
    [
        (NOTHING, Change(base=BASE_1), BARE),
        (NOTHING, Change(base=BASE_1, adapters=(HOME_1, CAR_1)), FULL),
        (BARE, Change(adapters=(HOME_1,)), Plan(BASE_1, (HOME_1,))),
        (FULL, Change(adapters=(HOME_1B,)), Plan(BASE_1, (CAR_1, HOME_1B))),
        (FULL, Change(remove=frozenset({"car"})), Plan(BASE_1, (HOME_1,))),
        (FULL, Change(remove=frozenset({"nobody"})), FULL),
        (FULL, Change(base=BASE_2, adapters=(HOME_2, CAR_2)), Plan(BASE_2, (CAR_2, HOME_2))),
        (FULL, Change(base=BASE_2, adapters=(HOME_2,), remove=frozenset({"car"})), Plan(BASE_2, (HOME_2,))),
        (FULL, Change(base=BASE_1), FULL),
        (NOTHING, Change(remove=frozenset({"car"})), NOTHING),
        (Plan(BASE_1, (REVOKED, HOME_1)), Change(remove=frozenset({"car"})), Plan(BASE_1, (HOME_1,))),
    ],
)
def test_what_a_change_makes_of_a_set(current: Plan, change: Change, expected: Plan) -> None:
    assert plan(change, current) == expected


@pytest.mark.parametrize(
    ("current", "change", "conflicts"),
    [
        (NOTHING, Change(adapters=(HOME_1,)), [("no_base", "home@1.0.0")]),
        (BARE, Change(adapters=(HOME_2,)), [("wrong_base", "home@2.0.0")]),
        (NOTHING, Change(base=BASE_2, adapters=(HOME_1,)), [("wrong_base", "home@1.0.0")]),
        (
            FULL,
            Change(base=BASE_2),
            [("adapter_left_behind", "car@1.0.0"), ("adapter_left_behind", "home@1.0.0")],
        ),
        (
            FULL,
            Change(base=BASE_2, adapters=(HOME_1B,)),
            [("adapter_left_behind", "car@1.0.0"), ("wrong_base", "home@1.1.0")],
        ),
        (BARE, Change(adapters=(UNSIGNED,)), [("release_not_signed", "car@1.0.0")]),
        (NOTHING, Change(base=replace(BASE_1, is_revoked=True)), [("release_revoked", "tiny@1.0.0")]),
        (Plan(BASE_1, (REVOKED,)), Change(adapters=(HOME_1,)), [("release_revoked", "car@1.0.0")]),
        (Plan(replace(BASE_1, is_unsigned=True)), Change(adapters=(HOME_1,)), [("release_not_signed", "tiny@1.0.0")]),
    ],
)
def test_what_a_set_can_not_become(current: Plan, change: Change, conflicts: list[tuple[str, str]]) -> None:
    with pytest.raises(ChangeRefusedError) as refused:
        plan(change, current)
    assert [(conflict.code, conflict.item) for conflict in refused.value.conflicts] == conflicts
    assert all(conflict.detail and conflict.hint for conflict in refused.value.conflicts)


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        (Change(), ["empty_change"]),
        (Change(adapters=(YANKED,)), ["yanked"]),
        (Change(base=replace(BASE_1, is_yanked=True)), ["yanked"]),
        (
            Change(base=replace(BASE_1, is_unsigned=True), adapters=(REVOKED,)),
            ["release_not_signed", "release_revoked"],
        ),
        (Change(adapters=(replace(UNSIGNED, is_revoked=True),)), ["release_revoked"]),
        (Change(adapters=(HOME_1, HOME_1B)), ["duplicate_adapter"]),
        (Change(adapters=(HOME_1,), remove=frozenset({"home"})), ["added_and_removed"]),
        (Change(adapters=(YANKED, HOME_1, HOME_1)), ["yanked", "duplicate_adapter"]),
    ],
)
def test_what_no_change_may_be(change: Change, codes: list[str]) -> None:
    with pytest.raises(ChangeRefusedError) as refused:
        check_change(change)
    assert [conflict.code for conflict in refused.value.conflicts] == codes


def test_a_proper_change_passes() -> None:
    check_change(Change(base=BASE_1, adapters=(HOME_1, CAR_1), remove=frozenset({"summary"})))


def test_an_adapter_that_was_yanked_later_stays_where_it_is() -> None:
    assert plan(Change(adapters=(HOME_1,)), Plan(BASE_1, (YANKED,))).adapters == (YANKED, HOME_1)
