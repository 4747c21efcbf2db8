from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from engine.adapters import ResidentAdapters
from engine.errors import BundleError, CapacityError, UnknownAdapterError


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


def resident(sizes, budget_bytes):
    loader = Loader(sizes)
    adapters = ResidentAdapters(loader, budget_bytes=budget_bytes)
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


class Residency(RuleBasedStateMachine):
    """Whatever happens: the budget holds, pinned adapters are resident, and the loader agrees."""

    budget_bytes = 100
    pins = Bundle("pins")

    def __init__(self):
        super().__init__()
        self.loader = Loader({str(i): 5 * (i + 1) for i in range(8)})
        self.adapters = ResidentAdapters(self.loader, budget_bytes=self.budget_bytes)
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
        assert self.adapters.resident_bytes <= self.budget_bytes
        assert set(self.pinned) <= set(self.adapters.resident) == self.loader.loaded
        assert set(self.adapters.resident) <= set(self.adapters)


TestResidency = Residency.TestCase
TestResidency.settings = settings(max_examples=40, stateful_step_count=30)
