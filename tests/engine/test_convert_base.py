from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from engine.artifact import read_base, verify_files
from engine.backends.weights import BaseWeights
from engine.convert import convert_base
from engine.convert.errors import ConversionError
from engine.errors import BundleError
from engine.parameters import linear_modules, parameter_shapes
from engine.tokenizer import Tokenizer
from tests.engine.golden_cases import GOLDEN_CASES

CASES = {case.name: case for case in GOLDEN_CASES}


@pytest.fixture
def source(tmp_path) -> Path:
    """A float32 checkpoint to be spoilt."""
    return Path(shutil.copytree(CASES["llama-linear"].checkpoint, tmp_path / "source"))


def edit_json(path: Path, **changes) -> None:
    document = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**document, **changes}))


def edit_tensors(source: Path, **changes) -> None:
    path = source / "model.safetensors"
    tensors = {**safetensors.numpy.load_file(path), **changes}
    safetensors.numpy.save_file({name: value for name, value in tensors.items() if value is not None}, path)


def refusal(source: Path, tmp_path: Path) -> ConversionError:
    with pytest.raises(ConversionError) as caught:
        convert_base(source, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == [source.name], "a failed conversion leaves nothing behind"
    return caught.value


@pytest.mark.parametrize("case", GOLDEN_CASES, ids=str)
@pytest.mark.parametrize("weights", ["int4", "float32"])
def test_bundle_is_whole_and_readable(case, weights, tmp_path) -> None:
    digest = convert_base(case.checkpoint, tmp_path / "bundle", weights=weights)
    manifest, read_digest = read_base(tmp_path / "bundle")
    assert (digest, manifest.weights) == (read_digest, weights)
    verify_files(tmp_path / "bundle", manifest)
    base = BaseWeights.open(tmp_path / "bundle")
    for name, shape in parameter_shapes(manifest.architecture).items():
        assert base.dense(name).shape == shape
    assert Tokenizer.open(tmp_path / "bundle").decode([70, 71]) == "de"


@pytest.mark.parametrize("case", GOLDEN_CASES, ids=str)
def test_int4_stays_close_to_float32(case, tmp_path) -> None:
    convert_base(case.checkpoint, tmp_path / "int4")
    convert_base(case.checkpoint, tmp_path / "float32", weights="float32")
    quantised, exact = BaseWeights.open(tmp_path / "int4"), BaseWeights.open(tmp_path / "float32")
    for module in linear_modules(exact.architecture):
        weight = exact.matrix(module).dense()
        assert quantised.matrix(module).bits == 4
        error = quantised.matrix(module).dense() - weight
        assert np.sqrt((error**2).mean() / (weight**2).mean()) < 0.1
    embedding = exact.embedding.dense()
    assert (quantised.embedding.bits, quantised.head.bits) == (8, 8)
    assert np.abs(quantised.embedding.dense() - embedding).max() <= np.abs(embedding).max() / 119 * 0.51
    name = "model.layers.1.input_layernorm.weight"
    assert (quantised.vector(name) == exact.vector(name)).all()


def test_agreement_is_measured_and_in_the_manifest(tmp_path) -> None:
    convert_base(CASES["qwen3"].checkpoint, tmp_path / "int4")
    agreement = read_base(tmp_path / "int4")[0].agreement
    assert agreement["num_tokens"] == 128  # the model's context
    assert 0.5 < agreement["top1"] < 1
    assert 0 < agreement["mean_kl"] < 1


def test_same_source_gives_the_same_digest(tmp_path) -> None:
    source = CASES["llama"].checkpoint
    assert convert_base(source, tmp_path / "first") == convert_base(source, tmp_path / "second")


def test_shards_and_one_file_give_the_same_digest(tmp_path) -> None:
    sharded = CASES["llama"].checkpoint
    whole = Path(shutil.copytree(sharded, tmp_path / "whole", ignore=shutil.ignore_patterns("model*")))
    tensors = {}
    for shard in sharded.glob("*.safetensors"):
        tensors |= safetensors.numpy.load_file(shard)
    safetensors.numpy.save_file(tensors, whole / "model.safetensors")
    assert convert_base(sharded, tmp_path / "first") == convert_base(whole, tmp_path / "second")


def test_weights_are_aligned_for_vector_loads(tmp_path) -> None:
    convert_base(CASES["qwen3"].checkpoint, tmp_path / "bundle")
    base = BaseWeights.open(tmp_path / "bundle")
    stored = [base.matrix(module).stored for module in linear_modules(base.architecture)]
    whole_vectors = [array for array in stored if array.nbytes % 64 == 0]
    assert len(whole_vectors) == 10  # the others are an odd number of half vectors, and come last
    assert all(array.__array_interface__["data"][0] % 64 == 0 for array in whole_vectors)


def test_progress_runs_from_nothing_to_all(tmp_path) -> None:
    calls = []
    convert_base(CASES["qwen3"].checkpoint, tmp_path / "bundle", on_progress=lambda *call: calls.append(call))
    fractions = [fraction for _, fraction in calls]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert len({step for step, _ in calls}) >= 4


def test_existing_bundle_is_not_touched(tmp_path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(FileExistsError):
        convert_base(CASES["qwen3"].checkpoint, tmp_path / "bundle")


def test_tied_head_may_be_in_the_file(source, tmp_path) -> None:
    head = safetensors.numpy.load_file(source / "model.safetensors")["model.embed_tokens.weight"]
    edit_tensors(source, **{"lm_head.weight": head, "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8)})
    convert_base(source, tmp_path / "bundle")
    assert "lm_head.weight" not in BaseWeights.open(tmp_path / "bundle")._file


def add_token(source: Path) -> None:
    document = json.loads((source / "tokenizer.json").read_text())
    document["added_tokens"].append({**document["added_tokens"][-1], "id": 320, "content": "<more>"})
    (source / "tokenizer.json").write_text(json.dumps(document))


NORM = "model.norm.weight"
REFUSALS = {
    "empty": (lambda s: [p.unlink() for p in s.iterdir()], "not_a_checkpoint", "config.json is missing"),
    "config is no json": (lambda s: (s / "config.json").write_text("{"), "not_a_checkpoint", "config.json"),
    "config is a list": (lambda s: (s / "config.json").write_text("[]"), "not_a_checkpoint", "no JSON object"),
    "config is deep": (lambda s: (s / "config.json").write_text("[" * 99999), "not_a_checkpoint", "config.json"),
    "no weights": (lambda s: (s / "model.safetensors").unlink(), "not_a_checkpoint", "model.safetensors is missing"),
    "pickle": (
        lambda s: (s / "model.safetensors").rename(s / "pytorch_model.bin"),
        "pickle_file",
        "pytorch_model.bin is a pickle file",
    ),
    "weights cut short": (
        lambda s: (s / "model.safetensors").write_bytes((s / "model.safetensors").read_bytes()[:-5]),
        "not_a_checkpoint",
        "cut short",
    ),
    "weights are html": (
        lambda s: (s / "model.safetensors").write_text("<html>Not found</html>"),
        "not_a_checkpoint",
        "cut short or no safetensors",
    ),
    "gpt2": (lambda s: edit_json(s / "config.json", model_type="gpt2"), "unknown_architecture", "gpt2"),
    "yarn": (
        lambda s: edit_json(s / "config.json", rope_parameters={"rope_type": "yarn"}),
        "unsupported_config",
        "yarn",
    ),
    "missing tensor": (lambda s: edit_tensors(s, **{NORM: None}), "missing_tensor", NORM),
    "wrong shape": (lambda s: edit_tensors(s, **{NORM: np.ones(31, np.float32)}), "shape_mismatch", r"\[31\]"),
    "surplus tensor": (lambda s: edit_tensors(s, extra=np.ones(1)), "unexpected_tensor", "extra"),
    "one layer more": (lambda s: edit_json(s / "config.json", num_hidden_layers=3), "missing_tensor", "layers.2"),
    "one layer less": (lambda s: edit_json(s / "config.json", num_hidden_layers=1), "unexpected_tensor", "layers.1"),
    "larger vocabulary": (lambda s: edit_json(s / "config.json", vocab_size=321), "shape_mismatch", "embed_tokens"),
    "nan": (lambda s: edit_tensors(s, **{NORM: np.full(32, np.nan, np.float32)}), "not_finite", NORM),
    "infinity": (lambda s: edit_tensors(s, **{NORM: np.full(32, np.inf, np.float16)}), "not_finite", NORM),
    "beyond float32": (lambda s: edit_tensors(s, **{NORM: np.full(32, 1e300)}), "not_finite", NORM),
    "too large to quantise": (
        lambda s: edit_tensors(s, **{"model.embed_tokens.weight": np.full((320, 32), 1e30, np.float32)}),
        "not_finite",
        "too large",
    ),
    "integers": (lambda s: edit_tensors(s, **{NORM: np.ones(32, np.int32)}), "not_finite", "I32"),
    "no tokenizer": (lambda s: (s / "tokenizer.json").unlink(), "unsupported_tokenizer", "missing"),
    "damaged tokenizer": (lambda s: (s / "tokenizer.json").write_text("{}"), "unsupported_tokenizer", "tokenizer.json"),
    "tokenizer of another model": (
        add_token,
        "unsupported_tokenizer",
        "a token 320, the model's vocabulary ends at 319",
    ),
    "tokenizer is binary": (
        lambda s: (s / "tokenizer.json").write_bytes(b"\xff\xfe"),
        "unsupported_tokenizer",
        "tokenizer.json",
    ),
    "template does not compile": (
        lambda s: (s / "chat_template.jinja").write_text("{% if %}"),
        "unsupported_tokenizer",
        "does not compile",
    ),
    "unknown eos token": (
        lambda s: edit_json(s / "tokenizer_config.json", eos_token="<nowhere>"),
        "unsupported_tokenizer",
        "<nowhere>",
    ),
    "eos id out of range": (
        lambda s: edit_json(s / "generation_config.json", eos_token_id=[2, 320]),
        "unsupported_tokenizer",
        "320",
    ),
    "nothing ends an answer": (
        lambda s: [
            edit_json(s / name, eos_token_id=None, eos_token=None)
            for name in ("config.json", "generation_config.json", "tokenizer_config.json")
        ],
        "unsupported_tokenizer",
        "no token ends",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_has_its_code_and_says_what_to_mend(name, source, tmp_path) -> None:
    spoil, code, words = REFUSALS[name]
    spoil(source)
    error = refusal(source, tmp_path)
    assert error.code == code
    assert error.hint.endswith(".")
    assert re.search(words, str(error))


@pytest.mark.parametrize(
    ("index", "code"),
    [
        ({}, "not_a_checkpoint"),
        ({"weight_map": []}, "not_a_checkpoint"),
        ({"weight_map": {"a": 3}}, "not_a_checkpoint"),
        ({"weight_map": {"a": "none.safetensors"}}, "not_a_checkpoint"),
        ({"weight_map": {"a": "shard.safetensors"}}, "missing_tensor"),
    ],
    ids=str,
)
def test_hostile_index_is_refused(source, tmp_path, index, code) -> None:
    (source / "model.safetensors").rename(source / "shard.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refusal(source, tmp_path).code == code


def test_index_does_not_lead_out_of_the_directory(source, tmp_path) -> None:
    outside = shutil.copytree(source, tmp_path / "neighbour") / "model.safetensors"
    (source / "model.safetensors").unlink()
    for name in ("../neighbour/model.safetensors", str(outside)):
        index = {"weight_map": dict.fromkeys(safetensors.numpy.load_file(outside), name)}
        (source / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ConversionError, match="plain names"):
            convert_base(source, tmp_path / "bundle")


def test_symbolic_links_are_followed_as_in_hugging_faces_cache(source, tmp_path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}.safetensors"
    (source / "model.safetensors").rename(outside)
    (source / "model.safetensors").symlink_to(outside)
    assert convert_base(source, tmp_path / "bundle")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"chat_template": "{{ 1 }}"}, "{{ 1 }}"),
        ({"chat_template": [{"name": "rag", "template": "x"}, {"name": "default", "template": "y"}]}, "y"),
        ({}, ""),
    ],
)
def test_template_may_be_in_the_tokenizers_options(source, tmp_path, options, expected) -> None:
    (source / "chat_template.jinja").unlink()
    edit_json(source / "tokenizer_config.json", **options)
    convert_base(source, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "chat_template.jinja").read_text() == expected


def test_end_tokens_come_from_all_places_the_tokenizers_own_first(source, tmp_path) -> None:
    edit_json(source / "generation_config.json", eos_token_id=[0, 2, 5])
    edit_json(source / "tokenizer_config.json", eos_token={"content": "<|im_end|>"}, bos_token="<|im_start|>")
    convert_base(source, tmp_path / "bundle")
    info = read_base(tmp_path / "bundle")[0].tokenizer
    assert (info.eos_token_ids, info.bos_token_id) == ((2, 0, 5), 1)


def test_damaged_weights_of_a_bundle_are_a_bad_bundle(tmp_path) -> None:
    convert_base(CASES["qwen3"].checkpoint, tmp_path / "bundle")
    convert_base(CASES["llama"].checkpoint, tmp_path / "other")
    shutil.copy(tmp_path / "other" / "weights.safetensors", tmp_path / "bundle" / "weights.safetensors")
    with pytest.raises(BundleError, match=r"weights\.safetensors"):
        BaseWeights.open(tmp_path / "bundle")
    (tmp_path / "bundle" / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(BundleError, match="too short"):
        BaseWeights.open(tmp_path / "bundle")
