"""Cached prompts on whole engines with real back ends: the same bits as without, and never anybody else's."""

import importlib.util
import shutil
from dataclasses import replace

import pytest

from engine.artifact import read_base
from engine.backends import open_backend
from engine.business import Business
from engine.config import EngineConfig
from engine.ledger import Kind
from engine.runtime import Base, Engine
from engine.sampling import SamplingParams
from engine.sequence import Request
from tests.engine.random_bundles import QWEN3, make_adapter, make_base
from tests.engine.scripted_backend import VOCAB_SIZE, SpellingTokenizer

HAS_NATIVE = bool(importlib.util.find_spec("socle_native"))
BACKENDS = ["reference", "onnx", *(["native"] if HAS_NATIVE else [])]
FASTEST = BACKENDS[-1]
HOME, CAR = Business("home", prompt_cache=True), Business("car", prompt_cache=True)
PROMPT = tuple(1 + index % 97 for index in range(150))
SAMPLING = SamplingParams(temperature=1.0, seed=5, max_tokens=8, ignore_eos=True, logprobs=3)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    make_base(folder / "base", replace(QWEN3, vocab_size=VOCAB_SIZE), "int4")
    for seed, name in enumerate("xy", start=1):
        make_adapter(folder / name, folder / "base", seed=seed, scale=1.0)
    return folder


@pytest.fixture
def open_engine(bundles, tmp_path):
    engines = []

    def open_engine(backend=FASTEST, *, tokenizer=None, base_digest=None, **config):
        settings = EngineConfig(backend=backend, num_threads=1, **{"prefill_chunk_tokens": 32} | config)
        manifest, digest = read_base(bundles / "base")
        if tokenizer is not None:
            manifest = replace(manifest, tokenizer=replace(manifest.tokenizer, **tokenizer))
        base = Base(manifest, base_digest or digest, SpellingTokenizer())
        engines.append(Engine(settings, base=base, backend=open_backend(bundles / "base", settings)))
        return engines[-1]

    def close(engine):
        engines.remove(engine)
        engine.close()

    open_engine.close = close
    yield open_engine
    for engine in engines:
        engine.close()


def ask(engine, prompt=PROMPT, adapter=None, business=HOME, sampling=SAMPLING):
    """The answer with its probabilities to the last bit, and how many tokens of the prompt were cached."""
    request = Request(tuple(prompt), "it", adapter, sampling, business)
    engine.submit(request)
    bits, usage = [], None
    while engine.has_work:
        for output in engine.step():
            bits += zip(output.token_ids, output.logprobs, strict=True)
            usage = output.usage
    return bits, usage.cached_tokens


