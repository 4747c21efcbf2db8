"""The native back end against its own arithmetic in numpy, transformers and peft, and what it refuses."""

import functools
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.artifact import ADAPTER_WEIGHTS, BASE_WEIGHTS, read_adapter, write_manifest
from engine.backends import Segment, open_backend
from engine.backends.native import NativeBackend
from engine.backends.reference import ReferenceBackend
from engine.backends.weights import BaseWeights
from engine.config import EngineConfig
from engine.errors import BundleError, InvalidInputError, NumericalError, UnsupportedInputError
from engine.layout import dequantise
from engine.parameters import ATTENTION_BIASES, LAYER_LINEARS, LAYER_NORMS
from engine.sampling import GREEDY, SamplingParams, next_token
from engine.tensor_file import TensorFile
from tests.engine.golden_cases import GOLDEN_CASES
from tests.engine.instruction_sets import INSTRUCTION_SETS, scales_in
from tests.engine.native_models import (
    ADAPTERS,
    MODELS,
    Models,
    NativeArithmetic,
    adapter_of,
    logits_of,
    multiply_int8,
    random_tokens,
    run,
    with_adapters,
)
from tests.engine.random_bundles import LLAMA, QWEN3, make_adapter, make_base, write_tensors

FASTEST = INSTRUCTION_SETS[0]
NUM_REFINED_TILES = 128


@pytest.fixture(scope="module", params=INSTRUCTION_SETS, ids=str)
def instruction_set(request):
    """Whoever imports these tests for another processor defines its own."""
    return request.param


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def base(models):
    return models.base("qwen3-int4")


@pytest.fixture(scope="module")
def backend(base):
    return with_adapters(FASTEST.open(base, num_threads=1), base)


TOKENS = random_tokens(QWEN3.vocab_size, 30)


# What it computes


@functools.cache
def expected_logits(base, kv_type):
    """Of some short prompts with each adapter and none: {(seed, adapter): [rows, vocab_size]}."""
    arithmetic = NativeArithmetic(base, kv_type)
    return {
        (seed, adapter): arithmetic.logits(random_tokens(37, 8, seed), adapter)
        for seed in range(3)
        for adapter in (None, *ADAPTERS)
    }


@pytest.mark.parametrize("kv_type", ["fp16", "int8"])
@pytest.mark.parametrize("model", MODELS)
def test_logits_are_those_of_its_arithmetic_in_numpy(models, instruction_set, model, kv_type):
    """A sum in another order can round an activation to the next of its steps: seldom, but it shifts what follows."""
    base = models.base(model)
    backend = with_adapters(instruction_set.open(base, kv_type=kv_type, num_threads=1), base)
    differences = np.concatenate(
        [
            np.abs(logits_of(backend, random_tokens(37, 8, seed), adapter) - expected).max(axis=1)
            for (seed, adapter), expected in expected_logits(base, kv_type).items()
        ]
    )  # of each row
    close, far = {"float32": (1e-4, 0.02), "int4": (1e-5, 0.2)}[model.rpartition("-")[2]]
    assert np.quantile(differences, 0.75) < close
    assert differences.max() < far


@pytest.mark.parametrize("case", GOLDEN_CASES, ids=str)
def test_logits_are_those_of_transformers_and_peft(case, instruction_set, tmp_path):
    base, adapter = case.convert(tmp_path)
    backend = instruction_set.open(base, num_threads=1)
    backend.load_adapter("x", adapter)
    for name, digest in (("base_logits", None), ("adapter_logits", "x")):
        difference = logits_of(backend, case.expected("token_ids"), digest) - case.expected(name)
        # Keys and values are fp16; the logits' standard deviation is 1.5.
        assert np.sqrt(np.mean(difference**2)) < 2e-3
        assert np.abs(difference).max() < 0.02


@pytest.mark.parametrize("model", ["qwen3-float32", "mistral-float32"])
def test_int8_keys_and_values_stay_close_to_the_reference(models, model):
    base = models.base(model)
    backend = with_adapters(FASTEST.open(base, kv_type="int8", num_threads=1), base)
    reference = with_adapters(ReferenceBackend(base), base)
    for adapter in (None, *ADAPTERS):
        answer, expected = logits_of(backend, TOKENS, adapter), logits_of(reference, TOKENS, adapter)
        assert np.corrcoef(answer.ravel(), expected.ravel())[0, 1] > 0.999


@pytest.fixture(scope="module")
def large_head(tmp_path_factory):
    base = tmp_path_factory.mktemp("large") / "base"
    make_base(base, replace(LLAMA, vocab_size=3001), "int4")
    return base


