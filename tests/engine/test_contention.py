"""Several businesses that contend for one engine, on a back end whose answers are written down."""

import functools
from dataclasses import replace

import pytest

from engine.artifact import ADAPTER_WEIGHTS
from engine.business import Business
from engine.errors import BundleError, CapacityError, ContextLengthError
from engine.ledger import Kind
from engine.metrics import Subject
from engine.sampling import GREEDY
from engine.sequence import Request
from tests.engine.random_bundles import QWEN3, make_adapter, make_base
from tests.engine.scripted_backend import VOCAB_SIZE
from tests.engine.scripted_engine import PROMPT, drain, open_scripted_engine, saying, text_of

URGENT = Business("urgent", priority=1)
PATIENT = Business("patient", priority=-1)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contention")
    make_base(folder / "base", replace(QWEN3, vocab_size=VOCAB_SIZE, max_position_embeddings=100))
    make_adapter(folder / "x", folder / "base")
    return folder


@pytest.fixture
def open_engine(bundles):
    return functools.partial(open_scripted_engine, bundles / "base")


def raise_(error):
    raise error


def endless(_ids, _adapter):
    return ord("a")


def submit(engine, name, *, adapter=None, business=PATIENT, max_tokens=20, prompt=PROMPT):
    engine.submit(Request(prompt, name, adapter, replace(GREEDY, max_tokens=max_tokens), business))


def test_running_and_waiting_requests_time_out(open_engine):
    engine = open_engine(endless, max_running=1, request_timeout_s=1000.0)
    submit(engine, "running", business=replace(PATIENT, timeout_s=20.0), max_tokens=90)
    submit(engine, "waiting", business=replace(PATIENT, timeout_s=10.0))
    submit(engine, "other", max_tokens=5)
    outputs = drain(engine)
    ends = {name: parts[-1] for name, parts in outputs.items()}
    assert {name: end.error.code for name, end in ends.items() if end.error} == dict.fromkeys(
        ("running", "waiting"), "timeout"
    )
    assert 0 < ends["running"].usage.completion_tokens < 90
    assert ends["waiting"].usage.completion_tokens == 0
    assert ends["other"].usage.completion_tokens == 5
    assert engine.stats().total.failed == 2
    assert engine.stats().memory.reserved[Kind.KV] == 0


def test_what_would_time_out_while_it_waits_is_refused_and_told_when_to_come_back(open_engine):
    engine = open_engine(endless, max_running=1, prefill_chunk_tokens=10)
    list(engine.generate(PROMPT[:2], sampling=replace(GREEDY, max_tokens=1)))  # half a second for a token of a prompt
    submit(engine, "long", prompt=(1,) * 70)
    with pytest.raises(CapacityError, match="would take 35 s") as refused:
        submit(engine, "hurried", business=replace(PATIENT, timeout_s=30.0))
    assert refused.value.retry_after_s == pytest.approx(5.0)
    submit(engine, "urgent", business=replace(URGENT, timeout_s=30.0))
    assert engine.stats().total.refused == 1


def test_a_business_that_has_reached_its_cap_waits_and_others_pass(open_engine):
    engine = open_engine(endless)
    capped = Business("capped", memory_bytes=400)
    for name, business in (("a", capped), ("b", capped), ("c", PATIENT)):
        submit(engine, name, business=business)
    engine.step()
    assert [sequence.request_id for sequence in engine._scheduler.running] == ["a", "c"]
    assert {name: parts[-1].usage.completion_tokens for name, parts in drain(engine).items()} == dict.fromkeys(
        "abc", 20
    )
    with pytest.raises(ContextLengthError, match="make 50 tokens, there is never memory for more than 40"):
        submit(engine, "large", business=capped, max_tokens=47)


def test_idle_adapters_and_cached_prompts_make_room_for_requests(open_engine, bundles):
    adapter_bytes = (bundles / "x" / ADAPTER_WEIGHTS).stat().st_size
    engine = open_engine(endless, memory_budget_bytes=adapter_bytes + 500)
    digest = engine.load_adapter(bundles / "x")
    caching = Business("caching", prompt_cache=True)
    submit(engine, "cached", business=caching, max_tokens=40)
    drain(engine)
    assert engine.stats().memory.reserved[Kind.PREFIX_CACHE] == 480
    submit(engine, "small", max_tokens=40)
    drain(engine)
    assert engine.stats().memory.reserved[Kind.PREFIX_CACHE] < 480
    assert engine.stats().resident_adapters == (digest,)
    submit(engine, "large", max_tokens=90)
    (outputs,) = drain(engine).values()
    assert outputs[-1].usage.completion_tokens == 90
    assert engine.stats().resident_adapters == ()
    submit(engine, "adapter", adapter=digest, max_tokens=40)
    assert drain(engine)["adapter"][-1].error is None


