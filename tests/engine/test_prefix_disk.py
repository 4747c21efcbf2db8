"""Cached prefixes on the disk, whatever happens to the files and to the process."""

import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.prefix_disk import Disk, StoredBlock

ROOT = Path(__file__).resolve().parents[2]
SCOPE = {"business": "home", "adapter": "x"}
ROOT_DIGEST = "root"


@dataclass(frozen=True)
class Bytes:
    data: np.ndarray


def block(seed, size=1000):
    return Bytes(np.random.default_rng(seed).integers(0, 256, size, np.uint8))


class Clock:
    def __init__(self):
        self.now_s = 1e9

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def open_disk(tmp_path, clock):
    disks = []

    def open_disk(**changes):
        settings = {"quota_bytes": 1 << 20, "max_age_s": 1000.0, "clock": clock} | changes
        disks.append(Disk(tmp_path / "cache", **settings))
        return disks[-1]

    yield open_disk
    for disk in disks:
        disk.close()


def write(disk, name, parent=ROOT_DIGEST, *, scope=SCOPE, data=None, tokens=(1, 2)):
    """Write a block and wait for it."""
    stored = StoredBlock(name, parent, tuple(tokens))
    return disk.write(_digest(scope), scope, stored, data or block(len(name))).result()


def _digest(scope):
    return "-".join(map(str, scope.values()))


def names(disk, scope=SCOPE):
    return [stored.digest for stored in disk.blocks(_digest(scope), scope)]


def read(disk, name, scope=SCOPE):
    data = disk.read(_digest(scope), name)
    return None if data is None else data.tobytes()


def files(tmp_path):
    return sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_blocks_survive_a_restart_and_come_parents_first(open_disk):
    disk = open_disk()
    for name, parent in (("c", "b"), ("a", ROOT_DIGEST), ("b", "a")):
        assert write(disk, name, parent, data=block(ord(name)))
    disk.close()
    again = open_disk()
    assert names(again) == ["a", "b", "c"]
    assert [read(again, name) for name in "abc"] == [block(ord(name)).data.tobytes() for name in "abc"]
    assert again.blocks("home-x", SCOPE)[1] == StoredBlock("b", "a", (1, 2))


def test_scopes_do_not_see_each_other(open_disk):
    disk = open_disk()
    other = {"business": "car", "adapter": "x"}
    write(disk, "a")
    assert (names(disk, other), read(disk, "a", other)) == ([], None)
    assert read(disk, "a") is not None


def test_a_file_that_was_put_into_another_scope_or_under_another_name_is_deleted(open_disk, tmp_path):
    disk = open_disk()
    write(disk, "a")
    (source,) = files(tmp_path)
    foreign, renamed = tmp_path / "cache" / "car-x" / source.name, source.with_name("b.block")
    foreign.parent.mkdir()
    for target in (foreign, renamed):
        target.write_bytes(source.read_bytes())
    assert read(disk, "b") is None
    renamed.write_bytes(source.read_bytes())
    assert names(disk, {"business": "car", "adapter": "x"}) == []
    assert names(disk) == ["a"]
    assert files(tmp_path) == [source]


@settings(max_examples=40)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_never_gives_other_bytes(tmp_path_factory, place, bit):
    folder = tmp_path_factory.mktemp("flip") / "cache"
    disk = Disk(folder, quota_bytes=1 << 20, max_age_s=1000.0)
    write(disk, "a", data=block(0, 100))
    disk.close()
    (path,) = folder.rglob("*.block")
    damaged = bytearray(path.read_bytes())
    damaged[int(place * len(damaged))] ^= 1 << bit
    path.write_bytes(damaged)
    disk = Disk(folder, quota_bytes=1 << 20, max_age_s=1000.0)
    names(disk)
    assert read(disk, "a") in (None, block(0, 100).data.tobytes())
    disk.close()


