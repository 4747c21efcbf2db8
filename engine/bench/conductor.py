"""Runs the contestants of one shape against each other.

First each one alone: its files are made, then its memory is measured while no other is loaded. Then all together: they
prepare the same state and take turns case by case, round by round, so that whatever else the machine does falls on all
of them alike. Who fails is left out from there on; the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from engine.bench.cases import Setting
from engine.bench.child import ContestantError
from engine.bench.machine import Capability
from engine.bench.results import Participant, ShapeResults

_NO_TIME_S = 0.0


class Child(Protocol):
    """What is needed of `engine.bench.child.Child`."""

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """The answer to a request; raises `ContestantError`."""

    def sampled_memory(self) -> Any:
        """A context manager that gives a `PeakMemory`."""

    def close(self) -> None:
        """End the process."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to run. budget_s: least time that a contestant gets in a round of a case; a step always runs whole."""

    settings: Sequence[Setting]
    folder: str
    rounds: int
    budget_s: float
    num_threads: int
    with_memory: bool


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The outer world: how to start a contestant by name, what the machine can do now, whom to tell the progress."""

    start: Callable[[str], Child]
    measure_capability: Callable[[], Capability]
    say: Callable[[str], None]


def run_shape(plan: Plan, results: ShapeResults, world: Surroundings) -> None:
    """Fill the results of one shape."""
    for participant in _able(results):
        with _failures_of(participant, world):
            _export(plan, participant, world)
            if plan.with_memory:
                _measure_memory(plan, participant, world)
    with ExitStack() as stack:
        children = _open_all(plan, results, world, stack)
        for setting in plan.settings:
            results.capabilities.append(world.measure_capability())
            _prepare_all(setting, results, world, children)
            world.say(f"{results.shape}: {setting.label}, {plan.rounds} rounds")
            _run_rounds(plan, setting, results, world, children)


def _able(results: ShapeResults) -> list[Participant]:
    return [participant for participant in results.participants.values() if participant.failure is None]


@contextmanager
def _failures_of(participant: Participant, world: Surroundings) -> Iterator[None]:
    """A contestant that fails is out."""
    try:
        yield
    except ContestantError as error:
        participant.failure = str(error)
        world.say(f"{participant.name} is out: {error}")


def _export(plan: Plan, participant: Participant, world: Surroundings) -> None:
    """In a process that ends, since making a file can take more memory than running it."""
    world.say(f"{participant.name}: making its files, if they are not there yet")
    child = world.start(participant.name)
    try:
        child.ask("export", folder=plan.folder)
    finally:
        child.close()


def _measure_memory(plan: Plan, participant: Participant, world: Surroundings) -> None:
    """Peaks while it opens, and in each setting while it fills the context and runs the largest case."""
    world.say(f"{participant.name}: memory, alone")
    child = world.start(participant.name)
    try:
        with child.sampled_memory() as participant.opening:
            child.ask("open", folder=plan.folder, num_threads=plan.num_threads)
        for setting in plan.settings:
            with child.sampled_memory() as participant.serving[setting.label]:
                _prepare(child, setting)
                case = setting.largest
                child.ask("run", rows=case.rows, logits=case.logits, budget_s=_NO_TIME_S)
    finally:
        child.close()


def _open_all(plan: Plan, results: ShapeResults, world: Surroundings, stack: ExitStack) -> dict[str, Child]:
    children: dict[str, Child] = {}
    for participant in _able(results):
        with _failures_of(participant, world):
            child = world.start(participant.name)
            stack.callback(child.close)
            participant.facts = child.ask("open", folder=plan.folder, num_threads=plan.num_threads)
            children[participant.name] = child
    return children


def _prepare_all(setting: Setting, results: ShapeResults, world: Surroundings, children: dict[str, Child]) -> None:
    for participant in _able(results):
        with _failures_of(participant, world):
            _prepare(children[participant.name], setting)


def _prepare(child: Child, setting: Setting) -> None:
    child.ask("prepare", context=setting.context, capacity=setting.capacity, max_logit_rows=setting.max_logit_rows)


def _run_rounds(
    plan: Plan, setting: Setting, results: ShapeResults, world: Surroundings, children: dict[str, Child]
) -> None:
    """Rounds outside and cases inside, so that a bad minute of the machine spoils one round of each, not one case."""
    for number in range(plan.rounds):
        for case in setting.cases:
            for participant in _rotated(_able(results), number):
                with _failures_of(participant, world):
                    child = children[participant.name]
                    answer = child.ask("run", rows=case.rows, logits=case.logits, budget_s=plan.budget_s)
                    steps = answer["seconds"]
                    results.seconds.setdefault((participant.name, case), []).append(sum(steps) / len(steps))
                    results.samples[participant.name, case] = answer["sample"]


def _rotated(participants: list[Participant], number: int) -> list[Participant]:
    """Each round begins with another, so that nobody always runs behind the same neighbour."""
    start = number % max(1, len(participants))
    return participants[start:] + participants[:start]
