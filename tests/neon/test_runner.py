"""What `socle_runner` refuses, and which instruction sets it takes on which processors."""

from __future__ import annotations

import struct
import subprocess

import numpy as np
import pytest

from engine.backends.native import NativeBackend
from engine.config import EngineConfig
from engine.errors import UnsupportedInputError
from tests.engine.random_bundles import make_base
from tests.neon.conftest import command_on
from tests.neon.remote_core import RemoteCore, Runner, message

ONES = np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("processor", "sets"),
    [
        ("cortex-a53", ["portable"]),  # Armv8.0
        ("cortex-a72", ["portable"]),  # as the Raspberry Pi 4
        ("cortex-a76", ["neon", "portable"]),  # as the Raspberry Pi 5
        ("neoverse-n1", ["neon", "portable"]),
        ("max", ["neon", "portable"]),
    ],
)
def test_the_fastest_set_that_the_processor_has_is_taken(tmp_path, processor, sets):
    make_base(tmp_path / "base")
    with Runner(command_on(processor)) as runner:
        core = RemoteCore(runner)
        assert core.instruction_sets() == sets
        assert NativeBackend(tmp_path / "base", EngineConfig(num_threads=1), core).instruction_set == sets[0]
        if "neon" not in sets:
            with pytest.raises(UnsupportedInputError, match="this processor runs auto, portable"):
                NativeBackend(tmp_path / "base", EngineConfig(instruction_set="neon", num_threads=1), core)
            with pytest.raises(ValueError, match="cannot run the instruction set neon"):
                core.kernels.add("neon", ONES, ONES)


@pytest.mark.parametrize(
    ("command", "values", "reason"),
    [
        ("divide", (), "no such command"),
        ("add", ("neon", ONES), "value 2 of add is missing"),
        ("add", ("neon", ONES, ONES, ONES), "add takes 3 values"),
        ("add", ("neon", ONES, 4), "value 2 of add is i, not F"),
        ("add", ("neon", ONES, ONES.astype(np.float64)), "value 2 of add is D, not F"),
        ("add", ("sse", ONES, ONES), "cannot run the instruction set sse"),
        ("add", ("neon", ONES, ONES[1:]), "3 values, not 4"),
        ("new_weights", (1 << 40,), "does not fit into 32 bits"),
        ("new_weights", (-1,), "vector"),
        ("rewind", (7, 0), "no such object"),
        ("product", ("neon", "int4", ONES.view(np.uint8), 16, 32), "value 5 of product is missing"),
    ],
)
def test_what_is_no_request_is_refused_and_the_next_one_answered(arm, command, values, reason):
    with pytest.raises(ValueError, match=reason):
        arm.runner.ask(command, *values)
    np.testing.assert_array_equal(arm.kernels.add("neon", ONES, ONES), 2 * ONES)


def test_a_number_of_an_object_of_another_kind_is_refused(arm):
    adapter = arm.Adapter(1)
    with pytest.raises(ValueError, match="no such object"):
        arm.runner.ask("describe_state", adapter.number)


def test_objects_are_dropped_with_their_owners(arm):
    number = arm.Adapter(1).number
    arm.instruction_sets()
    with pytest.raises(ValueError, match="no such object"):
        arm.runner.ask("set_module", number)


WHOLE = message("add", "neon", ONES, ONES)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (WHOLE[:-1], "the input ends within a message"),
        (WHOLE[:5], "no message has such a length"),
        (struct.pack("<Q", 1 << 62), "no message has such a length"),
        (struct.pack("<QQ", 8, 9), "a value is longer than its message"),
        (struct.pack("<QQcQ", 17, 0, b"F", 4), "a value is longer than its message"),
        (struct.pack("<QQcQ", 17, 0, b"?", 0), "a value of an unknown kind"),
        (struct.pack("<QQcQH", 19, 0, b"F", 2, 0), "a length that its kind cannot have"),
        (struct.pack("<QQcQH", 19, 0, b"i", 2, 0), "a length that its kind cannot have"),
    ],
)
def test_what_is_no_message_ends_the_program(data, reason):
    done = subprocess.run(command_on("max"), input=data, capture_output=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stdout == b""
    assert reason in done.stderr.decode()


def test_the_end_of_the_input_ends_the_program():
    done = subprocess.run(command_on("max"), input=WHOLE * 2, capture_output=True, timeout=30, check=True)
    assert done.stdout.count(b"ok") == 2
