"""What this device says of itself: its hardware, the report to the fleet, the status for people. Decides nothing."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from edge_agent.host import Host
from edge_agent.protocol import DesiredState, DeviceReport, Hardware, Problem, Progress, ReleaseRef
from edge_agent.quarantine import MOST_CRASHES
from edge_agent.served import Model
from edge_agent.states import Entry
from edge_agent.trust import Identity


def agent_version() -> str:
    """The version of the installed package; of the source tree where it isn't installed."""
    try:
        return version("socle")
    except PackageNotFoundError:
        return "0.1.0"


def hardware() -> Hardware:
    """Machine, cores and memory."""
    return Hardware(
        machine=platform.machine(),
        cpu_count=os.cpu_count() or 1,
        memory_bytes=total_memory_bytes(),
        system=f"{platform.system()} {platform.release()}",
        cpu_model=_cpu_model(),
    )


def total_memory_bytes() -> int:
    """All memory of the machine."""
    return int(psutil.virtual_memory().total)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


class Device:
    """An identity with the hardware that it runs on."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self._hardware = hardware()
        self._started_at_s = time.time()

    def report(self, entry: Entry, progress: Progress | None, host: Host, free_disk_bytes: int) -> DeviceReport:
        """What the device has, for the fleet."""
        served = entry.served
        return DeviceReport(
            device_id=self.identity.device_id,
            state=entry.state,
            revision=served.revision if served else 0,
            target_revision=entry.target.revision if entry.target else 0,
            agent_version=agent_version(),
            hardware=self._hardware,
            sent_at_s=time.time(),
            base=served.base if served else None,
            adapters=served.adapters if served else (),
            problem=_problem(entry, host),
            progress=progress,
            engine={key: str(value) for key, value in _engine(host).items() if not isinstance(value, dict)},
            free_disk_bytes=free_disk_bytes,
            free_memory_bytes=int(psutil.virtual_memory().available),
            engine_restarts=host.num_restarts,
            quarantined=_quarantined(served, host),
            memory_bytes=host.served.child.memory_bytes if host.served else {},
        )

    def status(self, entry: Entry, progress: Progress | None, host: Host) -> dict[str, Any]:
        """What the device has, for people."""
        problem = _problem(entry, host)
        return {
            "agent": {"version": agent_version(), "pid": os.getpid(), "started_at_s": self._started_at_s},
            "device": asdict(self.identity),
            "state": entry.state,
            "has": _set(entry.served),
            "wants": _set(entry.target),
            "problem": asdict(problem) if problem else None,
            "attempt": entry.attempt,
            "progress": asdict(progress) if progress else None,
            "engine": dict(_engine(host)),
            "businesses": [_business(model) for model in host.models],
            "quarantined": list(_quarantined(entry.served, host)),
        }


def _engine(host: Host) -> Mapping[str, Any]:
    served = host.served
    if served is None:
        return {"state": "down", "why": host.why_down, "restarts": host.num_restarts}
    return {
        "state": "serving",
        "pid": served.child.pid,
        "backend": served.child.backend,
        "pss_bytes": served.child.pss_bytes(),
        "in_flight": host.num_in_flight,
        "waiting": served.child.num_waiting,
        "memory_bytes": dict(served.child.memory_bytes),
        "restarts": host.num_restarts,
    }


def _business(model: Model) -> dict[str, Any]:
    business = model.profile.business
    return {"model": model.name, **asdict(business)}


def _problem(entry: Entry, host: Host) -> Problem | None:
    """What is wrong by what the device knows of itself; the first that holds."""
    return entry.problem or host.problem or _not_run(entry.served, host)


def _not_run(served: DesiredState | None, host: Host) -> Problem | None:
    names = [ref.name for ref in served.adapters if ref.digest in host.quarantine] if served else []
    if not names:
        return None
    return Problem(
        "adapter_quarantined",
        f"{', '.join(names)} took the engine down {MOST_CRASHES} times and does not run any more: "
        "look at the agent's log, then roll out another version.",
    )


def _quarantined(served: DesiredState | None, host: Host) -> tuple[str, ...]:
    """Digests of the served set's adapters that are not run."""
    return tuple(ref.digest for ref in served.adapters if ref.digest in host.quarantine) if served else ()


def _set(desired: DesiredState | None) -> dict[str, Any] | None:
    if desired is None:
        return None
    return {
        "revision": desired.revision,
        "base": desired.base and _release(desired.base),
        "adapters": [_release(ref) for ref in desired.adapters],
    }


def _release(ref: ReleaseRef) -> dict[str, str]:
    return {"name": ref.name, "version": ref.version, "digest": ref.digest}
