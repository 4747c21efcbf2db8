"""The beginnings of prompts, kept and found again: on blocks that say what they were computed from."""

import threading
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.business import Business
from engine.ledger import Caps, Kind, Ledger
from engine.prefix_cache import PrefixCache, Scope
from engine.prefix_disk import NO_DISK, Disk
from tests.engine.scripted_backend import BLOCK_TOKENS, ScriptedBackend, ScriptedBlock

SCOPE = Scope("home", "base", "adapter", "tokenizer", "template", "numerics")
HOME = Business("home", prompt_cache=True)
BLOCK_BYTES = ScriptedBackend.block_bytes
PROMPT = list(range(1, 21))  # two blocks and a half


def blocks_of(tokens, mark=0):
    starts = range(0, len(tokens), BLOCK_TOKENS)
    return [ScriptedBlock(tuple(tokens[start : start + BLOCK_TOKENS]), mark) for start in starts]


class Cache:
    """A cache with its ledger, and sequences that come and go."""

    def __init__(self, *, blocks=99, total_blocks=99, disk=None, backend=None):
        backend = backend or ScriptedBackend(lambda _ids, _adapter: 0)
        self.ledger = Ledger(Caps(total_blocks * BLOCK_BYTES, {Kind.PREFIX_CACHE: blocks * BLOCK_BYTES}))
        self.cache = PrefixCache(backend, self.ledger, disk or NO_DISK)

    def keep(self, tokens, scope=SCOPE, business=HOME):
        """A sequence of these tokens has ended."""
        lease = self.cache.lookup(scope, business, tokens[:-1])
        self.cache.note_use(lease)
        self.cache.extend(lease, tokens, blocks_of(tokens))
        self.cache.release(lease)

    def find(self, tokens, scope=SCOPE, business=HOME):
        """How many of the tokens are there; what is given is checked token by token."""
        lease = self.cache.lookup(scope, business, tokens)
        found = [token for block in lease.prefix.blocks for token in block.token_ids][: lease.num_tokens]
        assert found == tokens[: lease.num_tokens]
        self.cache.note_use(lease)
        self.cache.release(lease)
        return lease.num_tokens

    @property
    def num_blocks(self):
        assert self.ledger.reserved_bytes(Kind.PREFIX_CACHE) == len(self.cache.blocks) * BLOCK_BYTES
        return len(self.cache.blocks)


@pytest.fixture
def open_disk(tmp_path):
    disks = []

    def open_disk():
        disks.append(Disk(tmp_path / "cache", quota_bytes=1 << 20, max_age_s=1e6))
        return disks[-1]

    yield open_disk
    for disk in disks:
        disk.close()


def test_the_longest_beginning_is_found_also_within_a_block():
    cache = Cache()
    cache.keep(PROMPT)
    assert cache.num_blocks == 3
    assert cache.find(PROMPT) == 20
    assert cache.find([*PROMPT[:18], 99, 98]) == 18
    assert cache.find([*PROMPT[:10], 99]) == 10
    assert cache.find(PROMPT[:3]) == 3
    assert cache.find([99, *PROMPT]) == 0


def test_where_bits_depend_on_cuts_only_whole_blocks_are_found():
    backend = ScriptedBackend(lambda _ids, _adapter: 0)
    backend.cuts_anywhere = False
    cache = Cache(backend=backend)
    cache.keep(PROMPT[:16])
    assert [cache.find(tokens) for tokens in (PROMPT, [*PROMPT[:10], 99], PROMPT[:7])] == [16, 8, 0]


@pytest.mark.parametrize("field", [spec.name for spec in fields(Scope)])
@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_another_scope_never_hits(field, kind, open_disk):
    cache = Cache(disk=open_disk() if kind == "disk" else None)
    cache.keep(PROMPT)
    assert cache.find(PROMPT) == 20
    if kind == "disk":
        cache.cache.close()
        cache = Cache(disk=open_disk())
    others = [replace(SCOPE, **{field: "other"}), replace(SCOPE, **{field: None if field == "adapter" else ""})]
    assert [cache.find(PROMPT, other) for other in others] == [0, 0]
    assert cache.find(PROMPT) == 20


