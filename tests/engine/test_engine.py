"""The whole engine on a small random model: what runs beside a request never changes its answer."""

import importlib.util
from dataclasses import replace

import pytest

from engine.artifact import ADAPTER_WEIGHTS, read_base
from engine.backends import open_backend
from engine.config import EngineConfig
from engine.ledger import Kind
from engine.runtime import Base, Engine
from engine.sampling import GREEDY, SamplingParams
from engine.sequence import FinishReason, Request
from tests.engine.random_bundles import QWEN3, make_adapter, make_base
from tests.engine.scripted_backend import VOCAB_SIZE, SpellingTokenizer

PROMPTS = {"short": tuple(range(1, 6)), "long": tuple(range(1, 100))}
SAMPLED = SamplingParams(temperature=1.0, top_p=0.95, seed=11, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    make_base(folder / "base", replace(QWEN3, vocab_size=VOCAB_SIZE))
    for seed, name in enumerate("xy", start=1):
        make_adapter(folder / name, folder / "base", seed=seed, scale=1.0)
    return folder


@pytest.fixture
def open_engine(bundles):
    engines = []

    def open_engine(**config):
        manifest, digest = read_base(bundles / "base")
        settings = EngineConfig(num_threads=1, prefill_chunk_tokens=32, **config)
        backend = open_backend(bundles / "base", settings)
        engines.append(Engine(settings, base=Base(manifest, digest, SpellingTokenizer()), backend=backend))
        for name in "xy":
            engines[-1].load_adapter(bundles / name)
        return engines[-1]

    yield open_engine
    for engine in engines:
        engine.close()


def requests(adapters, sampling):
    return [
        Request(prompt, f"{length} {adapter}", adapter, sampling)
        for length, prompt in PROMPTS.items()
        for adapter in (None, *adapters)
    ]


def answers(engine, requests):
    """Token ids of each answer, all requests running together."""
    for request in requests:
        engine.submit(request)
    tokens = {request.request_id: [] for request in requests}
    while engine.has_work:
        for output in engine.step():
            tokens[output.request_id] += output.token_ids
    return tokens


@pytest.mark.parametrize("backend", ["onnx", "reference"])
@pytest.mark.parametrize("sampling", [replace(SAMPLED, temperature=0.0), SAMPLED], ids=["greedy", "sampled"])
def test_answers_together_are_those_alone(open_engine, backend, sampling):
    engine = open_engine(backend=backend)
    work = requests(engine.adapters, sampling)
    alone = {}
    for request in work:
        alone |= answers(engine, [request])
    assert answers(engine, work) == alone
    assert answers(engine, work[::-1]) == alone
    assert len({tuple(tokens) for tokens in alone.values()}) == len(work)
    assert engine.stats().memory.reserved[Kind.KV] == 0


def test_both_back_ends_give_the_same_answers(open_engine):
    greedy = replace(GREEDY, max_tokens=12)
    onnx, reference = (open_engine(backend=name) for name in ("onnx", "reference"))
    work = requests(onnx.adapters, greedy)
    assert answers(onnx, work) == answers(reference, work)


def test_eviction_between_requests_changes_nothing(open_engine):
    roomy = open_engine(backend="onnx")
    two_adapters_bytes = roomy.stats().memory.reserved[Kind.ADAPTERS]
    tight = open_engine(backend="onnx", adapter_budget_bytes=two_adapters_bytes - 1)
    work = requests(roomy.adapters, SAMPLED)
    assert answers(tight, work) == answers(roomy, work)
    assert tight.stats().memory.reserved[Kind.ADAPTERS] == two_adapters_bytes // 2


def test_generate_streams_one_request(open_engine):
    engine = open_engine(backend="onnx")
    outputs = list(engine.generate(PROMPTS["short"], adapter=engine.adapters[0], sampling=SAMPLED))
    assert outputs[-1].finish_reason is FinishReason.LENGTH
    assert outputs[-1].usage.completion_tokens == 12
    assert "".join(o.text for o in outputs) == "".join(chr(t) for o in outputs for t in o.token_ids)
    stats = engine.stats()
    assert (stats.backend, stats.total.prefill_tokens, stats.total.decode_tokens) == ("onnx", 5, 11)
    assert stats.memory.pss_bytes > 0


@pytest.mark.skipif(not importlib.util.find_spec("socle_native"), reason="the others hold copies")
@pytest.mark.parametrize("how", ["cut", "written to"])
def test_an_adapter_whose_file_changes_under_us_fails_its_requests_and_no_others(open_engine, bundles, tmp_path, how):
    adapter = tmp_path / "z"
    make_adapter(adapter, bundles / "base", seed=9)
    engine = open_engine(backend="native")
    digest = engine.load_adapter(adapter)
    engine.submit(Request((1, 2, 3), "with", digest, replace(GREEDY, max_tokens=20)))
    engine.submit(Request((1, 2, 3), "without", None, replace(GREEDY, max_tokens=20, ignore_eos=True)))
    engine.step()
    with (adapter / ADAPTER_WEIGHTS).open("r+b") as file:
        file.truncate(1000) if how == "cut" else file.write(b"other")
    last = {}
    while engine.has_work:
        last |= {output.request_id: output for output in engine.step()}
    assert (last["with"].finish_reason, last["with"].error.code) == (FinishReason.ERROR, "bad_bundle")
    assert last["without"].usage.completion_tokens == 20
    assert engine.stats().memory.reserved[Kind.KV] == 0