def test_of_two_that_wait_the_one_that_can_never_start_is_failed(open_engine, bundles):
    adapter_bytes = (bundles / "x" / ADAPTER_WEIGHTS).stat().st_size
    engine = open_engine(endless, memory_budget_bytes=adapter_bytes + 500)
    digest = engine.load_adapter(bundles / "x")
    submit(engine, "fits")
    submit(engine, "too large beside its adapter", adapter=digest, business=URGENT, max_tokens=90)
    ends = {name: parts[-1] for name, parts in drain(engine).items()}
    assert ends["fits"].error is None
    assert ends["too large beside its adapter"].error.code == "capacity"


def test_a_request_that_makes_way_before_its_first_token_counts_once(open_engine):
    engine = open_engine(endless, max_running=1, prefill_chunk_tokens=4)
    submit(engine, "low", prompt=(1,) * 10)
    engine.step()
    submit(engine, "high", business=URGENT)
    ends = {name: parts[-1] for name, parts in drain(engine).items()}
    assert [end.usage.completion_tokens for end in ends.values()] == [20, 20]
    counters = engine.stats().by_subject[Subject(None, "patient")]
    assert (counters.evictions, counters.prompt_tokens, counters.queue_s.count, counters.ttft_s.count) == (1, 10, 1, 1)
    assert counters.prefill_tokens == 14


def test_followers_start_by_themselves_when_their_leader_is_gone(open_engine):
    engine = open_engine(saying("abc"), prefill_chunk_tokens=2)
    for name, leader in (("a", None), ("b", "a"), ("c", "b")):
        engine.submit(Request(PROMPT, name, None, GREEDY, leader=leader))
    engine.step()
    assert engine.num_running == 1
    engine.cancel("a")
    outputs = drain(engine)
    assert [text_of(outputs[name]) for name in "abc"] == ["", "abc", "abc"]


def test_what_was_cached_with_a_damaged_adapter_is_forgotten(open_engine, bundles):
    engine = open_engine(saying("abc"))
    digest = engine.load_adapter(bundles / "x")
    caching = Business("caching", prompt_cache=True)
    submit(engine, "before", adapter=digest, business=caching)
    drain(engine)
    assert engine.stats().memory.reserved[Kind.PREFIX_CACHE] > 0
    engine.backend.check_adapter = lambda _: raise_(BundleError("it has changed"))
    for name in ("one", "two"):
        submit(engine, name, adapter=digest, business=caching)
    submit(engine, "bare")
    outputs = drain(engine)
    assert [outputs[name][-1].error.code for name in ("one", "two")] == ["bad_bundle"] * 2
    assert text_of(outputs["bare"]) == "abc"
    assert engine.stats().memory.reserved[Kind.PREFIX_CACHE] == 0
    engine.unload_adapter(digest)


def test_a_request_that_waits_for_memory_writes_nothing_to_the_disk(open_engine, tmp_path):
    """It looks at the cache in every step until it can start."""
    engine = open_engine(endless, max_running=2, kv_budget_bytes=450, prefix_cache_dir=str(tmp_path))
    caching = Business("caching", prompt_cache=True)
    prompt = tuple(range(1, 21))
    submit(engine, "first", business=caching, prompt=prompt)
    drain(engine)
    submit(engine, "runs", business=URGENT)
    submit(engine, "waits", business=caching, prompt=prompt)
    engine.step()
    assert (engine.num_running, engine.num_waiting) == (1, 1)
    while engine.num_waiting:
        engine._prefixes.wait_for_disk()
        assert list(tmp_path.rglob("*.block")) == []
        engine.step()
    engine._prefixes.wait_for_disk()
    assert len(list(tmp_path.rglob("*.block"))) > 1
    drain(engine)
    engine.close()
