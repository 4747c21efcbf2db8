import math

import pytest

from engine.business import TARGETS, Business, Deadline
from engine.errors import InvalidInputError


def test_a_business_comes_out_of_plain_values_and_leaves_others_alone():
    document = {"name": "home", "priority": 3, "deadline": "urgent", "memory_bytes": 5, "golden_prompts": []}
    assert Business.from_mapping(document) == Business("home", 3, Deadline.URGENT, memory_bytes=5)
    assert Business.from_mapping({}) == Business()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("priority", 101),
        ("priority", -101),
        ("priority", "high"),
        ("deadline", "soon"),
        ("max_running", 0),
        ("max_waiting", -1),
        ("tokens_per_minute", 0),
        ("max_context_tokens", 0),
        ("memory_bytes", 0),
        ("timeout_s", 0),
        ("prompt_cache", "yes"),
    ],
)
def test_a_bad_value_is_refused_by_name(field, value):
    with pytest.raises(InvalidInputError, match=rf"business\.{field}"):
        Business.from_mapping({field: value})


def test_nobody_may_wait_in_the_queue_if_the_business_says_so():
    assert Business(max_waiting=0).max_waiting == 0


def test_the_more_urgent_the_sooner():
    ordered = [TARGETS[deadline] for deadline in (Deadline.URGENT, Deadline.INTERACTIVE, Deadline.PATIENT)]
    assert sorted(ordered, key=lambda targets: targets.first_token_s) == ordered
    assert sorted(ordered, key=lambda targets: targets.next_token_s) == ordered
    assert Business(deadline=Deadline.PATIENT).targets.next_token_s == math.inf
