"""ONNX Runtime against the reference back end, on random models of every family."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from engine.artifact import ADAPTER_WEIGHTS
from engine.backends import Segment, open_backend
from engine.backends.onnx import OnnxBackend
from engine.backends.onnx_weights import repack
from engine.backends.reference import ReferenceBackend
from engine.backends.weights import Matrix
from engine.config import EngineConfig
from engine.errors import BundleError, CapacityError, UnsupportedInputError
from engine.layout import SUBGROUP_INPUTS, pack_int4, pack_int8
from tests.engine.golden_cases import GOLDEN_CASES
from tests.engine.random_bundles import FAMILIES, QWEN3, make_adapter, make_base

TOKENS = np.random.default_rng(0).integers(0, QWEN3.vocab_size, 30).astype(np.int32)
ALL_ROWS = tuple(range(len(TOKENS)))
EXACT = EngineConfig(onnx_accuracy_level=0, num_threads=1)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    """`<family>-<weights>` bases, each with an adapter of all modules (-x) and one of a single projection (-y)."""
    folder = tmp_path_factory.mktemp("onnx")
    for family, architecture in FAMILIES.items():
        for weights in ("float32", "int4"):
            base = folder / f"{family}-{weights}"
            make_base(base, architecture, weights)
            make_adapter(folder / f"{base.name}-x", base, seed=1)
            make_adapter(folder / f"{base.name}-y", base, seed=2, rank=3, only="1.self_attn.q_proj")
    return folder


def opened(backend, bundles, name):
    """A back end with its adapters "x" and "y"."""
    for adapter in "xy":
        backend.load_adapter(adapter, bundles / f"{name}-{adapter}")
    return backend


@pytest.fixture(scope="session")
def qwen3(bundles):
    return opened(OnnxBackend(bundles / "qwen3-float32", EXACT), bundles, "qwen3-float32")


def run(backend, state, token_ids, adapter=None, logit_rows=None):
    rows = tuple(range(len(token_ids))) if logit_rows is None else logit_rows
    return backend.step([Segment(state, np.asarray(token_ids, np.int32), adapter, rows)])[0]


def logits(backend, adapter=None):
    return run(backend, backend.new_state(len(TOKENS)), TOKENS, adapter)


@pytest.mark.parametrize("weights", ["float32", "int4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_reference(bundles, family, weights):
    name = f"{family}-{weights}"
    onnx = opened(OnnxBackend(bundles / name, EXACT), bundles, name)
    reference = opened(ReferenceBackend(bundles / name), bundles, name)
    answers = {adapter: logits(onnx, adapter) for adapter in (None, "x", "y")}
    for adapter, answer in answers.items():
        np.testing.assert_allclose(answer, logits(reference, adapter), atol=1e-3, rtol=0)
    assert all(np.abs(answers[a] - answers[None]).max() > 0.1 for a in "xy")


@pytest.mark.parametrize("case", GOLDEN_CASES, ids=str)
def test_logits_are_those_of_transformers_and_peft(case, tmp_path):
    base, adapter = case.convert(tmp_path)
    backend = OnnxBackend(base, EXACT)
    backend.load_adapter("x", adapter)
    for name, digest in (("base_logits", None), ("adapter_logits", "x")):
        token_ids = case.expected("token_ids")
        answer = run(backend, backend.new_state(len(token_ids)), token_ids, digest)
        np.testing.assert_allclose(answer, case.expected(name), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_int8_activations_stay_close(bundles, family):
    name = f"{family}-int4"
    onnx = opened(OnnxBackend(bundles / name, EngineConfig(num_threads=1)), bundles, name)
    reference = opened(ReferenceBackend(bundles / name), bundles, name)
    for adapter in (None, "x"):
        answer, expected = logits(onnx, adapter), logits(reference, adapter)
        assert np.corrcoef(answer.ravel(), expected.ravel())[0, 1] > 0.995
        assert np.abs(answer - expected).max() > 1e-4  # it is int8 indeed


@pytest.mark.parametrize("bits", [4, 8])
def test_repacking_keeps_every_weight(bits):
    generator = np.random.default_rng(bits)
    values = generator.integers(0, 2**bits, (20, 80), dtype=np.uint8)
    scales = generator.uniform(0.1, 1.0, (20, 1)).astype(np.float16)
    multipliers = generator.integers(-15, 16, (20, 3), np.int8) if bits == 4 else np.ones((20, 3), np.int8)
    stored = pack_int4(values, multipliers, scales) if bits == 4 else pack_int8(values, scales)
    packed, packed_scales = repack(Matrix(stored, 20, 80, bits))
    assert packed.shape == (20, 3, SUBGROUP_INPUTS * bits // 8)
    pairs = packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1)
    np.testing.assert_array_equal(pairs.reshape(20, 96)[:, :80], values)
    np.testing.assert_array_equal(packed_scales, scales.astype(np.float32) * multipliers)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cuts", [(1, 2, 3), (16,), tuple(range(1, 30))])
def test_a_prompt_in_chunks_gives_the_same_as_whole(bundles, family, cuts):
    backend = OnnxBackend(bundles / f"{family}-float32", EXACT)
    state = backend.new_state(len(TOKENS))
    chunks = [run(backend, state, chunk) for chunk in np.split(TOKENS, cuts)]
    np.testing.assert_allclose(np.concatenate(chunks), logits(backend), atol=1e-5, rtol=0)
    assert state.num_tokens == len(TOKENS)


def test_only_the_rows_asked_for_come_back(qwen3):
    whole = logits(qwen3)
    state = qwen3.new_state(len(TOKENS))
    np.testing.assert_allclose(run(qwen3, state, TOKENS, logit_rows=(4, 29)), whole[[4, 29]], atol=1e-6)
    state.rewind(0)
    assert run(qwen3, state, TOKENS, logit_rows=()).shape == (0, QWEN3.vocab_size)


def test_a_rewound_state_has_forgotten(qwen3):
    state = qwen3.new_state(len(TOKENS))
    run(qwen3, state, np.concatenate([TOKENS[:10], TOKENS[:20]]))
    state.rewind(10)
    np.testing.assert_allclose(run(qwen3, state, TOKENS[10:]), logits(qwen3)[10:], atol=1e-5)
    with pytest.raises(ValueError, match="cannot rewind to 31 tokens, the state holds 30"):
        state.rewind(31)


def test_adapters_in_turns_give_the_same_bits_as_alone(qwen3):
    adapters = (None, "x", "y")
    alone = {}
    for adapter in adapters:
        state = qwen3.new_state(len(TOKENS))
        alone[adapter] = [run(qwen3, state, chunk, adapter) for chunk in (TOKENS[:20], TOKENS[20:21], TOKENS[21:22])]
    states = {adapter: qwen3.new_state(len(TOKENS)) for adapter in adapters}
    for step, chunk in enumerate((TOKENS[:20], TOKENS[20:21], TOKENS[21:22])):
        rows = tuple(range(len(chunk)))
        answers = qwen3.step([Segment(states[adapter], chunk, adapter, rows) for adapter in adapters])
        for adapter, answer in zip(adapters, answers, strict=True):
            np.testing.assert_array_equal(answer, alone[adapter][step])


def test_a_state_may_change_its_adapter(qwen3):
    state = qwen3.new_state(len(TOKENS))
    seconds = qwen3.adapter_switch_s
    for adapter in ("x", None, "y"):
        state.rewind(0)
        np.testing.assert_array_equal(run(qwen3, state, TOKENS, adapter), logits(qwen3, adapter))
    assert qwen3.adapter_switch_s > seconds


def test_adapters_come_and_go(bundles):
    backend = OnnxBackend(bundles / "qwen3-float32", EXACT)
    size_bytes = backend.load_adapter("a", bundles / "qwen3-float32-y")
    assert size_bytes == 4 * 3 * (QWEN3.hidden_size + QWEN3.num_attention_heads * QWEN3.head_dim)
    state = backend.new_state(len(TOKENS))
    run(backend, state, TOKENS, "a")
    backend.unload_adapter("a")
    state.rewind(0)
    with pytest.raises(KeyError):
        run(backend, state, TOKENS, "a")
    np.testing.assert_array_equal(run(backend, state, TOKENS), logits(backend))


@pytest.mark.parametrize("backend_class", [OnnxBackend, ReferenceBackend])
@pytest.mark.parametrize("weights", ["float32", "int4"])
def test_adapters_are_copies_that_outlive_their_files(bundles, tmp_path, weights, backend_class):
    base = bundles / f"qwen3-{weights}"
    backend = OnnxBackend(base, EXACT) if backend_class is OnnxBackend else ReferenceBackend(base)
    bundle = Path(shutil.copytree(f"{base}-x", tmp_path / "adapter"))
    backend.load_adapter("x", bundle)
    expected = logits(backend, "x")
    os.truncate(bundle / ADAPTER_WEIGHTS, 0)
    backend.check_adapter("x")
    np.testing.assert_array_equal(logits(backend, "x"), expected)


def test_a_full_state_refuses(qwen3):
    state = qwen3.new_state(10)
    assert state.size_bytes == qwen3.state_bytes(10) == 10 * QWEN3.kv_bytes_per_token(4)
    run(qwen3, state, TOKENS[:8])
    with pytest.raises(ValueError, match="8 of 10 are taken"):
        run(qwen3, state, TOKENS[:3])
    assert run(qwen3, state, TOKENS[:2]).shape == (2, QWEN3.vocab_size)
    state.close()


def test_nothing_stays_in_the_scratch_directory(bundles, tmp_path):
    backend = OnnxBackend(bundles / "qwen3-int4", EngineConfig(scratch_dir=str(tmp_path), num_threads=1))
    assert list(tmp_path.iterdir()) == []
    assert np.isfinite(logits(backend)).all()
    backend.close()


def test_a_scratch_directory_that_cannot_be_written_is_named(bundles, tmp_path):
    with pytest.raises(CapacityError, match="set scratch_dir"):
        OnnxBackend(bundles / "qwen3-int4", EngineConfig(scratch_dir=str(tmp_path / "missing")))


def test_an_adapter_of_other_shapes_is_refused(bundles, tmp_path, qwen3):
    make_base(tmp_path / "base", FAMILIES["qwen2"])
    make_adapter(tmp_path / "a", tmp_path / "base")
    with pytest.raises(BundleError, match="expected"):
        qwen3.load_adapter("a", tmp_path / "a")


@pytest.mark.parametrize(("name", "expected"), [("onnx", OnnxBackend), ("reference", ReferenceBackend)])
def test_back_ends_are_opened_by_name(bundles, name, expected):
    backend = open_backend(bundles / "qwen3-float32", EngineConfig(backend=name, num_threads=1))
    assert type(backend) is expected
    assert backend.name == name


def test_a_tree_is_refused_and_nothing_appended(qwen3):
    state = qwen3.new_state(10)
    with pytest.raises(UnsupportedInputError, match="use the native back end for trees"):
        qwen3.step([Segment(state, np.arange(3, dtype=np.int32), None, (2,), parents=(-1, 0, 0))])
    with pytest.raises(UnsupportedInputError, match="use the native back end for trees"):
        state.accept([0, 1])
    state.accept([])
    assert state.num_tokens == 0
