"""Thousands of random events: whatever comes, answers are those of a request alone, caps hold and nothing leaks."""

import random
import zlib
from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from engine.artifact import ADAPTER_WEIGHTS, read_base
from engine.business import Business, Deadline
from engine.config import EngineConfig
from engine.errors import BundleError, CapacityError, UnknownAdapterError
from engine.ledger import Kind
from engine.runtime import Base, Engine
from engine.sampling import GREEDY
from engine.sequence import FinishReason, Request
from tests.engine.random_bundles import QWEN3, make_adapter, make_base
from tests.engine.scripted_backend import END, VOCAB_SIZE, ScriptedBackend, SpellingTokenizer

BUSINESSES = [
    Business("urgent", priority=2, deadline=Deadline.URGENT, prompt_cache=True, max_waiting=4),
    Business("plain", timeout_s=400.0),
    Business("capped", memory_bytes=500, prompt_cache=True),
    Business("patient", priority=-1, deadline=Deadline.PATIENT, prompt_cache=True, max_running=2),
    Business("thrifty", tokens_per_minute=60),
]
KV_BYTES, PREFIX_BYTES = 900, 640


def script(token_ids, adapter):
    """A token that depends on all before it and on the adapter; one in twelve is the end."""
    number = zlib.crc32(repr((token_ids, adapter)).encode())
    return END if number % 12 == 0 else 1 + number % (VOCAB_SIZE - 1)


def answer_alone(request):
    tokens, answer = list(request.prompt_token_ids), []
    while len(answer) < request.sampling.max_tokens and END not in answer:
        answer.append(script(tokens, request.adapter))
        tokens.append(answer[-1])
    return answer


class FragileBackend(ScriptedBackend):
    """Adapters in `damaged` have changed on the disk."""

    def __init__(self):
        super().__init__(script)
        self.damaged = set()

    def check_adapter(self, digest):
        super().check_adapter(digest)
        if digest in self.damaged:
            raise BundleError("it has changed")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("any-use")
    make_base(folder / "base", replace(QWEN3, vocab_size=VOCAB_SIZE))
    for seed, name in enumerate("xyz", start=1):
        make_adapter(folder / name, folder / "base", seed=seed)
    return folder


