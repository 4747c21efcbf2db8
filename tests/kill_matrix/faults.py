"""Faults at named points of an agent process: wraps what the agent calls, from outside.

A point is an operation in a state of the update machine: "verifying rename bundles/*", the n-th of its kind. Operations
are those that change the disk (under the state directory), the journal's writes, and the steps of a switch. The agent
itself knows nothing of this.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import inspect
import io
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from edge_agent import host, updater
from edge_agent.engine_child import EngineChild
from edge_agent.host import Host
from edge_agent.journal import Journal
from edge_agent.part_file import PartFile
from tests.kill_matrix.power import Power

_QUIET = re.compile(r"^\.?(status\.json|api\.json|run|spool|quarantine\.json|prompt-cache|agent\.lock)")
"""What the agent writes beside an update, at times of its own."""


@dataclass(frozen=True, slots=True)
class Point:
    """A place in an update: the n-th operation of its kind in a state."""

    state: str
    operation: str
    object: str
    nth: int = 1

    def __str__(self) -> str:
        nth = f" #{self.nth}" if self.nth > 1 else ""
        return f"{self.state}: {self.operation} {self.object}{nth}"


class Side(StrEnum):
    """When, as seen from the operation."""

    BEFORE = "before"
    AFTER = "after"


class Act(StrEnum):
    """What happens at the point.

    A server that is gone, metadata that expires and a second agent come while the agent is held there. A disk that is
    read-only at the start is so for the agent that is started after a kill there.
    """

    KILL = "kill"
    BOOT_LOOP = "boot loop"
    POWER_LOSS = "power loss"
    SERVER_GONE = "server gone"
    METADATA_EXPIRED = "metadata expired"
    METADATA_OUTLIVED = "metadata outlived"
    SECOND_AGENT = "second agent"
    FAIL = "error"
    DISK_FULL = "disk full"
    READ_ONLY = "read-only"
    READ_ONLY_AT_START = "read-only at start"
    CLOCK_FORWARD = "clock +10 years"
    CLOCK_BACK = "clock -10 years"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, or none: then the points that are reached are written down.

    `notes` is a directory: `trace` in it has the points, `struck` is there once the fault has come, and errors of the
    disk last until `over` is there.
    """

    notes: Path
    act: Act | None = None
    point: Point | None = None
    side: Side = Side.BEFORE
    is_short_of_memory: bool = False
    """There is no room for two engines at a time."""
    is_read_only: bool = False
    """The disk is read-only from the beginning."""


class Injector:
    """Sits between the agent and what it calls."""

    def __init__(self, state_dir: Path, fault: Fault) -> None:
        self.root = state_dir
        self.state = "idle"
        self._fault = fault
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._disk_error = errno.EROFS if fault.is_read_only else None
        self.power = Power(state_dir, fault.notes) if fault.act is Act.POWER_LOSS else None
        self._trace = (fault.notes / "trace").open("a", buffering=1) if fault.act is None else None

    def reached(self, operation: str, thing: str) -> Point:
        """Count an operation that is about to happen."""
        key = (self.state, operation, thing)
        self._counts[key] += 1
        point = Point(*key, self._counts[key])
        if self._trace:
            self._trace.write(json.dumps(asdict(point)) + "\n")
        return point

    def strike(self, point: Point, side: Side) -> None:
        """Do what the fault says, if this is its point."""
        fault = self._fault
        if fault.act is None or (fault.point, fault.side) != (point, side):
            return
        (fault.notes / "struck").touch()
        match fault.act:
            case Act.KILL | Act.BOOT_LOOP | Act.READ_ONLY_AT_START:
                os.kill(os.getpid(), signal.SIGKILL)
            case Act.POWER_LOSS:
                assert self.power is not None
                self.power.lose()
                os.kill(os.getpid(), signal.SIGKILL)
            case Act.SERVER_GONE | Act.SECOND_AGENT | Act.METADATA_EXPIRED | Act.METADATA_OUTLIVED:
                os.kill(os.getpid(), signal.SIGSTOP)
            case Act.FAIL:
                raise OSError(errno.EIO, "Input/output error")
            case Act.DISK_FULL:
                self._disk_error = errno.ENOSPC
            case Act.READ_ONLY:
                self._disk_error = errno.EROFS
            case Act.CLOCK_FORWARD | Act.CLOCK_BACK:
                _shift_clock(10 * 365 * 86400 * (1 if fault.act is Act.CLOCK_FORWARD else -1))

    def check_disk(self, *, frees: bool = False) -> None:
        """Raise while the disk takes nothing; what frees space works on a full disk."""
        if self._disk_error is None or (frees and self._disk_error == errno.ENOSPC):
            return
        if (self._fault.notes / "over").exists():
            self._disk_error = None
            return
        raise OSError(self._disk_error, os.strerror(self._disk_error))

    def label(self, path: str | os.PathLike[str] | int) -> str | None:
        """A path below the state directory with digests left out; None for what does not belong to an update."""
        try:
            where = Path(f"/proc/self/fd/{path}").readlink() if isinstance(path, int) else Path(path)
            inside = where.relative_to(self.root).as_posix()
        except (OSError, ValueError):
            return None
        return None if _QUIET.match(inside) else re.sub(r"[0-9a-f]{64}", "*", inside)

    def is_ours(self, path: str | os.PathLike[str] | int) -> bool:
        return not isinstance(path, int) and os.fspath(path).startswith(str(self.root))