@pytest.mark.parametrize("backend", BACKENDS)
def test_answers_on_cached_prompts_have_the_same_bits(open_engine, bundles, backend):
    engine, plain = open_engine(backend), open_engine(backend)
    x = engine.load_adapter(bundles / "x")
    assert plain.load_adapter(bundles / "x") == x
    hits = []
    conversation = list(PROMPT)
    for turn in range(4):
        for adapter in (None, x):
            bits, num_cached = ask(engine, conversation, adapter)
            assert bits == ask(plain, conversation, adapter, Business("home"))[0]
            hits.append(num_cached)
        conversation += [*(token for token, _ in bits), *range(1, 40 + turn)]
    least = 32 if backend == "onnx" else 64
    assert hits[:2] == [0, 0]
    assert min(hits[2:]) >= len(PROMPT) // least * least
    assert hits == sorted(hits)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_answer_is_kept_only_where_its_tokens_have_the_bits_of_a_prompt(open_engine, backend):
    engine, plain = open_engine(backend), open_engine(backend)
    first, _ = ask(engine, sampling=replace(SAMPLING, max_tokens=60))
    conversation = [*PROMPT, *(token for token, _ in first), 1, 2]
    bits, num_cached = ask(engine, conversation)
    assert bits == ask(plain, conversation, business=Business("plain"))[0]
    assert num_cached == (len(PROMPT) // 32 * 32 if backend == "onnx" else len(PROMPT) + 59)


@pytest.mark.parametrize("backend", BACKENDS)
def test_prompts_that_differ_anywhere_have_the_same_bits(open_engine, backend):
    engine, plain = open_engine(backend), open_engine(backend)
    for place in (149, 100, 64, 63, 31, 1, 0):
        prompt = [*PROMPT[:place], 99, *PROMPT[place + 1 :]]
        ask(engine)
        bits, num_cached = ask(engine, prompt)
        assert bits == ask(plain, prompt, business=Business("plain"))[0]
        assert num_cached <= place


def test_nothing_is_kept_for_a_business_that_did_not_ask_for_it(open_engine):
    engine = open_engine()
    for _ in range(2):
        assert ask(engine, business=Business("plain"))[1] == 0
    assert engine.stats().memory.reserved[Kind.PREFIX_CACHE] == 0


def test_another_adapter_another_business_or_none_never_hits(open_engine, bundles):
    engine = open_engine()
    x, y = engine.load_adapter(bundles / "x"), engine.load_adapter(bundles / "y")
    ask(engine, adapter=x)
    assert [ask(engine, adapter=adapter, business=CAR)[1] for adapter in (x, y, None)] == [0, 0, 0]
    assert [ask(engine, adapter=adapter)[1] for adapter in (y, None)] == [0, 0]
    assert ask(engine, adapter=x)[1] == len(PROMPT) - 1


def test_an_adapter_that_was_reloaded_under_the_same_name_never_hits(open_engine, bundles, tmp_path):
    engine, plain = open_engine(), open_engine()
    shutil.copytree(bundles / "x", tmp_path / "home")
    old = engine.load_adapter(tmp_path / "home")
    ask(engine, adapter=old)
    engine.unload_adapter(old)
    shutil.rmtree(tmp_path / "home")
    shutil.copytree(bundles / "y", tmp_path / "home")
    new = engine.load_adapter(tmp_path / "home")
    assert new != old
    bits, num_cached = ask(engine, adapter=new)
    assert num_cached == 0
    assert bits == ask(plain, adapter=plain.load_adapter(bundles / "y"))[0]


OTHERS = {
    "template": {"tokenizer": {"chat_template_sha256": "2" * 64}},
    "tokenizer": {"tokenizer": {"tokenizer_sha256": "2" * 64}},
    "base": {"base_digest": "2" * 64},
    "back end": {"backend": "reference"},
    "kv type": {"kv_type": "int8"},
    "same": {},
}


@pytest.mark.skipif(not HAS_NATIVE, reason="the others have one type of keys and values")
@pytest.mark.parametrize("other", OTHERS)
def test_a_restart_keeps_what_was_of_use_for_the_same_and_nothing_else(open_engine, tmp_path, other):
    disk = {"prefix_cache_dir": str(tmp_path / "cache")}
    engine = open_engine(**disk)
    first, _ = ask(engine)
    ask(engine)
    open_engine.close(engine)
    bits, num_cached = ask(open_engine(**disk, **OTHERS[other]))
    if other == "same":
        assert (bits, num_cached) == (first, len(PROMPT) - 1)
    else:
        assert num_cached == 0
    assert ask(open_engine(**disk))[1] > 0


def test_keys_and_values_of_other_arithmetic_never_hit(open_engine, tmp_path):
    """Even if they have the same size: a later version of the core may round differently."""
    disk = {"prefix_cache_dir": str(tmp_path / "cache")}
    engine = open_engine(**disk)
    ask(engine)
    ask(engine)
    open_engine.close(engine)
    other, same = open_engine(**disk), open_engine(**disk)
    other.backend.numerics += " of tomorrow"
    assert ask(other)[1] == 0
    assert ask(same)[1] == len(PROMPT) - 1


@pytest.mark.parametrize("place", [0.01, 0.3, 0.6, 0.999])
def test_a_flipped_byte_on_the_disk_never_hits(open_engine, tmp_path, place):
    disk = {"prefix_cache_dir": str(tmp_path / "cache")}
    engine = open_engine(**disk)
    first, _ = ask(engine)
    ask(engine)
    open_engine.close(engine)
    for path in (tmp_path / "cache").rglob("*.block"):
        data = bytearray(path.read_bytes())
        data[int(place * len(data))] ^= 64
        path.write_bytes(data)
    assert ask(open_engine(**disk)) == (first, 0)


def test_several_continuations_of_one_prompt_share_its_blocks(open_engine):
    if not HAS_NATIVE:
        pytest.skip("the others hold copies")
    engine = open_engine()
    prompts = [(*PROMPT[:128], 50 + index, 60) for index in range(4)]
    alone = [ask(open_engine(), prompt)[0] for prompt in prompts]
    ask(engine, PROMPT[:130])
    block_bytes = engine.backend.block_bytes
    for index, prompt in enumerate(prompts):
        engine.submit(Request(prompt, str(index), None, SAMPLING, HOME))
    outputs = engine.step()
    stats = engine.stats()
    assert stats.num_running == len(outputs) == 4
    assert stats.memory.reserved[Kind.KV] == 4 * block_bytes  # the end of each
    assert stats.memory.reserved[Kind.PREFIX_CACHE] == 3 * block_bytes  # the beginning, and the first one's end
    while engine.has_work:
        outputs += engine.step()
    bits = {str(index): [] for index in range(4)}
    for output in outputs:
        bits[output.request_id] += zip(output.token_ids, output.logprobs, strict=True)
    assert list(bits.values()) == alone


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_answers_to_one_prompt_run_it_once(open_engine, backend):
    engine = open_engine(backend)
    samplings = [replace(SAMPLING, seed=seed) for seed in range(4)]
    alone = [ask(open_engine(backend), sampling=sampling)[0] for sampling in samplings]
    leader = None
    for index, sampling in enumerate(samplings):
        engine.submit(Request(PROMPT, str(index), None, sampling, Business("home"), leader))
        leader = str(index)  # each follows the one before
    bits = {str(index): [] for index in range(4)}
    while engine.has_work:
        for output in engine.step():
            bits[output.request_id] += zip(output.token_ids, output.logprobs, strict=True)
    assert list(bits.values()) == alone
    assert engine.stats().total.prefill_tokens == len(PROMPT)
    assert engine.stats().memory.reserved[Kind.KV] == 0
