"""Requests of several adapters on one base at the same time: token by token, and bit for bit as if alone."""

import importlib.util
import itertools
from dataclasses import replace

import pytest

from engine.artifact import read_base
from engine.backends import open_backend
from engine.business import Business, Deadline
from engine.config import EngineConfig
from engine.errors import UnknownAdapterError
from engine.ledger import Kind
from engine.runtime import Base, Engine
from engine.sampling import SamplingParams
from engine.sequence import FinishReason, Request
from tests.engine.random_bundles import QWEN3, make_adapter, make_base
from tests.engine.scripted_backend import VOCAB_SIZE, SpellingTokenizer

BACKENDS = ["reference", "onnx", *(["native"] if importlib.util.find_spec("socle_native") else [])]
EXACT = [name for name in BACKENDS if name != "onnx"]  # those that may compute a state again
SAMPLING = SamplingParams(temperature=1.0, seed=3, max_tokens=10, ignore_eos=True, logprobs=3)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interleaving")
    make_base(folder / "base", replace(QWEN3, vocab_size=VOCAB_SIZE), "int4")
    for seed, name in enumerate("xyz", start=1):
        make_adapter(folder / name, folder / "base", seed=seed, scale=1.0, rank=3 + seed)
    return folder


class Recorder:
    """A back end that remembers which adapters ran in each step."""

    def __init__(self, backend):
        self._backend = backend
        self.steps = []

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def step(self, segments):
        self.steps.append([(segment.adapter, len(segment.token_ids)) for segment in segments])
        return self._backend.step(segments)


@pytest.fixture
def open_engine(bundles):
    engines = []

    def open_engine(backend, names="xyz", **config):
        settings = EngineConfig(backend=backend, num_threads=1, **{"prefill_chunk_tokens": 32} | config)
        manifest, digest = read_base(bundles / "base")
        recorder = Recorder(open_backend(bundles / "base", settings))
        engines.append(Engine(settings, base=Base(manifest, digest, SpellingTokenizer()), backend=recorder))
        for name in names:
            engines[-1].load_adapter(bundles / name)
        return engines[-1]

    yield open_engine
    for engine in engines:
        engine.close()


def request(name, adapter, length=70, business=None, **sampling):
    prompt = tuple(1 + (index * 7 + len(name)) % 97 for index in range(length))
    return Request(prompt, name, adapter, replace(SAMPLING, **sampling), business or Business())


def run(engine, *, until=None):
    """Tokens and probabilities of all answers to the last bit, until there is no work or something holds."""
    bits = {}
    while engine.has_work and not (until and until()):
        for output in engine.step():
            assert output.error is None
            bits.setdefault(output.request_id, []).extend(zip(output.token_ids, output.logprobs, strict=True))
    return bits


def alone(engine, wanted):
    engine.submit(wanted)
    return run(engine)[wanted.request_id]


def merge(*parts):
    whole = {}
    for part in parts:
        for name, bits in part.items():
            whole.setdefault(name, []).extend(bits)
    return whole


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mixes", [True, False], ids=["in one step", "step by step"])
def test_adapters_interleave_at_every_token_and_change_nothing(open_engine, backend, mixes):
    engine = open_engine(backend, mixes_adapters=mixes, ageing_s=1e-9)
    wanted = [request(f"{index}", adapter) for index, adapter in enumerate((*engine.adapters, None))]
    expected = {one.request_id: alone(open_engine(backend), one) for one in wanted}
    assert len({str(bits) for bits in expected.values()}) == len(wanted)
    for one in wanted:
        engine.submit(one)
    engine.backend.steps.clear()
    assert run(engine) == expected
    decodes = [step for step in engine.backend.steps if all(rows == 1 for _, rows in step)]
    if mixes:
        assert any(len({adapter for adapter, _ in step}) == 4 for step in decodes)
    else:
        assert all(len({adapter for adapter, _ in step}) == 1 for step in decodes)
        turns = [step[0][0] for step in decodes]
        assert sum(a != b for a, b in itertools.pairwise(turns)) > len(turns) / 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_adapters_come_and_go_while_others_answer(open_engine, bundles, backend):
    engine = open_engine(backend, "x")
    (x,) = engine.adapters
    kept = request("kept", x, max_tokens=60)
    expected = alone(open_engine(backend), kept)
    expected_y = alone(open_engine(backend), request("y", open_engine(backend).adapters[1]))
    engine.submit(kept)
    parts = [run(engine, until=lambda: engine.stats().total.decode_tokens >= 3)]
    for _ in range(3):
        y = engine.load_adapter(bundles / "y")
        engine.submit(request("y", y))
        parts.append(run(engine, until=lambda: engine.num_running + engine.num_waiting == 1))
        engine.unload_adapter(y)
        with pytest.raises(UnknownAdapterError):
            engine.submit(request("late", y))
    answers = merge(*parts, run(engine))
    assert answers["kept"] == expected
    assert answers["y"] == 3 * expected_y