def _shift_clock(by_s: float) -> None:
    real = time.time
    time.time = lambda: real() + by_s


def install(state_dir: Path, fault: Fault) -> None:
    """Wrap everything."""
    injector = Injector(state_dir, fault)
    if fault.is_short_of_memory:
        host.available_bytes = lambda: 0
    for name in ("fsync", "link", "rename", "replace", "unlink", "mkdir"):
        setattr(os, name, _around_disk(injector, name, getattr(os, name)))
    os.open = _around_open(injector, os.open, lambda flags: flags & (os.O_WRONLY | os.O_RDWR))
    io.open = _around_open(injector, io.open, lambda mode: set(mode) & set("wax+"))
    Journal.write = _around_journal(injector, Journal.write)
    PartFile.land = _around_landing(injector, PartFile.land)
    for owner, name in (
        (Host, "stage"),
        (Host, "activate"),
        (Host, "discard"),
        (Host, "_exchange"),
        (EngineChild, "start"),
        (EngineChild, "load_adapter"),
        (updater, "probe"),
    ):
        thing = owner.__name__.rpartition(".")[2]
        setattr(owner, name, _around_step(injector, thing, name, inspect.getattr_static(owner, name)))


def _around_disk(injector: Injector, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(real)
    def wrapped(path: Any, *rest: Any, **options: Any) -> Any:
        if name == "mkdir" and Path(path).is_dir():
            return real(path, *rest, **options)  # changes nothing
        if injector.is_ours(path):
            injector.check_disk(frees=name == "unlink")
        label = injector.label(rest[0] if name in ("rename", "replace", "link") else path)
        if label is None:
            return real(path, *rest, **options)
        point = injector.reached(name, label)
        injector.strike(point, Side.BEFORE)
        if injector.is_ours(path):
            injector.check_disk(frees=name == "unlink")
        if injector.power:
            injector.power.note(name, path, *rest)
        try:
            return real(path, *rest, **options)
        finally:  # what was not there to be removed, or was there already, counts as well
            injector.strike(point, Side.AFTER)

    return wrapped


def _around_open(injector: Injector, real: Callable[..., Any], writes: Callable[[Any], object]) -> Callable[..., Any]:
    """A disk that takes nothing fails when a file is opened to be written."""

    @functools.wraps(real)
    def wrapped(path: Any, how: Any = "r", *rest: Any, **options: Any) -> Any:
        if not isinstance(path, int) and injector.is_ours(path) and writes(how):
            injector.check_disk()
        return real(path, how, *rest, **options)

    return wrapped


def _around_journal(injector: Injector, real: Callable[..., None]) -> Callable[..., None]:
    """Also tells which state it is: the journal is written before anything of that state happens."""

    def wrapped(journal: Journal, entry: Any) -> None:
        if entry.state != injector.state:
            injector.state = entry.state
        point = injector.reached("write", "journal")
        injector.strike(point, Side.BEFORE)
        real(journal, entry)
        injector.strike(point, Side.AFTER)

    return wrapped


def _around_landing(injector: Injector, real: Callable[..., bool]) -> Callable[..., bool]:
    """A chunk comes to its place in a file."""

    def wrapped(part: PartFile, place: Any, stored: Any) -> bool:
        point = injector.reached("land", str(injector.label(part.path)))
        injector.strike(point, Side.BEFORE)
        injector.check_disk()
        landed = real(part, place, stored)
        injector.strike(point, Side.AFTER)
        return landed

    return wrapped


def _around_step(injector: Injector, owner: str, name: str, found: Any) -> Any:
    """A step of a switch, a coroutine or not."""
    real = found.__func__ if isinstance(found, classmethod) else found

    @functools.wraps(real)
    async def waited(*args: Any, **options: Any) -> Any:
        point = injector.reached(name.strip("_"), owner)
        injector.strike(point, Side.BEFORE)
        try:
            return await real(*args, **options)
        finally:
            injector.strike(point, Side.AFTER)

    @functools.wraps(real)
    def called(*args: Any, **options: Any) -> Any:
        point = injector.reached(name.strip("_"), owner)
        injector.strike(point, Side.BEFORE)
        try:
            return real(*args, **options)
        finally:
            injector.strike(point, Side.AFTER)

    wrapped = waited if asyncio.iscoroutinefunction(real) else called
    return classmethod(wrapped) if isinstance(found, classmethod) else wrapped
