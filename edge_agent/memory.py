"""How much memory a new process may take: what the machine has to spare, and what the agent's control group leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import psutil

_MOUNT: Final = Path("/sys/fs/cgroup")
_OWN_GROUP: Final = Path("/proc/self/cgroup")
_ENGINE_SHARE: Final = 0.9  # the rest is for the agent, and for what others take meanwhile


def available_bytes(groups: list[Path] | None = None) -> int:
    """Bytes that can be taken without anybody being killed; cached files count as free.

    `groups` are the folders of the control groups (version 2) that limit this process: its own and those around it.
    """
    left = [_left_bytes(group) for group in (control_groups() if groups is None else groups)]
    return min([int(psutil.virtual_memory().available), *(number for number in left if number is not None)])


def engine_budget_bytes(groups: list[Path] | None = None) -> int:
    """What an engine may take that is started now."""
    return int(_ENGINE_SHARE * available_bytes(groups))


def control_groups(own: Path = _OWN_GROUP, mount: Path = _MOUNT) -> list[Path]:
    """The folders of this process' control group and of those around it; none where there are no control groups."""
    try:
        named = [line[3:] for line in own.read_text().splitlines() if line.startswith("0::/")]
    except OSError:
        return []
    group = mount / named[0].lstrip("/") if named else mount
    return [group, *(parent for parent in group.parents if parent.is_relative_to(mount))]


def _left_bytes(group: Path) -> int | None:
    """What the group's limit leaves; None where it has none."""
    try:
        limit_bytes = int((group / "memory.max").read_text())
        used_bytes = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        cached_bytes = int(stat["active_file"]) + int(stat["inactive_file"])
    except (OSError, ValueError, KeyError):
        return None  # no such group, no limit ("max"), or not version 2
    return max(0, limit_bytes - used_bytes + cached_bytes)
