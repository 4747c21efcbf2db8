"""What the matrix' agents are on their way from and to, and the device that they all begin as."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_agent.journal import Journal
from edge_agent.protocol import ReleaseRef, UpdateState
from edge_agent.state_dir import StateDir
from edge_agent.trust import read_identity, write_identity
from tests.kill_matrix.agent import ForkedAgent
from tests.kill_matrix.faults import Fault
from tests.kill_matrix.real_bundles import make_real_bundles, real_answers
from tests.simulators.bundles import make_adapter, make_base
from tests.simulators.fleet_server import FleetServer

REAL_ENGINE = (sys.executable, "-m", "edge_agent.engine_process")
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
    """From one set to another: names of bundles."""

    name: str
    old: tuple[str, ...]
    new: tuple[str, ...]
    problem: str | None = None
    """The code with which the new set is refused; None if it can be served."""
    is_in_sequence: bool = False
    """Memory has room for one base only: then nobody is served while one makes way for the other."""
    is_real: bool = False
    """The engine is the real one, a program of its own."""

    @property
    def settings(self) -> dict[str, Any]:
        """Of its agents."""
        engine = {"engine_command": REAL_ENGINE, "engine": {"num_threads": 1}} if self.is_real else {}
        return engine | ({"ready_wait_s": 0.2} if self.is_in_sequence else {})


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("adapter", ("base-a", "home-1"), ("base-a", "home-2")),
        Scenario("base", ("base-a", "home-1"), ("base-b", "home-b")),
        Scenario("sequence", ("base-a", "home-1"), ("base-b", "home-b"), is_in_sequence=True),
        Scenario("first", (), ("base-a", "home-1")),
        Scenario("refused", ("base-a", "home-1"), ("base-a", "home-3"), problem="golden_prompt_failed"),
        Scenario("real adapter", ("real-base-a", "real-home-1"), ("real-base-a", "real-home-2"), is_real=True),
        Scenario("real base", ("real-base-a", "real-home-1"), ("real-base-b", "real-home-b"), is_real=True),
    )
}


_BYTES_OF_NEW_ADAPTER = 5 << 19
"""Three chunks: so something may happen between two of them."""


class World:
    """Bundles, and a device that serves the old set, to be copied for each case."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._published = directory / "published"
        self._catalogue = FleetServer()
        self._releases: dict[str, ReleaseRef] = {}
        self._answers: dict[str, str] = {}
        self._publish_scripted()
        self._publish_real()
        self._catalogue.stop()
        self._enrolled_at: dict[tuple[str, ...], FleetServer] = {}
        self._templates = {old: self._make_template(s) for old, s in {s.old: s for s in SCENARIOS.values()}.items()}

    def _publish_scripted(self) -> None:
        for name, (model, base, tag) in RELEASES.items():
            path = self._published / name
            if base is None:
                make_base(path, tag)
            else:
                golden = {"ping": "pong"} if name == "home-3" else None
                size_bytes = _BYTES_OF_NEW_ADAPTER if name == "home-2" else 500
                make_adapter(path, self._published / base, tag, golden=golden, size_bytes=size_bytes)
            self._releases[name] = self._catalogue.publish(model, "1.0.0", path)
            self._answers[name] = f"{tag}: hi"

    def _publish_real(self) -> None:
        for name, model in make_real_bundles(self._published).items():
            self._releases[name] = self._catalogue.publish(model, "1.0.0", self._published / name)
        self._answers |= real_answers(self._published)

    def fleet(self, scenario: Scenario) -> FleetServer:
        """A server of its own, which knows the device."""
        fleet = FleetServer(like=self._enrolled_at[scenario.old])
        fleet.poll_after_s = 0.2
        return fleet

    def answer(self, releases: tuple[str, ...]) -> str | None:
        """What the model "home" of a set answers to the question; None if the set is empty."""
        return self._answers[releases[-1]] if releases else None

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

    def _make_template(self, scenario: Scenario) -> Path:
        old = scenario.old
        fleet, state_dir = FleetServer(like=self._catalogue), self.directory / "-".join(("template", *old))
        revision = self.want(fleet, old) if old else 0
        notes = self.directory / f"{state_dir.name}.notes"
        notes.mkdir()
        agent = ForkedAgent(state_dir, fleet.url, {"token": fleet.token} | scenario.settings)
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
