"""The loop inside the engine's process, on an engine that only notes what it is told."""

from __future__ import annotations

import queue
from collections.abc import Iterable
from pathlib import Path

import pytest

from edge_agent.engine_loop import EngineLoop
from edge_agent.engine_wire import Command, Heartbeat, LoadAdapter, Piece, UnloadAdapter


class EndOfTestError(Exception):
    """The loop has no end of its own."""


class NotingEngine:
    """Has work for ever, or never; ends the test after so many calls."""

    base_digest = backend = ""

    def __init__(self, *, has_work: bool, num_calls: int) -> None:
        self.has_work = has_work
        self.calls: list[str] = []
        self._num_calls = num_calls

    def _note(self, what: str) -> None:
        self.calls.append(what)
        if len(self.calls) == self._num_calls:
            raise EndOfTestError

    def load_adapter(self, bundle: Path) -> str:
        self._note(f"load {bundle}")
        return str(bundle)

    def unload_adapter(self, digest: str) -> None:
        self._note(f"unload {digest}")

    def step(self) -> Iterable[Piece]:
        self._note("step")
        return ()

    def heartbeat(self, **_options: bool) -> Heartbeat:
        return Heartbeat((), {}, 0, 0)


COMMANDS = (LoadAdapter("1", "a", "a"), UnloadAdapter("2", "b"), LoadAdapter("3", "c", "c"))


@pytest.mark.parametrize(
    ("has_work", "expected"),
    [
        (True, ["load a", "step", "unload b", "step", "load c", "step"]),
        (False, ["load a", "unload b", "load c"]),
    ],
)
def test_between_changes_of_adapters_there_is_a_step_for_those_who_wait(has_work, expected) -> None:
    engine = NotingEngine(has_work=has_work, num_calls=len(expected))
    commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
    for command in COMMANDS:
        commands.put(command)
    with pytest.raises(EndOfTestError):
        EngineLoop(engine, lambda _: None, 60.0).run(commands)
    assert engine.calls == expected
