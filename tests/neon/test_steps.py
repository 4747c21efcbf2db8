"""Whole steps with Neon on an emulated Arm processor: the tests of the back end and of its bits.

What they compare with runs on this processor, in its fastest instruction set.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.instruction_sets import InstructionSet
from tests.engine.test_native_backend import (  # noqa: F401 - the same tests, on another processor
    large_head,
    models,
    test_a_number_that_is_not_finite_never_becomes_an_answer,
    test_a_scale_of_a_large_head_is_an_error_wherever_it_is_used,
    test_a_token_that_is_not_finite_spoils_no_row_before_it,
    test_a_token_whose_head_is_not_finite_makes_every_answer_an_error,
    test_logits_are_those_of_its_arithmetic_in_numpy,
    test_logits_are_those_of_transformers_and_peft,
    test_only_the_likeliest_tokens_of_a_large_vocabulary_are_worked_out_in_8_bits,
)
from tests.engine.test_native_exactness import (  # noqa: F401 - as above
    opened,
    plain_of,
    test_a_walk_has_the_bits_of_a_plain_run,
    test_any_number_of_rows_has_the_bits_of_one,
    test_every_model_has_the_same_bits_with_any_number_of_threads,
)


@pytest.fixture(scope="module")
def instruction_set(neon) -> Iterator[InstructionSet]:
    yield neon
    for cache in (opened, plain_of):
        cache.cache_clear()
