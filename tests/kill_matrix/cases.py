"""The table of cases, made from the points that an undisturbed update goes through."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edge_agent.states import RISKY, State
from tests.kill_matrix.faults import Act, Point, Side


@dataclass(frozen=True, slots=True)
class Case:
    """A fault in a scenario."""

    scenario: str
    act: Act
    point: Point
    side: Side = Side.BEFORE

    def __str__(self) -> str:
        return f"{self.scenario}: {self.act} {self.side} {self.point}"


_LASTING = ("fsync", "rename", "land")
_AT_ANY_TIME = (
    Act.DISK_FULL,
    Act.READ_ONLY,
    Act.READ_ONLY_AT_START,
    Act.CLOCK_FORWARD,
    Act.CLOCK_BACK,
    Act.SERVER_GONE,
    Act.METADATA_EXPIRED,
    Act.METADATA_OUTLIVED,
    Act.SECOND_AGENT,
)
Traces = Mapping[str, Sequence[Point]]


def cases(traces: Traces) -> list[Case]:
    """All cases, from the points that each scenario's update goes through."""
    steady = {name: [point for point in trace if _comes_always(point)] for name, trace in traces.items()}
    return [
        *_killed(steady),
        *_power_lost(steady),
        *_failed(steady),
        *_in_each_state(steady),
        *_again_and_again(steady),
        *_with_real_engine(steady),
    ]


def _comes_always(point: Point) -> bool:
    """Signed metadata is looked after at each poll, and how many there are in a state is up to the clock."""
    return not point.object.startswith("trust") or (point.nth == 1 and point.state != "failed")


def _killed(traces: Traces) -> Iterator[Case]:
    """Around every point of an adapter's update; in the other scenarios where the state changes, and in a switch.

    Within a write of a file that is replaced, after an operation is before the next.
    """
    for point in traces["adapter"]:
        if point.operation != "unlink":
            yield Case("adapter", Act.KILL, point)
        if _is_entry(point) or _is_step(point) or (_is_last(point) and not _is_journals(point)):
            yield Case("adapter", Act.KILL, point, Side.AFTER)
    for scenario in ("base", "sequence", "first", "refused"):
        for point in traces[scenario]:
            if _is_entry(point) or _is_step(point):
                yield Case(scenario, Act.KILL, point)
            if _is_step(point):
                yield Case(scenario, Act.KILL, point, Side.AFTER)


def _power_lost(traces: Traces) -> Iterator[Case]:
    """Where files of a release get their names, and in one write of the journal: that is the same in each state."""
    for point in traces["adapter"]:
        is_releases = point.object.startswith(("partial", "bundles"))
        if point.operation in _LASTING and (is_releases or (_is_journals(point) and point.state == "verifying")):
            yield Case("adapter", Act.POWER_LOSS, point)


def _failed(traces: Traces) -> Iterator[Case]:
    """Each operation fails once, on the way there and on the way back; the journal's in one state for all."""
    for point in traces["adapter"]:
        if not _is_journals(point) or point.state == "verifying":
            yield Case("adapter", Act.FAIL, point)
    for point in traces["refused"]:
        if point.state in ("rolling_back", "failed") and not _is_journals(point):
            yield Case("refused", Act.FAIL, point)


def _in_each_state(traces: Traces) -> Iterator[Case]:
    """What may befall a device at any time."""
    for act in _AT_ANY_TIME:
        for point in traces["adapter"]:
            # By a clock that is years ahead a new desired state has expired before it is heard: no update begins.
            if _is_entry(point) and not (act is Act.CLOCK_FORWARD and point.state == "idle"):
                yield Case("adapter", act, point, Side.AFTER)


def _again_and_again(traces: Traces) -> Iterator[Case]:
    """A release that takes the whole device down each time: the agent must stop trying."""
    for point in traces["adapter"]:
        if point.operation in ("write", "stage", "probe", "activate") and State(point.state) in RISKY:
            yield Case("adapter", Act.BOOT_LOOP, point, Side.AFTER)


def _with_real_engine(traces: Traces) -> Iterator[Case]:
    """Kills in a switch, where the engine has a part: after each step, and before the trial."""
    for scenario in ("real adapter", "real base"):
        for point in traces[scenario]:
            if _is_step(point) and State(point.state) in RISKY:
                yield Case(scenario, Act.KILL, point, Side.AFTER)
            if point.operation == "probe":
                yield Case(scenario, Act.KILL, point)


def _is_entry(point: Point) -> bool:
    return point.object == "journal"


def _is_step(point: Point) -> bool:
    return point.object[0].isupper() or point.operation == "probe"


def _is_last(point: Point) -> bool:
    """Whether a directory was synchronised, which is the end of replacing a file in it, or a chunk has landed."""
    return point.operation == "land" or (point.operation == "fsync" and not point.object.endswith((".tmp", ".part")))


def _is_journals(point: Point) -> bool:
    return "journal" in point.object or point.object == "."
