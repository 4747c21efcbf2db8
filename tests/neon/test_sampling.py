"""The tests of sampling on an emulated Arm processor."""

from __future__ import annotations

import pytest

from tests.engine.test_native_sampling import *  # noqa: F403 - the same tests, on another processor


@pytest.fixture(scope="module")
def instruction_set(arm_set):
    return arm_set