@functools.cache
def coarse_logits(base):
    """Of `TOKENS`, with the first plane of the head alone, [rows, vocab_size]."""
    head = BaseWeights.open(base).head
    states = NativeArithmetic(base).hidden_states(TOKENS)
    return multiply_int8(states, dequantise(head.stored[0], 4, head.rows, head.inputs))


def refined_tokens(base):
    """Whether a token's logit is worked out in 8 bits, [rows, vocab_size]."""
    coarse = coarse_logits(base)
    vocab_size = coarse.shape[1]
    tiles = np.pad(coarse, ((0, 0), (0, -vocab_size % 16)), constant_values=-np.inf).reshape(len(TOKENS), -1, 16)
    least = np.sort(tiles.max(axis=2))[:, [-NUM_REFINED_TILES]]  # [rows, 1]
    return np.repeat(tiles.max(axis=2) >= least, 16, axis=1)[:, :vocab_size]


def test_only_the_likeliest_tokens_of_a_large_vocabulary_are_worked_out_in_8_bits(instruction_set, large_head):
    coarse, head = coarse_logits(large_head), BaseWeights.open(large_head).head
    fine = multiply_int8(NativeArithmetic(large_head).hidden_states(TOKENS), head.dense())
    expected = np.where(refined_tokens(large_head), fine, coarse)
    difference = np.abs(logits_of(instruction_set.open(large_head, num_threads=1), TOKENS) - expected)
    assert np.quantile(difference.max(axis=1), 0.75) < 1e-5
    assert np.abs(expected - coarse).max() > 0.05


# States and adapters


def test_only_the_rows_asked_for_have_logits(backend):
    whole, state = logits_of(backend, TOKENS), backend.new_state(len(TOKENS))
    (some,) = backend.step([Segment(state, TOKENS, None, (4, 29))])
    np.testing.assert_array_equal(some, whole[[4, 29]])
    state.rewind(0)
    (none,) = backend.step([Segment(state, TOKENS, None, ())])
    assert none.shape == (0, QWEN3.vocab_size)
    assert state.num_tokens == len(TOKENS)
    assert backend.step([]) == []


def test_adapters_come_and_go(base, backend):
    before = logits_of(backend, TOKENS)
    assert backend.load_adapter("once", adapter_of(base, "some-8")) > 0
    np.testing.assert_array_equal(logits_of(backend, TOKENS, "once"), logits_of(backend, TOKENS, "some-8"))
    backend.unload_adapter("once")
    with pytest.raises(KeyError):
        logits_of(backend, TOKENS, "once")
    np.testing.assert_array_equal(logits_of(backend, TOKENS), before)


@pytest.mark.parametrize("model", ["qwen3-int4", "qwen3-float32"])
def test_an_adapter_is_mapped_as_long_as_it_is_loaded(models, tmp_path, model):
    base = models.base(model)
    backend = with_adapters(FASTEST.open(base, num_threads=1), base)
    bundle = Path(shutil.copytree(adapter_of(base, "all-3"), tmp_path / "adapter"))

    def is_mapped():
        return str(bundle / ADAPTER_WEIGHTS) in Path("/proc/self/maps").read_text(encoding="utf-8")

    assert backend.load_adapter("x", bundle) == sum(
        spec.size_bytes for spec in TensorFile(bundle / ADAPTER_WEIGHTS).values()
    )
    assert is_mapped()
    shutil.rmtree(bundle)
    np.testing.assert_array_equal(logits_of(backend, TOKENS, "x"), logits_of(backend, TOKENS, "all-3"))
    backend.unload_adapter("x")
    assert not is_mapped()


@pytest.mark.parametrize("kv_type", ["fp16", "int8"])
def test_a_state_takes_the_bytes_that_were_foretold(base, kv_type):
    backend = FASTEST.open(base, kv_type=kv_type, num_threads=1)
    state = backend.new_state(65)
    assert state.size_bytes == backend.state_bytes(65) == backend.state_bytes(128) == 2 * backend.state_bytes(1)
    assert 64 * QWEN3.kv_bytes_per_token(2 if kv_type == "fp16" else 1) <= backend.state_bytes(1)
    state.close()
    assert (state.num_tokens, state.size_bytes) == (0, 0)


def test_a_state_outlives_its_back_end(base):
    backend = FASTEST.open(base, num_threads=1)
    state = backend.new_state(40)
    logits = backend.step([Segment(state, TOKENS, None, (29,))])[0]
    kept = logits.copy()
    backend.close()
    np.testing.assert_array_equal(logits, kept)
    state.rewind(3)
    assert state.num_tokens == 3


