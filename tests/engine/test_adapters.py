from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from engine.adapters import ResidentAdapters
from engine.artifact import ADAPTER_WEIGHTS
from engine.errors import BundleError, CapacityError, UnknownAdapterError
from engine.ledger import Caps, Kind, Ledger


class Loader:
    """Takes twice the disk size, as back ends that hold dense matrices take more."""

    def __init__(self, disk_bytes):
        self.disk_bytes = disk_bytes
        self.loaded = set()
        self.loads = []

    def load_adapter(self, digest, bundle):
        assert digest not in self.loaded
        if bundle.name == "damaged":
            raise BundleError("damaged")
        self.loaded.add(digest)
        self.loads.append(digest)
        return 2 * self.disk_bytes[digest]

    def unload_adapter(self, digest):
        self.loaded.remove(digest)


def ledger_of(budget_bytes, total_bytes=None):
    return Ledger(Caps(total_bytes, {Kind.ADAPTERS: budget_bytes}))


def resident(sizes, budget_bytes):
    loader = Loader(sizes)
    adapters = ResidentAdapters(loader, ledger_of(budget_bytes))
    for digest, size in sizes.items():
        adapters.add(digest, Path(digest), size)
    return adapters, loader


def test_the_least_recently_used_goes_first_and_comes_back_when_asked_for():
    adapters, loader = resident({"a": 10, "b": 10}, budget_bytes=40)
    adapters.pin("a")
    adapters.unpin("a")
    loader.disk_bytes["c"] = 10
    adapters.add("c", Path("c"), 10)
    assert adapters.resident == ("a", "c")
    adapters.pin("b")
    assert adapters.resident == ("c", "b")
    assert loader.loads == ["a", "b", "c", "b"]
    assert loader.loaded == {"b", "c"}
    assert adapters.resident_bytes == 40


def test_pinned_adapters_stay():
    adapters, _ = resident({"a": 10, "b": 10, "c": 10}, budget_bytes=40)
    adapters.pin("b")
    adapters.pin("c")
    with pytest.raises(CapacityError, match="40 bytes"):
        adapters.pin("a")
    assert set(adapters.resident) == {"b", "c"}
    adapters.unpin("b")
    adapters.pin("a")
    assert set(adapters.resident) == {"a", "c"}


def test_an_adapter_that_never_fits_evicts_nobody_and_stays_unknown():
    adapters, loader = resident({"a": 10}, budget_bytes=40)
    loader.disk_bytes["big"] = 50
    with pytest.raises(CapacityError):
        adapters.add("big", Path("big"), 50)
    assert adapters.resident == ("a",)
    assert "big" not in adapters


def test_an_adapter_that_turns_out_too_big_in_memory_is_taken_out_again():
    adapters, loader = resident({}, budget_bytes=40)
    loader.disk_bytes["big"] = 30
    with pytest.raises(CapacityError):
        adapters.add("big", Path("big"), 30)
    assert loader.loaded == set()
    assert adapters.resident_bytes == 0


def test_a_damaged_adapter_stays_unknown():
    adapters, _ = resident({}, budget_bytes=40)
    with pytest.raises(BundleError):
        adapters.add("a", Path("damaged"), 10)
    assert "a" not in adapters


def test_adding_again_loads_nothing_and_forgets_nothing():
    adapters, loader = resident({"a": 10, "b": 20}, budget_bytes=40)
    adapters.pin("b")
    assert adapters.resident == ("b",)
    adapters.add("a", Path("a"), 10)
    assert loader.loads == ["a", "b"]
    assert "a" in adapters


def test_removal_is_refused_while_in_use():
    adapters, loader = resident({"a": 10}, budget_bytes=40)
    adapters.pin("a")
    with pytest.raises(CapacityError, match="1 requests use"):
        adapters.remove("a")
    adapters.unpin("a")
    adapters.remove("a")
    assert loader.loaded == set()
    with pytest.raises(UnknownAdapterError):
        adapters.pin("a")


def test_of_idle_adapters_those_of_the_lowest_priority_go_first():
    adapters, loader = resident({"a": 10, "b": 10}, budget_bytes=40)
    for digest, priority in (("a", 1), ("b", 0)):
        adapters.pin(digest, priority)
        adapters.unpin(digest)
    loader.disk_bytes["c"] = 10
    adapters.add("c", Path("c"), 10)
    assert adapters.resident == ("a", "c")


