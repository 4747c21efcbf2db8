"""What an engine may take: bounded by the machine, and by each control group around the agent."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from edge_agent.memory import available_bytes, control_groups, engine_budget_bytes

MIB = 1 << 20


def make_group(folder: Path, limit: str, used_bytes: int, cached_bytes: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used_bytes}\n")
    (folder / "memory.stat").write_text(f"anon 1\nactive_file {cached_bytes // 2}\ninactive_file {cached_bytes // 2}\n")
    return folder


def test_machine_bounds_where_no_group_does(tmp_path: Path) -> None:
    unlimited = make_group(tmp_path / "group", "max", 10 * MIB)
    for groups in ([], [unlimited], [tmp_path / "missing"]):
        assert available_bytes(groups) == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_files_that_are_only_cached_count_as_free(tmp_path: Path) -> None:
    group = make_group(tmp_path / "group", str(100 * MIB), used_bytes=90 * MIB, cached_bytes=60 * MIB)
    assert available_bytes([group]) == 70 * MIB
    assert engine_budget_bytes([group]) == 63 * MIB


def test_the_narrowest_group_counts(tmp_path: Path) -> None:
    outer = make_group(tmp_path / "outer", str(50 * MIB), used_bytes=30 * MIB)
    inner = make_group(tmp_path / "outer" / "inner", str(90 * MIB), used_bytes=10 * MIB)
    assert available_bytes([inner, outer]) == 20 * MIB


def test_group_over_its_limit_leaves_nothing(tmp_path: Path) -> None:
    assert available_bytes([make_group(tmp_path / "group", str(MIB), used_bytes=2 * MIB)]) == 0


@pytest.mark.parametrize(
    ("named", "wanted"),
    [
        ("0::/\n", ["."]),
        ("0::/system.slice/socle.service\n", ["system.slice/socle.service", "system.slice", "."]),
        ("4:memory:/old\n0::/new\n", ["new", "."]),
        ("4:memory:/old\n", ["."]),
    ],
)
def test_own_group_and_those_around_it(tmp_path: Path, named: str, wanted: list[str]) -> None:
    own = tmp_path / "cgroup"
    own.write_text(named)
    mount = tmp_path / "mount"
    assert control_groups(own, mount) == [mount / path for path in wanted]


def test_no_groups_where_the_system_has_none(tmp_path: Path) -> None:
    assert control_groups(tmp_path / "missing", tmp_path) == []
