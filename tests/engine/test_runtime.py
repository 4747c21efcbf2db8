"""The engine's rules, on a back end whose answers are written down here."""

import functools
import itertools
from dataclasses import replace

import pytest

from engine.artifact import ADAPTER_WEIGHTS
from engine.errors import (
    AdapterMismatchError,
    BundleError,
    CapacityError,
    ContextLengthError,
    InvalidInputError,
    UnknownAdapterError,
)
from engine.ledger import Kind
from engine.metrics import Subject
from engine.sampling import GREEDY, SamplingParams
from engine.sequence import FinishReason, Request
from tests.engine.random_bundles import QWEN3, make_adapter, make_base
from tests.engine.scripted_backend import END, VOCAB_SIZE
from tests.engine.scripted_engine import PROMPT, drain, open_scripted_engine, saying, text_of


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    """A base, two adapters for it, and one for another base."""
    folder = tmp_path_factory.mktemp("bundles")
    architecture = replace(QWEN3, vocab_size=VOCAB_SIZE, max_position_embeddings=100)
    make_base(folder / "base", architecture)
    make_base(folder / "other-base", architecture, seed=5)
    make_adapter(folder / "x", folder / "base", seed=1)
    make_adapter(folder / "y", folder / "base", seed=2)
    make_adapter(folder / "stranger", folder / "other-base")
    return folder


@pytest.fixture
def open_engine(bundles):
    return functools.partial(open_scripted_engine, bundles / "base")


def raise_(error):
    raise error


def ask(engine, sampling=GREEDY, **request):
    return list(engine.generate(PROMPT, sampling=sampling, **request))


def test_an_answer_streams_until_the_end_token(open_engine):
    outputs = ask(open_engine(saying("hello")))
    assert text_of(outputs) == "hello"
    assert [output.token_ids for output in outputs] == [(ord(c),) for c in "hello"] + [(END,)]
    assert [output.finish_reason for output in outputs] == [None] * 5 + [FinishReason.STOP]


def test_the_streamed_text_is_the_whole_text_also_at_max_tokens(open_engine):
    outputs = ask(open_engine(saying("hello")), replace(GREEDY, max_tokens=3))
    assert text_of(outputs) == "hel"
    assert outputs[-1].finish_reason is FinishReason.LENGTH
    assert outputs[-1].usage.completion_tokens == 3


def test_ignore_eos_goes_on(open_engine):
    script = saying("ab", end=ord("c"))
    engine = open_engine(lambda ids, a: END if len(ids) == 4 else script(ids[:5], a))
    outputs = ask(engine, replace(GREEDY, ignore_eos=True, max_tokens=4))
    assert [token for output in outputs for token in output.token_ids] == [ord("a"), END, ord("c"), ord("c")]


def test_a_stop_string_over_several_tokens_is_never_shown(open_engine):
    outputs = ask(open_engine(saying("one STEP, two STOP three")), replace(GREEDY, stop=("STOP",)))
    assert text_of(outputs) == "one STEP, two "
    assert outputs[-1].finish_reason is FinishReason.STOP
    assert outputs[-1].usage.completion_tokens == len("one STEP, two STOP") + 1  # the stream is one token late


def test_a_stop_string_that_the_last_characters_complete_counts(open_engine):
    engine = open_engine(saying("a STOP"))
    outputs = ask(engine, replace(GREEDY, stop=("STOP",), max_tokens=6))
    assert (text_of(outputs), outputs[-1].finish_reason) == ("a ", FinishReason.STOP)


def test_held_back_text_comes_with_the_end(open_engine):
    outputs = ask(open_engine(saying("a STO")), replace(GREEDY, stop=("STOP",)))
    assert text_of(outputs) == "a STO"


def test_prompts_may_be_text_messages_or_tokens(open_engine):
    engine = open_engine(lambda _ids, _adapter: END)
    for prompt in ("u:hi\n", [{"role": "user", "content": "hi"}], [ord(c) for c in "u:hi\n"]):
        list(engine.generate(prompt, sampling=GREEDY))
    seen = [tuple(step[0].token_ids) for step in engine.backend.steps]
    assert seen == [tuple(map(ord, "u:hi\n"))] * 3


def test_only_the_last_chunk_wants_logits(open_engine):
    engine = open_engine(lambda _ids, _adapter: END, prefill_chunk_tokens=4)
    list(engine.generate(list(range(1, 11)), sampling=GREEDY))
    assert [(len(s.token_ids), s.logit_rows) for step in engine.backend.steps for s in step] == [
        (4, ()),
        (4, ()),
        (2, (1,)),
    ]


def test_requests_share_steps_and_keep_their_answers(open_engine, bundles):
    engine = open_engine(lambda ids, adapter: END if len(ids) > 6 else ord("z") if adapter else ord("b"))
    digest = engine.load_adapter(bundles / "x")
    engine.submit(Request(PROMPT, "base", None, GREEDY))
    engine.submit(Request(PROMPT, "adapter", digest, GREEDY))
    outputs = drain(engine)
    assert {name: text_of(parts) for name, parts in outputs.items()} == {"base": "bbbb", "adapter": "zzzz"}
    assert [len(step) for step in engine.backend.steps] == [2] * 5


