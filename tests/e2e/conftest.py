"""One stack of real processes for the whole suite, brought to where devices serve their first set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from deploy.tour.stack import Stack, free_port
from deploy.tour.story import Story
from deploy.tour.terminal import Terminal

DEVICE = "device-1"


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """A story told up to the first rollout: one base and three adapters are active on one device."""
    stack = Stack(tmp_path_factory.mktemp("stack"), free_port())
    told = Story(stack, Terminal(), [DEVICE])
    try:
        told.start()
        told.publish()
        told.enrol()
        told.roll_out()
        yield told
    finally:
        told.close()
        stack.close()


@pytest.fixture(scope="session")
def answered() -> Counter[str]:
    """How many requests for each adapter have been answered so far: the telemetry must know of as many."""
    return Counter()