def test_it_samples_as_the_others_do(backend):
    for sampling in (GREEDY, SamplingParams(top_k=10_000_000), SamplingParams(top_p=0.9, repetition_penalty=1.1)):
        for row in logits_of(backend, TOKENS):
            token = backend.next_token(row, sampling, TOKENS.tolist(), 0.3)
            assert token == next_token(row, sampling, TOKENS.tolist(), 0.3)
    with pytest.raises(NumericalError, match="not finite"):
        backend.next_token(np.full(3, np.nan, np.float32), GREEDY, [], 0.0)


# What it refuses


def segment(state, token_ids=TOKENS[5:8], *, adapter=None, logit_rows=(), parents=None):
    return Segment(state, np.asarray(token_ids, np.int32), adapter, logit_rows, parents)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (lambda state, _: [segment(state, range(36))], "no room for 36 tokens: 5 of 40 are taken"),
        (lambda state, other: [segment(state), segment(other, [113])], "token 113 is not below 113"),
        (lambda state, other: [segment(other), segment(state, [-1])], "token -1 is not below 113"),
        (lambda state, _: [segment(state, logit_rows=(1, 3))], "logits of row 3 of 3"),
        (lambda state, _: [segment(state, logit_rows=(1, 1))], "rows ascend"),
        (lambda state, _: [segment(state, logit_rows=(-1,))], "logits of row -1"),
        (lambda state, _: [segment(state), segment(state)], "two segments of a step have the same state"),
        (lambda state, other: [segment(state), segment(other, [0] * 254)], "257 rows in one step, at most 256"),
        (lambda state, _: [segment(state, parents=(-1, 0))], "a parent for each token"),
        (lambda state, _: [segment(state, parents=(-1, 1, 0))], "row 1 follows row 1: a parent comes first"),
        (lambda state, _: [segment(state, parents=(-1, 2, 0))], "row 1 follows row 2: a parent comes first"),
        (lambda state, _: [segment(state, parents=(-2, 0, 0))], "row 0 follows row -2: a parent comes first"),
        (lambda _, other: [segment(other, [0] * 65, parents=(-1,) * 65)], "a tree of 65 rows, at most 64"),
    ],
)
def test_a_step_that_cannot_be_done_changes_nothing(backend, segments, message):
    state, other = backend.new_state(40), backend.new_state(300)
    run(backend, state, TOKENS[:5])
    with pytest.raises(ValueError, match=message):
        backend.step(segments(state, other))
    assert (state.num_tokens, other.num_tokens) == (5, 0)
    np.testing.assert_array_equal(run(backend, state, TOKENS[5:]), logits_of(backend, TOKENS)[5:])


def test_a_closed_state_is_refused(backend):
    state = backend.new_state(10)
    state.close()
    with pytest.raises(ValueError, match="closed"):
        run(backend, state, TOKENS[:1])


def test_a_state_refuses_to_rewind_to_what_it_never_had(backend):
    state = backend.new_state(10)
    run(backend, state, TOKENS[:4])
    for num_tokens in (5, -1):
        with pytest.raises(ValueError, match=f"cannot rewind to {num_tokens} tokens, the state holds 4"):
            state.rewind(num_tokens)


@pytest.mark.parametrize(("limit", "max_position_embeddings"), [(16, 512), (512, 16)])
def test_a_context_beyond_the_limit_is_refused(tmp_path, limit, max_position_embeddings):
    make_base(tmp_path / "base", replace(QWEN3, max_position_embeddings=max_position_embeddings))
    backend = FASTEST.open(tmp_path / "base", max_context_tokens=limit, num_threads=1)
    assert logits_of(backend, TOKENS[:16]).shape == (16, QWEN3.vocab_size)
    with pytest.raises(ValueError, match="a context holds 16"):
        logits_of(backend, TOKENS[:17])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"instruction_set": "neon"}, "instruction_set is neon: this processor runs auto, "),
        ({"cpus": (0, 1023)}, r"cpus is \(0, 1023\): this machine has CPUs 0 to "),
    ],
)
def test_what_this_machine_lacks_is_named(base, settings, message):
    with pytest.raises(UnsupportedInputError, match=message):
        NativeBackend(base, EngineConfig(**settings))


@pytest.mark.parametrize("shape", [{"head_dim": 5}, {"num_attention_heads": 3}])
def test_heads_that_the_core_cannot_run_are_refused(tmp_path, shape):
    make_base(tmp_path / "base", replace(QWEN3, **shape))
    with pytest.raises(UnsupportedInputError, match="heads of"):
        FASTEST.open(tmp_path / "base")