def test_cancel_ends_a_running_and_a_waiting_request(open_engine):
    engine = open_engine(lambda _ids, _adapter: ord("a"), max_running=1)
    for name in ("running", "waiting"):
        engine.submit(Request(PROMPT, name, None, GREEDY))
    engine.step()
    engine.cancel("waiting")
    engine.cancel("running")
    engine.cancel("unknown")
    outputs = drain(engine)
    assert [parts[-1].finish_reason for parts in outputs.values()] == [FinishReason.CANCELLED] * 2
    assert engine.stats().memory.reserved[Kind.KV] == 0
    assert not engine.backend.states[0].is_open
    assert engine.stats().total.cancelled == 2


def test_closing_the_iterator_cancels_and_keeps_the_outputs_of_others(open_engine):
    engine = open_engine(saying("abcdef"))
    engine.submit(Request(PROMPT, "other", None, GREEDY))
    answer = engine.generate(PROMPT, sampling=GREEDY)
    next(answer)
    next(answer)
    answer.close()
    outputs = drain(engine)
    assert set(outputs) == {"other"}
    assert text_of(outputs["other"]) == "abcdef"


def test_what_does_not_fit_into_the_kv_budget_now_waits(open_engine):
    engine = open_engine(saying("ab"), kv_budget_bytes=300)
    for name in "ab":
        engine.submit(Request(PROMPT, name, None, replace(GREEDY, max_tokens=20)))
    engine.step()
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.memory.reserved[Kind.KV]) == (1, 1, 230)
    assert {text_of(parts) for parts in drain(engine).values()} == {"ab"}
    assert engine.stats().memory.reserved[Kind.KV] == 0


def test_what_never_fits_into_the_kv_budget_is_refused(open_engine):
    engine = open_engine(saying("ab"), kv_budget_bytes=300)
    with pytest.raises(ContextLengthError, match="make 40 tokens, there is never memory for more than 30"):
        engine.submit(Request(PROMPT, "a", None, replace(GREEDY, max_tokens=37)))


def test_without_max_tokens_an_answer_may_take_what_the_budget_holds(open_engine):
    engine = open_engine(lambda _ids, _adapter: ord("a"), kv_budget_bytes=300)
    assert ask(engine)[-1].usage.completion_tokens == 27


def test_a_context_that_is_too_long_is_refused_with_both_numbers(open_engine):
    engine = open_engine(saying("ab"))
    with pytest.raises(ContextLengthError, match="make 101, the context holds 100"):
        engine.submit(Request(PROMPT, "a", None, replace(GREEDY, max_tokens=98)))
    with pytest.raises(ContextLengthError, match="make 101"):
        engine.submit(Request((1,) * 100, "a", None, GREEDY))
    endless = open_engine(lambda _ids, _adapter: ord("a"))
    for sampling in (GREEDY, replace(GREEDY, max_tokens=97)):
        assert ask(endless, sampling)[-1].usage.completion_tokens == 97


@pytest.mark.parametrize("prompt", [(), (1, VOCAB_SIZE), (-1,)])
def test_prompts_without_or_with_unknown_tokens_are_refused(open_engine, prompt):
    with pytest.raises(InvalidInputError, match=f"from 0 to {VOCAB_SIZE - 1}"):
        open_engine(saying("")).submit(Request(prompt, "a"))


def test_a_request_id_is_used_once_at_a_time(open_engine):
    engine = open_engine(saying(""))
    engine.submit(Request(PROMPT, "a", None, GREEDY))
    with pytest.raises(InvalidInputError, match="'a' is in use"):
        engine.submit(Request(PROMPT, "a", None, GREEDY))


def test_unknown_adapters_are_refused(open_engine):
    engine = open_engine(saying(""))
    with pytest.raises(UnknownAdapterError, match="deadbeef"):
        engine.submit(Request(PROMPT, "a", "deadbeef"))
    with pytest.raises(UnknownAdapterError):
        engine.unload_adapter("deadbeef")


def test_an_adapter_of_another_base_is_refused(open_engine, bundles):
    engine = open_engine(saying(""))
    with pytest.raises(AdapterMismatchError, match="made for base"):
        engine.load_adapter(bundles / "stranger")
    assert engine.adapters == ()


