"""What the matrix' agents are on their way from and to, and the device that they all begin as."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edge_agent.journal import Journal
from edge_agent.protocol import ReleaseRef, UpdateState
from edge_agent.state_dir import StateDir
from edge_agent.trust import read_identity, write_identity
from tests.kill_matrix.agent import ForkedAgent
from tests.kill_matrix.faults import Fault
from tests.simulators.bundles import make_adapter, make_base
from tests.simulators.fleet_server import FleetServer

RELEASES: Mapping[str, tuple[str, str | None, str]] = {
    # directory: name, directory of its base (None: it is one), tag
    "base-a": ("base", None, "base a"),
    "base-b": ("base", None, "base b"),
    "home-1": ("home", "base-a", "home 1"),
    "home-2": ("home", "base-a", "home 2"),
    "home-3": ("home", "base-a", "home 3"),
    "home-b": ("home", "base-b", "home b"),
}


@dataclass(frozen=True, slots=True)
class Scenario:
    """From one set to another. Answers are those of the model "home" to "hi"."""

    name: str
    old: tuple[str, ...]
    new: tuple[str, ...]
    problem: str | None = None
    """The code with which the new set is refused; None if it can be served."""
    is_in_sequence: bool = False
    """Memory has room for one base only: then nobody is served while one makes way for the other."""

    @property
    def old_answer(self) -> str | None:
        return answer_of(self.old)

    @property
    def new_answer(self) -> str | None:
        return answer_of(self.new)


def answer_of(releases: tuple[str, ...]) -> str | None:
    return f"{RELEASES[releases[-1]][2]}: hi" if releases else None


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("adapter", ("base-a", "home-1"), ("base-a", "home-2")),
        Scenario("base", ("base-a", "home-1"), ("base-b", "home-b")),
        Scenario("sequence", ("base-a", "home-1"), ("base-b", "home-b"), is_in_sequence=True),
        Scenario("first", (), ("base-a", "home-1")),
        Scenario("refused", ("base-a", "home-1"), ("base-a", "home-3"), problem="golden_prompt_failed"),
    )
}


_BYTES_OF_NEW_ADAPTER = 5 << 19
"""Three chunks: so something may happen between two of them."""


class World:
    """Bundles, and a device that serves the old set, to be copied for each case."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._catalogue = FleetServer()
        self._releases: dict[str, ReleaseRef] = {}
        for name, (model, base, tag) in RELEASES.items():
            golden = {"ping": "pong"} if name == "home-3" else None
            path = directory / "published" / name
            if base is None:
                make_base(path, tag)
            else:
                size_bytes = _BYTES_OF_NEW_ADAPTER if name == "home-2" else 500
                make_adapter(path, directory / "published" / base, tag, golden=golden, size_bytes=size_bytes)
            self._releases[name] = self._catalogue.publish(model, "1.0.0", path)
        self._catalogue.stop()
        self._enrolled_at: dict[tuple[str, ...], FleetServer] = {}
        self._templates = {old: self._make_template(old) for old in {s.old for s in SCENARIOS.values()}}

    def fleet(self, scenario: Scenario) -> FleetServer:
        """A server of its own, which knows the device."""
        fleet = FleetServer(like=self._enrolled_at[scenario.old])
        fleet.poll_after_s = 0.2
        return fleet

    def refs(self, releases: tuple[str, ...]) -> list[ReleaseRef]:
        return [self._releases[release] for release in releases]

    def want(self, fleet: FleetServer, releases: tuple[str, ...]) -> int:
        """Make these the desired state; returns its revision."""
        refs = self.refs(releases)
        return fleet.want(refs[0] if refs else None, *refs[1:])

    def device(self, scenario: Scenario, fleet: FleetServer, state_dir: Path) -> None:
        """Put a state directory down whose agent serves the scenario's old set and is enrolled at the fleet."""
        shutil.copytree(self._templates[scenario.old], state_dir)
        path = StateDir(state_dir).identity
        identity = read_identity(path)
        assert identity is not None
        write_identity(path, replace(identity, server=fleet.url))

    def _make_template(self, old: tuple[str, ...]) -> Path:
        fleet, state_dir = FleetServer(like=self._catalogue), self.directory / "-".join(("template", *old))
        revision = self.want(fleet, old) if old else 0
        notes = self.directory / f"{state_dir.name}.notes"
        notes.mkdir()
        agent = ForkedAgent(state_dir, fleet.url, {"token": fleet.token})
        agent.start(Fault(notes))
        deadline_s = time.monotonic() + 60
        while not _is_settled(state_dir, revision):
            assert agent.exit_code is None, f"the agent has died: see {agent.log}"
            assert time.monotonic() < deadline_s, f"no device came up: see {agent.log}"
            time.sleep(0.02)
        agent.kill()
        fleet.stop()
        self._enrolled_at[old] = fleet
        return state_dir


def _is_settled(state_dir: Path, revision: int) -> bool:
    if revision == 0:
        return (state_dir / "run" / "api.json").exists()
    entry = Journal(state_dir).read()
    return entry.state is UpdateState.IDLE and entry.served is not None and entry.served.revision == revision