def test_continuations_share_the_blocks_of_their_beginning():
    cache = Cache()
    cache.keep(PROMPT[:16])
    ends = [[*PROMPT[:16], end, end] for end in (50, 60, 70)]
    leases = [cache.cache.lookup(SCOPE, HOME, tokens) for tokens in ends]
    assert len({id(block) for lease in leases for block in lease.prefix.blocks}) == 2
    for lease, tokens in zip(leases, ends, strict=True):
        cache.cache.extend(lease, tokens, blocks_of(tokens))
        cache.cache.release(lease)
    assert cache.num_blocks == 2 + 3
    assert [cache.find(tokens) for tokens in ends] == [18] * 3


def test_a_longer_end_takes_the_place_of_a_shorter_one():
    cache = Cache()
    cache.keep(PROMPT[:18])
    cache.keep(PROMPT)
    assert (cache.num_blocks, cache.find(PROMPT)) == (3, 20)


def test_the_least_recently_used_goes_and_of_a_prompt_its_end_first():
    cache = Cache(blocks=5)
    cache.keep(PROMPT)
    cache.keep([90, *PROMPT[:15]])
    assert cache.find(PROMPT) == 20
    cache.keep([80, *PROMPT[:9]])
    assert (cache.num_blocks, cache.find([90, *PROMPT[:15]])) == (5, 0)
    cache.keep([70, 71])
    assert cache.num_blocks == 5
    assert cache.find(PROMPT) == 16


def test_what_runs_keeps_its_blocks_and_what_comes_is_not_kept():
    cache = Cache(blocks=3)
    cache.keep(PROMPT)
    lease = cache.cache.lookup(SCOPE, HOME, PROMPT)
    cache.keep([90, *PROMPT])
    assert (cache.num_blocks, cache.find([90, *PROMPT])) == (3, 0)
    assert not cache.cache.shrink(1)
    assert cache.cache.idle_bytes() == 0
    cache.cache.release(lease)
    assert cache.cache.idle_bytes() == 3 * BLOCK_BYTES
    cache.keep([90, *PROMPT])
    assert cache.find([90, *PROMPT]) == 21


def test_a_business_makes_room_out_of_its_own_alone():
    small = replace(HOME, memory_bytes=2 * BLOCK_BYTES)
    car = Business("car", prompt_cache=True)
    cache = Cache()
    cache.keep(PROMPT, replace(SCOPE, business="car"), car)
    cache.keep([90, *PROMPT[:15]], business=small)
    cache.keep([80, *PROMPT[:5]], business=small)
    assert cache.ledger.reserved_bytes(business="home") == 2 * BLOCK_BYTES
    assert cache.find(PROMPT, replace(SCOPE, business="car"), car) == 20
    assert (cache.cache.idle_bytes("car"), cache.cache.idle_bytes("home")) == (3 * BLOCK_BYTES, 2 * BLOCK_BYTES)
    assert cache.cache.shrink(BLOCK_BYTES + 1, "home")
    assert not cache.cache.shrink(1, "home")


def test_what_a_running_sequence_shares_goes_over_and_needs_no_room_beside_it():
    cache = Cache(blocks=2, total_blocks=3)
    cache.ledger.reserve(Kind.KV, 3 * BLOCK_BYTES, HOME)
    lease = cache.cache.lookup(SCOPE, HOME, PROMPT)
    moved_bytes = cache.cache.share(lease, PROMPT, blocks_of(PROMPT))
    assert moved_bytes == 2 * BLOCK_BYTES
    assert cache.ledger.reserved_bytes(Kind.KV) == BLOCK_BYTES
    assert cache.num_blocks == 2
    other = cache.cache.lookup(SCOPE, HOME, PROMPT)
    assert other.num_tokens == 16
    assert cache.cache.share(other, PROMPT, blocks_of(PROMPT)[:2]) == 0  # as others did already
    for held in (lease, other):
        cache.cache.release(held)
    assert cache.cache.shrink(2 * BLOCK_BYTES)