@pytest.mark.parametrize("settings", [{"cpus": [-1]}, {"cpus": [1024]}, {"duty_cycle": 0.0}, {"duty_cycle": 1.5}])
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(InvalidInputError, match=next(iter(settings))):
        EngineConfig.from_mapping(settings)


def test_the_configured_back_end_is_opened(base):
    backend = open_backend(base, EngineConfig(backend="native", instruction_set="portable", duty_cycle=0.9))
    assert backend.instruction_set == "portable"
    np.testing.assert_array_equal(logits_of(backend, TOKENS), logits_of(FASTEST.open(base), TOKENS))


def test_threads_run_where_they_are_told_to_until_the_end(base):
    allowed = os.sched_getaffinity(0)
    cpu = max(allowed)
    backend = FASTEST.open(base, cpus=(cpu, cpu))
    logits_of(backend, TOKENS)
    threads = [os.sched_getaffinity(int(path.name)) for path in Path("/proc/self/task").iterdir()]
    assert threads.count({cpu}) >= 2  # the caller is one of them
    backend.close()
    assert os.sched_getaffinity(0) == allowed


def test_the_fastest_instruction_set_is_taken_unless_told_otherwise(base):
    assert NativeBackend(base, EngineConfig()).instruction_set == FASTEST.name


# Damaged bundles


def changed(bundle, folder, name, change, weights=BASE_WEIGHTS):
    """A copy of the bundle in which `change` has been called on one tensor."""
    file = TensorFile(bundle / weights)
    tensors = {tensor: file.view(tensor).copy() for tensor in file}
    change(tensors[name])
    shutil.copytree(bundle, folder, ignore=shutil.ignore_patterns(weights))
    write_tensors(folder / weights, tensors)
    return folder


def test_a_file_that_is_cut_short_is_refused(base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    weights = tmp_path / "base" / BASE_WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BundleError, match=BASE_WEIGHTS):
        FASTEST.open(tmp_path / "base")


def test_weights_of_another_shape_are_refused(models, tmp_path):
    base = models.base("qwen3-int4")
    shutil.copytree(base, tmp_path / "base")
    shutil.copy(models.base("qwen3-odd-int4") / BASE_WEIGHTS, tmp_path / "base")
    with pytest.raises(BundleError, match="expected"):
        FASTEST.open(tmp_path / "base")


@pytest.mark.parametrize("other", ["qwen3-odd-int4", "qwen3-float32"])
def test_an_adapter_of_another_shape_or_type_is_refused(models, backend, other):
    with pytest.raises(BundleError, match=r"lora_[AB] is .* expected"):
        backend.load_adapter("x", adapter_of(models.base(other), "all-3"))


def test_an_adapter_of_too_high_a_rank_is_refused(base, backend, tmp_path):
    make_adapter(tmp_path / "256", base, rank=256, only="0.self_attn.q_proj")
    make_adapter(tmp_path / "257", base, rank=257, only="0.self_attn.q_proj")
    backend.load_adapter("256", tmp_path / "256")
    assert np.isfinite(logits_of(backend, TOKENS, "256")).all()
    with pytest.raises(UnsupportedInputError, match="rank 257, the engine runs up to 256"):
        backend.load_adapter("257", tmp_path / "257")


def test_an_adapter_that_changes_nothing_is_refused(base, backend, tmp_path):
    make_adapter(tmp_path / "a", base, only="no such module")
    with pytest.raises(BundleError, match="changes nothing"):
        backend.load_adapter("x", tmp_path / "a")


@pytest.mark.parametrize("rank", [0, -1])
def test_an_adapter_with_an_impossible_rank_is_refused(base, backend, tmp_path, rank):
    make_adapter(tmp_path / "a", base, only="0.self_attn.q_proj")
    manifest, _ = read_adapter(tmp_path / "a")
    write_manifest(tmp_path / "a", replace(manifest, ranks=dict.fromkeys(manifest.ranks, rank)))
    with pytest.raises(BundleError, match=f"q_proj has rank {rank}: fetch it again"):
        backend.load_adapter("x", tmp_path / "a")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("matrix", ["lora_A", "lora_B"])
@pytest.mark.parametrize("model", ["qwen3-int4", "qwen3-float32"])
def test_an_adapter_that_is_not_finite_is_refused(models, tmp_path, model, matrix, bad):
    def damage(tensor):
        numbers = scales_in(tensor) if tensor.dtype == np.uint8 else tensor
        numbers[-1, ..., -1] = bad

    base, name = models.base(model), f"model.layers.1.mlp.up_proj.{matrix}"
    adapter = changed(adapter_of(base, "all-16"), tmp_path / "a", name, damage, ADAPTER_WEIGHTS)
    with pytest.raises(BundleError, match="not finite: fetch it again"):
        FASTEST.open(base, num_threads=1).load_adapter("x", adapter)