def test_a_cut_or_longer_file_is_no_block(open_disk, tmp_path):
    disk = open_disk()
    write(disk, "a", data=block(0, 100))
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    for data in (*(whole[:length] for length in range(0, len(whole), 7)), whole[:-1], whole + b"x"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        assert read(disk, "a") is None
        assert not path.exists()


CRASH = """
import os, sys
from pathlib import Path
import numpy as np
from engine.prefix_disk import Disk, StoredBlock
class Bytes:
    data = np.zeros(100_000, np.uint8)
disk = Disk(Path(sys.argv[1]), quota_bytes=1 << 20, max_age_s=1000.0)
write = lambda name: disk.write("home-x", {"business": "home", "adapter": "x"}, StoredBlock(name, "root", (1,)), Bytes)
write("a").result()
os.fsync = lambda _: os._exit(9)
write("b").result()
"""


def test_a_crash_in_the_middle_of_a_write_leaves_what_was_whole_and_nothing_else(open_disk, tmp_path, clock):
    clock.now_s = (tmp_path.stat().st_mtime) + 10
    child = subprocess.run([sys.executable, "-c", CRASH, tmp_path / "cache"], cwd=ROOT, check=False)
    assert child.returncode == 9
    assert len(files(tmp_path)) == 2
    disk = open_disk()
    assert names(disk) == ["a"]
    assert [path.name for path in files(tmp_path)] == ["a.block"]
    assert read(disk, "b") is None


def test_the_quota_holds_at_every_moment_and_the_least_recently_used_go(open_disk, tmp_path, clock):
    disk = open_disk(quota_bytes=4000)
    for name in "abcdef":
        clock.now_s += 1
        write(disk, name)
        disk.touch("home-x", ["a"])
        assert sum(path.stat().st_size for path in files(tmp_path)) <= 4000
    disk.close()
    assert names(open_disk()) == ["a", "e", "f"]


def test_a_quota_that_was_lowered_holds_from_the_start(open_disk, tmp_path):
    disk = open_disk()
    for name in "abcdef":
        write(disk, name)
    disk.close()
    open_disk(quota_bytes=2500)
    assert len(files(tmp_path)) == 2


def test_of_blocks_used_together_the_later_ones_go_first(open_disk):
    """A block is of no use without those before it."""
    disk = open_disk(quota_bytes=4000)
    for name, parent in (("a", ROOT_DIGEST), ("b", "a"), ("c", "b")):
        write(disk, name, parent)
    disk.touch("home-x", ["c", "b", "a"])
    write(disk, "z")
    assert set(names(disk)) == {"a", "b", "z"}


def test_what_never_fits_is_not_written(open_disk, tmp_path):
    disk = open_disk(quota_bytes=1500)
    assert write(disk, "a")
    assert not write(disk, "b", data=block(0, 2000))
    assert not write(open_disk(quota_bytes=0), "c")
    assert all(path.name != "b.block" for path in files(tmp_path))


def test_what_was_not_used_for_long_goes(open_disk, tmp_path, clock):
    disk = open_disk(max_age_s=1000.0)
    write(disk, "old")
    write(disk, "used")
    clock.now_s += 900
    disk.touch("home-x", ["used"])
    write(disk, "after it")  # what is done in the background is done in order
    clock.now_s += 200
    assert read(disk, "old") is None
    assert read(disk, "used") is not None
    write(disk, "older still", scope={"business": "car", "adapter": "x"})
    clock.now_s += 2000
    disk.close()
    open_disk()
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_engine_that_runs_for_long_deletes_what_is_old_as_it_writes(open_disk, tmp_path, clock):
    disk = open_disk(max_age_s=1000.0)
    write(disk, "old")
    clock.now_s += 1001
    write(disk, "new")
    assert [path.name for path in files(tmp_path)] == ["new.block"]


def test_a_disk_that_refuses_costs_the_cache_and_nothing_else(open_disk, tmp_path):
    disk = open_disk()
    (tmp_path / "cache").write_bytes(b"in the way")
    assert write(disk, "a") is False
    assert names(disk) == []
    (tmp_path / "cache").unlink()
    assert write(disk, "a")


def test_only_the_owner_may_read(open_disk, tmp_path):
    write(open_disk(), "a")
    (path,) = files(tmp_path)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_forgetting_an_adapter_deletes_its_blocks_of_every_business_and_no_others(open_disk):
    """Also of businesses that were not served since the start."""
    disk = open_disk()
    scopes = [
        {"business": business, "adapter": adapter} for business in ("home", "car") for adapter in ("x", "y", None)
    ]
    for scope in scopes:
        write(disk, "a", scope=scope)
    disk.close()
    disk = open_disk()
    disk.forget("x")
    disk.close()
    again = open_disk()
    assert [names(again, scope) for scope in scopes] == [[], ["a"], ["a"]] * 2


def test_what_follows_nothing_and_what_follows_itself_is_left_out_or_comes_late(open_disk):
    disk = open_disk()
    for name, parent in (("ring-1", "ring-2"), ("ring-2", "ring-1"), ("self", "self"), ("a", ROOT_DIGEST)):
        write(disk, name, parent)
    assert names(disk) == ["a"]


def test_a_slow_disk_does_not_pile_blocks_up(open_disk):
    disk, may_write = open_disk(quota_bytes=0), threading.Event()

    class Slow:
        @property
        def data(self):
            may_write.wait(60)
            return np.zeros(8, np.uint8)

    writes = [disk.write("home-x", SCOPE, StoredBlock(str(n), ROOT_DIGEST, (1,)), Slow()) for n in range(300)]
    may_write.set()
    assert 0 < sum(write is not None for write in writes) < 300
