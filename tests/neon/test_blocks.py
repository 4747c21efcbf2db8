"""Shared blocks of keys and values on an emulated Arm processor: the tests of the back ends."""

from __future__ import annotations

import pytest

from tests.engine.test_blocks import (  # noqa: F401 - the same tests, on another processor
    base,
    test_a_running_state_does_not_write_to_a_block_that_it_has_shared,
    test_a_state_that_begins_with_blocks_goes_on_bit_for_bit,
    test_a_state_that_rewinds_into_shared_blocks_leaves_them_as_they_are,
    test_bytes_make_the_same_block,
    test_forks_do_not_disturb_each_other,
    test_full_blocks_come_from_a_running_state_too,
    test_what_does_not_fit_is_refused,
)


@pytest.fixture(scope="module", params=["fp16", "int8"])
def backend(request, neon, base):  # noqa: F811 - pytest names a fixture by its argument
    backend = neon.open(base, kv_type=request.param, num_threads=1)
    backend.load_adapter("adapter", base.parent / "adapter")
    return backend