def test_nothing_is_kept_without_a_budget():
    cache = Cache(blocks=0)
    cache.keep(PROMPT)
    assert (cache.num_blocks, cache.find(PROMPT)) == (0, 0)


def test_what_was_computed_with_an_adapter_goes_with_it():
    cache = Cache()
    bare = replace(SCOPE, adapter=None)
    cache.keep(PROMPT)
    cache.keep(PROMPT, bare)
    cache.cache.forget("adapter")
    assert (cache.find(PROMPT), cache.find(PROMPT, bare), cache.num_blocks) == (0, 20, 3)


# On the disk


def test_only_what_was_of_use_is_written_and_comes_back_after_a_restart(open_disk):
    cache = Cache(disk=open_disk())
    cache.keep(PROMPT)
    cache.keep([90, *PROMPT])
    assert cache.find([*PROMPT[:16], 55]) == 16
    cache.cache.close()
    again = Cache(disk=open_disk())
    assert (again.find([90, *PROMPT]), again.num_blocks) == (0, 0)
    assert (again.find(PROMPT), again.num_blocks) == (16, 2)


def test_what_had_to_leave_memory_comes_back_from_the_disk(open_disk):
    cache = Cache(disk=open_disk(), blocks=3)
    cache.keep(PROMPT)
    cache.find(PROMPT)
    cache.cache.wait_for_disk()
    cache.keep([90, *PROMPT])
    assert cache.find(PROMPT) == 20
    assert cache.num_blocks == 3


def test_a_block_that_was_not_written_goes_with_the_last_that_follows_it(open_disk):
    disk = open_disk()
    write, writes = disk.write, []

    def write_all_but_the_first(*block):
        writes.append(block)
        return write(*block) if len(writes) > 1 else None

    disk.write = write_all_but_the_first
    cache = Cache(disk=disk)
    cache.keep(PROMPT[:16])
    cache.find(PROMPT)
    cache.cache.wait_for_disk()
    (root,) = cache.cache._roots.values()
    assert cache.cache.shrink(2 * BLOCK_BYTES)
    (first,) = root.children
    assert [first.is_stored, first.children[0].is_stored] == [False, True]
    assert cache.find(PROMPT) == 0
    assert root.children == []


def test_a_block_that_is_being_written_still_counts(open_disk):
    """Its memory is taken until the disk has it."""
    disk = open_disk()
    cache = Cache(disk=disk)
    cache.keep(PROMPT)
    may_write = threading.Event()
    disk._writer.submit(may_write.wait, 60)
    cache.find(PROMPT)
    assert (cache.cache.idle_bytes(), cache.cache.shrink(1)) == (0, False)
    may_write.set()
    cache.cache.wait_for_disk()
    assert cache.cache.shrink(3 * BLOCK_BYTES)
    assert cache.num_blocks == 0


@pytest.mark.parametrize("damage", ["flipped", "gone", "another size"])
def test_a_damaged_block_ends_what_is_found_and_is_kept_anew(open_disk, tmp_path, damage):
    cache = Cache(disk=open_disk())
    cache.keep(PROMPT)
    cache.find(PROMPT)
    second = [node.digest for node in cache.cache._recent if node.tokens == tuple(PROMPT[8:16])]
    cache.cache.close()
    (path,) = (tmp_path / "cache").rglob(f"{second[0]}.block")
    if damage == "flipped":
        data = bytearray(path.read_bytes())
        data[-2] ^= 1
        path.write_bytes(data)
    elif damage == "gone":
        path.unlink()
    disk = open_disk()
    if damage == "another size":
        read = disk.read
        disk.read = lambda scope, name: np.zeros(99, np.uint8) if name == second[0] else read(scope, name)
    again = Cache(disk=disk)
    assert again.find(PROMPT) == 8
    again.keep(PROMPT)
    assert (again.find(PROMPT), again.num_blocks) == (20, 3)