class Day:
    """An engine in the hands of somebody who does anything at any time."""

    def __init__(self, bundles, seed):
        self.random = random.Random(seed)
        self.now_s = 0.0
        self.adapter_bytes = (bundles / "x" / ADAPTER_WEIGHTS).stat().st_size
        self.config = EngineConfig(
            max_running=4,
            max_waiting=10,
            prefill_chunk_tokens=8,
            kv_budget_bytes=KV_BYTES,
            adapter_budget_bytes=5 * self.adapter_bytes // 2,
            prefix_cache_bytes=PREFIX_BYTES,
            memory_budget_bytes=2 * self.adapter_bytes + 1200,
            ageing_s=50.0,
        )
        manifest, digest = read_base(bundles / "base")
        self.backend = FragileBackend()
        base = Base(manifest, digest, SpellingTokenizer())
        self.engine = Engine(self.config, base=base, backend=self.backend, clock=lambda: self.now_s)
        self.ledger = self.engine._ledger
        self.idle_bytes = self.ledger.reserved_bytes()
        self.bundles = {self.engine.load_adapter(bundles / name): bundles / name for name in "xyz"}
        self.requests, self.expected, self.tokens, self.ends = {}, {}, {}, {}
        self.beginnings = [tuple(self.random.choices(range(1, VOCAB_SIZE), k=16)) for _ in range(3)]

    def live(self, num_events):
        events = {self.submit: 4, self.cancel: 1, self.step: 9, self.wait: 1, self.damage: 0.05, self.reload: 0.3}
        for event in self.random.choices(list(events), list(events.values()), k=num_events):
            event()
            self.check()

    def submit(self):
        beginning = self.random.choice([*self.beginnings, ()])[: self.random.choice([4, 8, 11, 16])]
        prompt = (*beginning, *self.random.choices(range(1, VOCAB_SIZE), k=self.random.randint(1, 5)))
        request = Request(
            prompt,
            f"request {len(self.requests)}",
            self.random.choice([None, *self.bundles]),
            replace(GREEDY, max_tokens=self.random.randint(1, 12)),
            self.random.choice(BUSINESSES),
        )
        running = [self.requests[name] for name in self.requests if name not in self.ends]
        if running and self.random.random() < 0.3:
            leader = self.random.choice(running)
            same = {"leader": leader.request_id, "adapter": leader.adapter, "business": leader.business}
            request = replace(request, prompt_token_ids=leader.prompt_token_ids, **same)
        try:
            self.engine.submit(request)
        except CapacityError:
            return
        name = request.request_id
        self.requests[name], self.expected[name], self.tokens[name] = request, answer_alone(request), []

    def cancel(self):
        left = [name for name in self.requests if name not in self.ends]
        if left:
            name = self.random.choice(left)
            self.engine.cancel(name)
            assert self.engine._scheduler.find(name) is None

    def step(self):
        self.now_s += self.random.choice([0.0, 0.1, 1.0])
        self.take(self.engine.step())

    def wait(self):
        self.now_s += self.random.choice([10.0, 100.0])

    def damage(self):
        self.backend.damaged.add(self.random.choice(list(self.bundles)))

    def reload(self):
        digest = self.random.choice(list(self.bundles))
        try:
            self.engine.unload_adapter(digest)
        except CapacityError:
            return
        with pytest.raises(UnknownAdapterError):
            self.engine.submit(Request((1,), "too late", digest))
        self.backend.damaged.discard(digest)
        try:
            assert self.engine.load_adapter(self.bundles[digest]) == digest
        except CapacityError:  # until it is asked for again
            self.bundles.pop(digest)

    def take(self, outputs):
        for output in outputs:
            name = output.request_id
            assert name not in self.ends
            self.tokens[name] += output.token_ids
            if output.finish_reason is not None:
                self.ends[name] = output
            expected = self.expected[name]
            if output.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
                assert self.tokens[name] == expected
            assert self.tokens[name] == expected[: len(self.tokens[name])]

    def check(self):
        reserved = self.ledger.reserved_bytes
        assert reserved() <= self.config.memory_budget_bytes
        assert reserved(Kind.KV) <= KV_BYTES
        assert reserved(Kind.PREFIX_CACHE) <= PREFIX_BYTES
        assert reserved(Kind.ADAPTERS) == self.adapter_bytes * len(self.backend.adapters)
        assert reserved(business="capped") <= 500
        running = self.engine._scheduler.running
        assert reserved(Kind.KV) == sum(sequence.kv_bytes for sequence in running)
        assert len(running) <= 4
        assert all(sequence.state.is_open for sequence in running)
        open_states = {state for state in self.backend.states if state.is_open}
        assert open_states <= {sequence.state for sequence in running}
        assert sum(sequence.business.name == "patient" for sequence in running) <= 2
        self.backend.states = list(open_states)

    def end(self):
        """All that was asked is answered, and all that was taken is back."""
        while self.engine.has_work:
            self.step()
            self.check()
        assert self.ends.keys() == self.requests.keys()
        assert {str(end.error) for end in self.ends.values() if end.error} <= {
            "it has changed",
            "the request took longer than 400 s: try again later",
            "the request took longer than 600 s: try again later",
        }
        assert self.ledger.reserved_bytes(Kind.KV) == 0
        cached_bytes = self.ledger.reserved_bytes(Kind.PREFIX_CACHE)
        assert self.engine._prefixes.shrink(cached_bytes)
        for digest in self.engine.adapters:
            self.engine.unload_adapter(digest)
        assert self.ledger._reserved == {key: size for key, size in self.ledger._reserved.items() if key[1] is None}
        assert self.ledger.reserved_bytes() == self.idle_bytes
        assert self.engine._scheduler._arrival == {}
        return self.engine.stats().total


@pytest.mark.timeout(600)  # on a machine that does much else
@settings(max_examples=10, phases=(Phase.explicit, Phase.reuse, Phase.generate))  # a smaller seed is no simpler
@given(seed=st.integers(0, 2**32))
def test_nothing_leaks_in_ten_thousand_events(bundles, seed):
    day = Day(bundles, seed)
    day.live(1000)
    day.end()


def test_such_days_have_all_that_can_happen(bundles):
    day = Day(bundles, 7)
    day.live(2000)
    total = day.end()
    rare = {
        name: getattr(total, name)
        for name in ("failed", "cancelled", "refused", "cached_tokens", "pre_emptions", "evictions", "adapter_switches")
    }
    assert all(rare.values()), rare
    errors = {end.error.code for end in day.ends.values() if end.error}
    assert errors == {"bad_bundle", "timeout"}
    assert total.requests == len(day.requests) + total.refused
    assert total.prompt_tokens <= sum(len(request.prompt_token_ids) for request in day.requests.values())
