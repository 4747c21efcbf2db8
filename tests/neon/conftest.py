"""The core on emulated Arm processors. `./dev neon` builds the program that they run, and then runs this suite."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.engine.instruction_sets import InstructionSet
from tests.neon.remote_core import RemoteCore, Runner

RUNNER = Path(__file__).resolve().parents[2] / "var" / "neon" / "socle_runner"
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")

settings.register_profile("emulated", deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("emulated")


def command_on(processor: str) -> list[str]:
    """What starts the runner on a processor that qemu knows by this name."""
    if EMULATOR is None or not RUNNER.exists():
        pytest.skip("socle_runner is not built for Arm, or qemu-user is missing: type ./dev neon")
    return [EMULATOR, "-cpu", processor, str(RUNNER)]


@pytest.fixture(scope="session")
def arm() -> Iterator[RemoteCore]:
    """The core on a processor that has the dot product, and nothing newer."""
    with Runner(command_on("cortex-a76")) as runner:
        yield RemoteCore(runner)


@pytest.fixture(scope="session")
def old_arm() -> Iterator[RemoteCore]:
    """The core on a processor of Armv8.0, without the dot product."""
    with Runner(command_on("cortex-a53")) as runner:
        yield RemoteCore(runner)


@pytest.fixture(scope="session")
def neon(arm) -> InstructionSet:
    return InstructionSet("neon", arm)


@pytest.fixture(scope="session", params=["neon", "portable"])
def arm_set(request, arm) -> InstructionSet:
    """Each set that an Arm processor runs. Answers are compared with the portable one on this processor."""
    return InstructionSet(request.param, arm)