def test_an_adapter_is_its_content_wherever_it_lies_and_whatever_it_is_called(open_engine, bundles, tmp_path):
    engine = open_engine("reference")
    (tmp_path / "another name").symlink_to(bundles / "x")
    assert engine.load_adapter(tmp_path / "another name") == engine.load_adapter(bundles / "x")
    assert len(engine.adapters) == 3


@pytest.mark.parametrize("backend", EXACT)
@pytest.mark.parametrize("caches", [True, False], ids=["cached", "uncached"])
@pytest.mark.parametrize("moment", ["prefill", "decode"])
def test_who_has_to_make_way_goes_on_with_the_same_bits(open_engine, backend, caches, moment):
    low = request("low", None, 100, Business("low", priority=-1, prompt_cache=caches))
    high = request("high", None, 40, Business("high", priority=1))
    expected = {one.request_id: alone(open_engine(backend), one) for one in (low, high)}
    engine = open_engine(backend, max_running=1)
    engine.submit(low)
    stats = engine.stats
    first = run(
        engine, until=lambda: stats().total.prefill_tokens >= 64 if moment == "prefill" else stats().total.decode_tokens
    )
    engine.submit(high)
    assert merge(first, run(engine)) == expected
    assert stats().total.evictions == 1
    num_again = stats().total.prefill_tokens - 140
    assert num_again < 64 if caches else num_again >= 64
    assert stats().memory.reserved[Kind.KV] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_who_is_passed_over_keeps_its_state_and_goes_on_with_the_same_bits(open_engine, backend):
    """An urgent request waits for no more than the bucket that runs when it comes."""
    patient = request("patient", None, 300, Business("patient", deadline=Deadline.PATIENT))
    urgent = request("urgent", None, 20, Business("urgent", priority=1, deadline=Deadline.URGENT))
    expected = {one.request_id: alone(open_engine(backend), one) for one in (patient, urgent)}
    engine = open_engine(backend)
    engine.submit(patient)
    engine.step()
    engine.submit(urgent)
    (output,) = engine.step()
    assert output.request_id == "urgent"
    assert merge({"urgent": zip(output.token_ids, output.logprobs, strict=True)}, run(engine)) == expected
    total = engine.stats().total
    assert (total.pre_emptions, total.evictions, total.prefill_tokens) == (1, 0, 320)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_client_that_is_gone_leaves_nothing_behind_one_step_later(open_engine, backend):
    engine = open_engine(backend)
    idle = engine.stats().memory.reserved
    for name, adapter in (("a", engine.adapters[0]), ("b", None)):
        engine.submit(request(name, adapter))
    engine.step()
    for name in "ab":
        engine.cancel(name)
    assert {output.finish_reason for output in engine.step()} == {FinishReason.CANCELLED}
    assert engine.stats().memory.reserved == idle
    assert not engine.has_work
    engine.unload_adapter(engine.adapters[0])
