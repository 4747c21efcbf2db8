from __future__ import annotations

from pathlib import Path

import pytest

from edge_agent.journal import Journal, replace_file
from edge_agent.protocol import DesiredState, Problem, ReleaseRef
from edge_agent.states import Entry, State

FIRST = Entry(State.FETCHING, target=DesiredState("dev", 1))
SECOND = Entry(
    State.FAILED,
    served=DesiredState("dev", 1, base=ReleaseRef("base", "1.0.0", "a" * 64)),
    target=DesiredState("dev", 2, adapters=(ReleaseRef("家", "1.0.0", "b" * 64, 12),)),
    problem=Problem("why", "because", {"got": "你好"}),
    attempt=2,
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    Journal(tmp_path).write(SECOND)
    assert Journal(tmp_path).read() == SECOND


def test_a_fresh_device_has_an_empty_entry(tmp_path: Path) -> None:
    assert Journal(tmp_path).read() == Entry()


@pytest.mark.parametrize("num_bytes", [0, 1, 100, -1])
def test_a_torn_file_costs_one_step(tmp_path: Path, num_bytes: int) -> None:
    journal = Journal(tmp_path)
    journal.write(FIRST)
    journal.write(SECOND)
    path = tmp_path / "journal.json"
    path.write_bytes(path.read_bytes()[:num_bytes])
    assert journal.read() == FIRST


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write(FIRST)
    journal.write(SECOND)
    path = tmp_path / "journal.json"
    path.write_bytes(path.read_bytes().replace(b"fetching", b"fetchinh").replace(b"failed", b"idle"))
    assert journal.read() == FIRST


def test_both_files_gone_bad_is_a_fresh_start_not_a_brick(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write(FIRST)
    journal.write(SECOND)
    for name in ("journal.json", "journal.previous.json"):
        (tmp_path / name).write_bytes(b"\0" * 50)
    assert journal.read() == Entry()
    journal.write(SECOND)
    assert journal.read() == SECOND


def test_a_kill_before_the_rename_leaves_the_old_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.write(FIRST)
    renamed = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if target.name == "journal.json":
            raise KeyboardInterrupt
        return renamed(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        journal.write(SECOND)
    assert journal.read() == FIRST


def test_replaced_files_have_their_mode_from_the_start(tmp_path: Path) -> None:
    replace_file(tmp_path / "secret", b"x", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]