def test_the_tokens_in_a_header_are_not_believed(open_disk, tmp_path):
    cache = Cache(disk=open_disk())
    cache.keep(PROMPT)
    cache.find(PROMPT)
    cache.cache.close()
    for path in (tmp_path / "cache").rglob("*.block"):
        path.write_bytes(path.read_bytes().replace(b"[1,2,3,", b"[1,2,9,"))
    again = Cache(disk=open_disk())
    assert again.find([1, 2, 9, *PROMPT[3:]]) == 0
    assert again.find(PROMPT) == 0


def test_an_adapter_that_goes_leaves_nothing_on_the_disk(open_disk, tmp_path):
    cache = Cache(disk=open_disk())
    cache.keep(PROMPT)
    cache.find(PROMPT)
    cache.cache.close()
    again = Cache(disk=open_disk())  # which has not looked at the scope yet
    again.cache.forget("adapter")
    again.cache.close()
    assert list((tmp_path / "cache").rglob("*.block")) == []


def test_the_name_of_a_scope_covers_all_of_it():
    assert set(asdict(SCOPE)) == {"business", "base", "adapter", "tokenizer", "chat_template", "numerics"}
    assert len({replace(SCOPE, **{spec.name: "other"}).digest for spec in fields(Scope)} | {SCOPE.digest}) == 7


TOKENS = st.lists(st.integers(1, 2), min_size=1, max_size=28)
BUSINESSES = {
    "home": replace(HOME, memory_bytes=6 * BLOCK_BYTES),
    "car": Business("car", prompt_cache=True),
}


class AnyUse(RuleBasedStateMachine):
    """Prompts of two tokens, so that they share beginnings, in a cache of nine blocks."""

    def __init__(self):
        super().__init__()
        self.harness = Cache(blocks=9, total_blocks=11)
        self.cache, self.ledger = self.harness.cache, self.harness.ledger
        self.running = []

    @rule(tokens=TOKENS, business=st.sampled_from(sorted(BUSINESSES)), adapter=st.sampled_from(["x", None]))
    def begin(self, tokens, business, adapter):
        scope = replace(SCOPE, business=business, adapter=adapter)
        lease = self.cache.lookup(scope, BUSINESSES[business], tokens[:-1])
        found = [token for block in lease.prefix.blocks for token in block.token_ids][: lease.num_tokens]
        assert found == tokens[: lease.num_tokens]
        assert all(block.mark == len(business) for block in lease.prefix.blocks)
        self.running.append((lease, tokens))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data):
        lease, tokens = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.cache.extend(lease, tokens, blocks_of(tokens, len(lease.business.name)))
        self.cache.release(lease)

    @rule(num_blocks=st.integers(1, 9), business=st.sampled_from([None, *BUSINESSES]))
    def shrink(self, num_blocks, business):
        idle_bytes = self.cache.idle_bytes(business)
        before = self.ledger.reserved_bytes(Kind.PREFIX_CACHE)
        done = self.cache.shrink(num_blocks * BLOCK_BYTES, business)
        assert done == (idle_bytes >= num_blocks * BLOCK_BYTES)
        freed_bytes = before - self.ledger.reserved_bytes(Kind.PREFIX_CACHE)
        assert freed_bytes == (num_blocks * BLOCK_BYTES if done else 0)

    @precondition(lambda self: not self.running)
    @rule(adapter=st.sampled_from(["x", "y"]))
    def forget(self, adapter):
        self.cache.forget(adapter)

    @invariant()
    def books_are_true(self):
        assert self.harness.num_blocks <= 9
        assert self.ledger.reserved_bytes(business="home") <= 6 * BLOCK_BYTES
        held = {id(block) for lease, _ in self.running for block in lease.prefix.blocks}
        assert held <= {id(block) for block in self.cache.blocks}

    def teardown(self):
        for lease, _ in self.running:
            self.cache.release(lease)
        assert self.cache.idle_bytes() == self.ledger.reserved_bytes()
        assert self.cache.shrink(self.ledger.reserved_bytes())
        assert self.ledger.reserved_bytes() == 0
        assert not any(root.children for root in self.cache._roots.values())


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(max_examples=40, stateful_step_count=30)