def test_other_memory_is_reclaimed_where_evicting_is_not_enough():
    loader, ledger, asked = Loader({"a": 10, "b": 10}), ledger_of(100, total_bytes=60), []

    def reclaim(size_bytes):
        asked.append(size_bytes)
        ledger.release(Kind.PREFIX_CACHE, size_bytes)
        return True

    adapters = ResidentAdapters(loader, ledger, reclaim)
    adapters.add("a", Path("a"), 20)
    adapters.pin("a")
    ledger.reserve(Kind.PREFIX_CACHE, 30)
    adapters.add("b", Path("b"), 20)
    assert asked == [10]
    assert set(adapters.resident) == {"a", "b"}


def test_nothing_is_evicted_or_reclaimed_where_the_cap_of_adapters_is_in_the_way():
    loader = Loader({"a": 10, "b": 10, "big": 50})
    adapters = ResidentAdapters(loader, ledger_of(60, total_bytes=110), lambda _: pytest.fail("it cannot help"))
    for digest in ("a", "b"):
        adapters.add(digest, Path(digest), 20)
    adapters.pin("a")
    with pytest.raises(CapacityError, match="does not fit"):
        adapters.add("big", Path("big"), 100)
    assert set(adapters.resident) == {"a", "b"}


def test_idle_adapters_make_room_for_others_and_pinned_ones_do_not():
    adapters, _ = resident({"a": 10, "b": 10, "c": 10}, budget_bytes=60)
    adapters.pin("a")
    assert adapters.idle_bytes == 40
    assert not adapters.shrink(41)
    assert len(adapters.resident) == 3
    assert adapters.shrink(1)
    assert adapters.resident == ("c", "a")
    assert adapters.shrink(-5)
    assert adapters.idle_bytes == 20


@pytest.mark.parametrize("change", ["written to", "replaced"])
def test_an_evicted_adapter_does_not_come_back_out_of_a_file_that_has_changed(tmp_path, change):
    file = tmp_path / ADAPTER_WEIGHTS
    file.write_bytes(b"old")
    adapters = ResidentAdapters(Loader({"a": 10}), ledger_of(40))
    adapters.add("a", tmp_path, 10)
    adapters.shrink(1)
    adapters.pin("a")
    adapters.unpin("a")
    adapters.shrink(1)
    if change == "replaced":
        file.rename(tmp_path / "aside")  # so that its inode is not given to the next
    file.write_bytes(b"newer")
    with pytest.raises(BundleError, match="has changed"):
        adapters.pin("a")
    assert adapters.resident == ()
    adapters.remove("a")
    adapters.add("a", tmp_path, 10)
    assert adapters.resident == ("a",)


class Residency(RuleBasedStateMachine):
    """Whatever happens: the budget holds, pinned adapters are resident, and the loader agrees."""

    budget_bytes = 100
    pins = Bundle("pins")

    def __init__(self):
        super().__init__()
        self.loader = Loader({str(i): 5 * (i + 1) for i in range(8)})
        self.ledger = ledger_of(self.budget_bytes)
        self.adapters = ResidentAdapters(self.loader, self.ledger)
        self.pinned = []

    @rule(digest=st.sampled_from([str(i) for i in range(8)]))
    def add(self, digest):
        try:
            self.adapters.add(digest, Path(digest), self.loader.disk_bytes[digest])
        except CapacityError:
            assert digest not in self.adapters

    @rule(target=pins, digest=st.sampled_from([str(i) for i in range(8)]))
    def pin(self, digest):
        try:
            self.adapters.pin(digest)
        except (CapacityError, UnknownAdapterError):
            return None
        self.pinned.append(digest)
        return digest

    @rule(digest=consumes(pins))
    def unpin(self, digest):
        if digest is not None:
            self.pinned.remove(digest)
            self.adapters.unpin(digest)

    @rule(digest=st.sampled_from([str(i) for i in range(8)]))
    def remove(self, digest):
        try:
            self.adapters.remove(digest)
        except CapacityError:
            assert digest in self.pinned
        except UnknownAdapterError:
            assert digest not in self.adapters

    @invariant()
    def budget_and_pins_hold(self):
        assert self.adapters.resident_bytes == self.ledger.reserved_bytes(Kind.ADAPTERS) <= self.budget_bytes
        assert set(self.pinned) <= set(self.adapters.resident) == self.loader.loaded
        assert set(self.adapters.resident) <= set(self.adapters)


TestResidency = Residency.TestCase
TestResidency.settings = settings(max_examples=40, stateful_step_count=30)