def test_an_adapter_that_changes_while_it_is_loaded_is_noticed(base, backend, tmp_path):
    changes = {"cut": lambda path: os.truncate(path, 4096), "touched": lambda path: os.utime(path, (0, 0))}
    for name, change in changes.items():
        shutil.copytree(adapter_of(base, "all-3"), tmp_path / name)
        backend.load_adapter(name, tmp_path / name)
        backend.check_adapter(name)
        change(tmp_path / name / ADAPTER_WEIGHTS)
        with pytest.raises(BundleError, match=r"adapter\.safetensors changed while it was in use: fetch it again"):
            backend.check_adapter(name)
        backend.unload_adapter(name)
    backend.check_adapter("all-3")


LAYER_MATRICES = [f"model.layers.1.{name}.weight" for name in LAYER_LINEARS]
MATRICES = ["model.embed_tokens.weight", *LAYER_MATRICES]
VECTORS = ["model.norm.weight", *(f"model.layers.1.{name}" for name in ATTENTION_BIASES | LAYER_NORMS)]
DAMAGE = [(f"qwen2-{weights}", name) for weights in ("int4", "float32") for name in MATRICES + VECTORS]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("model", "name"), DAMAGE)
def test_a_number_that_is_not_finite_never_becomes_an_answer(models, instruction_set, tmp_path, model, name, bad):
    base = damaged(models.base(model), tmp_path / "base", name, bad)
    with pytest.raises(NumericalError):
        sample(logits_of(instruction_set.open(base, num_threads=1), [3, 1, 4])[-1])


def damaged(base, folder, name, bad):
    """A copy of the base in which something of token 3, or of the fourth feature, is bad."""

    def damage(tensor):
        if tensor.dtype == np.uint8:
            scales_in(tensor.reshape(-1, tensor.shape[-1]))[0, 3] = bad
        else:
            tensor.reshape(len(tensor), -1)[3, -1] = bad

    return changed(base, folder, name, damage)


@pytest.mark.parametrize("kv_type", ["fp16", "int8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("model", ["llama-int4", "llama-float32"])
def test_a_token_that_is_not_finite_spoils_no_row_before_it(models, instruction_set, tmp_path, model, bad, kv_type):
    base = damaged(models.base(model), tmp_path / "base", "model.embed_tokens.weight", bad)
    token_ids = [5, 7, 1, 9, 2, 3, 8, 4, 6, 5]
    expected = logits_of(instruction_set.open(models.base(model), kv_type=kv_type, num_threads=1), token_ids)
    logits = logits_of(instruction_set.open(base, kv_type=kv_type, num_threads=1), token_ids)
    np.testing.assert_array_equal(logits[:5].view(np.uint32), expected[:5].view(np.uint32))
    assert not np.isfinite(logits[5:]).any()


def sample(logits):
    """The token that each way of sampling takes."""
    return {next_token(logits, sampling, [], 0.5) for sampling in (GREEDY, SamplingParams())}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("model", ["llama-int4", "llama-float32"])
def test_a_token_whose_head_is_not_finite_makes_every_answer_an_error(models, instruction_set, tmp_path, model, bad):
    base = damaged(models.base(model), tmp_path / "base", "lm_head.weight", bad)
    logits = logits_of(instruction_set.open(base, num_threads=1), [3, 1, 4])
    assert np.isnan(logits).tolist() == [[token == 3 for token in range(logits.shape[1])]] * 3
    with pytest.raises(NumericalError):
        sample(logits[-1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("plane", [0, 1])
def test_a_scale_of_a_large_head_is_an_error_wherever_it_is_used(instruction_set, large_head, tmp_path, plane, bad):
    """The second plane is worked out for the likeliest tokens alone: where it is not used, it may hold anything."""
    last_row = coarse_logits(large_head)[-1]  # [vocab_size]
    unlikely = np.where(refined_tokens(large_head)[-1], np.inf, last_row).argmin()
    for name, token in (("likely", last_row.argmax()), ("unlikely", unlikely)):

        def damage(planes, token=token):
            scales_in(planes)[plane, token // 16, 0, token % 16] = bad

        base = changed(large_head, tmp_path / name, "lm_head.weight", damage)
        logits = logits_of(instruction_set.open(base, num_threads=1), TOKENS)[-1]
        is_used = plane == 0 or name == "likely"
        assert np.isnan(logits).nonzero()[0].tolist() == ([token] if is_used else [])
        assert np.isfinite(np.delete(logits, token)).all()