def test_a_damaged_adapter_is_found_if_files_are_verified(open_engine, bundles, tmp_path):
    make_adapter(tmp_path / "x", bundles / "base")
    with (tmp_path / "x" / "adapter.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(BundleError, match="SHA-256"):
        open_engine(saying(""), verify_files=True).load_adapter(tmp_path / "x")


def test_unloading_is_refused_while_requests_are_queued_or_run(open_engine, bundles):
    engine = open_engine(saying("abc"))
    digest = engine.load_adapter(bundles / "x")
    engine.submit(Request(PROMPT, "a", digest, GREEDY))
    with pytest.raises(CapacityError, match="queued"):
        engine.unload_adapter(digest)
    engine.step()
    with pytest.raises(CapacityError, match="1 requests use"):
        engine.unload_adapter(digest)
    drain(engine)
    engine.unload_adapter(digest)
    assert engine.adapters == ()
    assert engine.backend.adapters == {}


def test_a_request_waits_until_its_adapter_fits_beside_those_in_use(open_engine, bundles):
    budget_bytes = 3 * (bundles / "x" / ADAPTER_WEIGHTS).stat().st_size // 2
    engine = open_engine(saying("abc"), adapter_budget_bytes=budget_bytes)
    x, y = engine.load_adapter(bundles / "x"), engine.load_adapter(bundles / "y")
    engine.submit(Request(PROMPT, "a", x, GREEDY))
    engine.submit(Request(PROMPT, "b", y, GREEDY))
    engine.step()
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.resident_adapters) == (1, 1, (x,))
    assert stats.memory.reserved[Kind.ADAPTERS] <= budget_bytes
    assert [text_of(parts) for parts in drain(engine).values()] == ["abc", "abc"]
    assert engine.stats().resident_adapters == (y,)


def test_an_adapter_that_vanished_from_disk_fails_its_requests_only(open_engine, bundles):
    engine = open_engine(saying("abc"))
    digest = engine.load_adapter(bundles / "x")
    engine.backend.unload_adapter(digest)
    engine._adapters._resident.clear()
    engine.backend.load_adapter = lambda _digest, _bundle: raise_(BundleError("adapter.safetensors is missing"))
    engine.submit(Request(PROMPT, "a", digest, GREEDY))
    engine.submit(Request(PROMPT, "b", None, GREEDY))
    outputs = drain(engine)
    assert (outputs["a"][-1].finish_reason, str(outputs["a"][-1].error)) == ("error", "adapter.safetensors is missing")
    assert text_of(outputs["b"]) == "abc"


def test_logits_that_are_not_finite_end_one_request_with_an_error(open_engine, bundles):
    engine = open_engine(lambda ids, adapter: float("nan") if adapter and len(ids) > 4 else saying("ok!")(ids, adapter))
    digest = engine.load_adapter(bundles / "x")
    engine.submit(Request(PROMPT, "bad", digest, GREEDY))
    engine.submit(Request(PROMPT, "good", None, GREEDY))
    outputs = drain(engine)
    assert outputs["bad"][-1].finish_reason is FinishReason.ERROR
    assert "not finite" in str(outputs["bad"][-1].error)
    assert text_of(outputs["good"]) == "ok!"
    assert engine.stats().by_subject[Subject(digest, "")].failed == 1


def test_counters_add_up(open_engine, bundles):
    engine = open_engine(saying("abc"), prefill_chunk_tokens=2)
    digest = engine.load_adapter(bundles / "x")
    for name, adapter in (("a", None), ("b", digest), ("c", None)):
        engine.submit(Request(PROMPT, name, adapter, GREEDY))
    outputs = drain(engine)
    stats = engine.stats()
    rows = [(len(s.token_ids), s.adapter) for step in engine.backend.steps for s in step]
    assert stats.total.prefill_tokens + stats.total.decode_tokens == sum(n for n, _ in rows)
    assert stats.total.prefill_tokens == 3 * len(PROMPT)
    assert stats.total.decode_tokens == 3 * len("abc")
    assert stats.by_subject[Subject(digest, "")].decode_tokens == len("abc")
    # The clock advances by one a look, so each step takes exactly a second.
    assert stats.total.prefill_s + stats.total.decode_s == pytest.approx(len(engine.backend.steps))
    usages = [parts[-1].usage for parts in outputs.values()]
    assert sum(u.prefill_s + u.decode_s for u in usages) == pytest.approx(len(engine.backend.steps))
    assert [(u.prompt_tokens, u.completion_tokens) for u in usages] == [(3, 4)] * 3
    assert stats.total.ttft_s.count == stats.total.requests == 3
    assert stats.total.ttft_s.sum == pytest.approx(sum(u.ttft_s for u in usages))
    assert stats.total.inter_token_s.count == 9
    switches = sum(a != b for (_, a), (_, b) in itertools.pairwise([(0, None), *rows]))
    assert stats.total.adapter_switches == switches > 0


def test_time_to_first_token_counts_the_queue(open_engine):
    engine = open_engine(saying("a"), max_running=1)
    for name in "ab":
        engine.submit(Request(PROMPT, name, None, GREEDY))
    outputs = drain(engine)
    assert outputs["b"][-1].usage.ttft_s > outputs["a"][-1].usage.ttft_s > 0
    assert outputs["b"][-1].usage.prefill_s == outputs["a"][-1].usage.prefill_s


def test_seeds_give_the_same_answer_whatever_else_runs(open_engine):
    def uniform(engine, neighbours):
        sampling = SamplingParams(temperature=1e6, seed=3, max_tokens=8, ignore_eos=True)
        for index in range(neighbours):
            engine.submit(Request(PROMPT, f"n{index}", None, replace(sampling, seed=None)))
        engine.submit(Request(PROMPT, "it", None, sampling))
        return text_of(drain(engine)["it"])

    alone = uniform(open_engine(saying("x" * 20)), 0)
    assert uniform(open_engine(saying("x" * 20)), 3) == alone
    assert len(set(alone)) > 2
