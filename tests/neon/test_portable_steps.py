"""Whole steps in plain C++ on an emulated Arm processor: what runs where there is no dot product."""

from __future__ import annotations

import pytest

from tests.engine.instruction_sets import InstructionSet
from tests.engine.test_native_exactness import (  # noqa: F401 - the same tests, on another processor
    models,
    test_every_model_has_the_same_bits_with_any_number_of_threads,
)


@pytest.fixture(scope="module")
def instruction_set(old_arm):
    return InstructionSet("portable", old_arm)
