from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.artifact import GoldenPrompt, check_fits, read_adapter, read_base, verify_files
from engine.backends.weights import AdapterWeights
from engine.convert import convert_adapter, convert_base
from engine.convert.errors import ConversionError
from engine.convert.peft_options import PeftOptions
from engine.errors import BundleError
from tests.engine.golden_cases import GOLDEN_CASES

CASES = {case.name: case for case in GOLDEN_CASES}
Q0, GATE0, UP0 = (f"model.layers.0.{name}" for name in ("self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> dict[str, Path]:
    """Every golden base as an int4 bundle."""
    folder = tmp_path_factory.mktemp("bases")
    for name, case in CASES.items():
        convert_base(case.checkpoint, folder / name)
    return {name: folder / name for name in CASES}


@pytest.fixture
def base(bases) -> Path:
    return bases["llama-linear"]


@pytest.fixture
def source(tmp_path) -> Path:
    """An adapter of gate, up and down projections of two layers, rank 2, alpha 4; to be spoilt."""
    return Path(shutil.copytree(CASES["llama-linear"].adapter, tmp_path / "source"))


def read_tensors(source: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(source / "adapter_model.safetensors")


def save_tensors(source: Path, tensors) -> None:
    safetensors.numpy.save_file(tensors, source / "adapter_model.safetensors")


def edit_config(source: Path, **changes) -> None:
    path = source / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(source: Path, change) -> None:
    """`change(name, value)` gives the new value of each tensor, None to leave it out."""
    changed = {name: change(name, value) for name, value in read_tensors(source).items()}
    save_tensors(source, {name: value for name, value in changed.items() if value is not None})


def rename(source: Path, change) -> None:
    save_tensors(source, {change(name): value for name, value in read_tensors(source).items()})


def refusal(source: Path, base: Path) -> ConversionError:
    with pytest.raises(ConversionError) as caught:
        convert_adapter(source, base, source.parent / "bundle")
    assert [path.name for path in source.parent.iterdir()] == [source.name], "a failure leaves nothing behind"
    return caught.value


def key(module: str, which: str) -> str:
    return f"base_model.model.{module}.lora_{which}.weight"


@pytest.mark.parametrize("name", CASES)
def test_bundle_is_whole_bound_to_its_base_and_scaled(name, bases, tmp_path) -> None:
    source = CASES[name].adapter
    digest = convert_adapter(source, bases[name], tmp_path / "bundle")
    manifest, read_digest = read_adapter(tmp_path / "bundle")
    base_manifest, base_digest = read_base(bases[name])
    assert digest == read_digest
    verify_files(tmp_path / "bundle", manifest)
    check_fits(manifest, base_manifest, base_digest)
    expected = scaled_matrices(source)
    for module, lora in AdapterWeights.open(tmp_path / "bundle", base_manifest).modules.items():
        assert manifest.ranks[module] == lora.rank == len(expected[module][0])
        assert relative_error(lora, *expected[module]) < 0.02
    assert set(manifest.ranks) == set(expected)


def scaled_matrices(source: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A and B of each module as PEFT wrote them, B times the scale that the options give."""
    tensors, options = read_tensors(source), PeftOptions(json.loads((source / "adapter_config.json").read_text()))
    modules = {name.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".")[0] for name in tensors}
    return {
        module: (tensors[key(module, "A")], tensors[key(module, "B")] * np.float32(options.scale(module)))
        for module in modules
    }


def relative_error(lora, a, b) -> float:
    """Of the product of both matrices, which alone matters."""
    dense_a, dense_b = lora.dense()
    return float(np.linalg.norm(dense_b @ dense_a - b @ a) / np.linalg.norm(b @ a))


@pytest.mark.parametrize("name", CASES)
def test_float32_base_keeps_the_adapter_exact(name, tmp_path) -> None:
    base, adapter = CASES[name].convert(tmp_path)
    modules = AdapterWeights.open(adapter, read_base(base)[0]).modules
    expected = scaled_matrices(CASES[name].adapter)
    assert set(modules) == set(expected)
    for module, lora in modules.items():
        assert all((mine == its).all() for mine, its in zip(lora.dense(), expected[module], strict=True))


def test_what_overflows_float16_is_kept_in_8_bits(source, base, tmp_path) -> None:
    edit_tensors(source, lambda name, value: value * np.float32(1e6) if name == key(UP0, "B") else value)
    convert_adapter(source, base, tmp_path / "bundle")
    lora = AdapterWeights.open(tmp_path / "bundle", read_base(base)[0]).modules[UP0]
    assert relative_error(lora, *scaled_matrices(source)[UP0]) < 0.02


def test_same_source_gives_the_same_digest(source, base, tmp_path) -> None:
    assert convert_adapter(source, base, tmp_path / "one") == convert_adapter(source, base, tmp_path / "two")


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.replace(".weight", ".my-adapter_2.weight"),
    ],
    ids=["without prefix", "default", "named"],
)
def test_key_names_of_other_peft_versions(source, base, tmp_path, change) -> None:
    expected = convert_adapter(source, base, tmp_path / "plain")
    rename(source, change)
    assert convert_adapter(source, base, tmp_path / "renamed") == expected


def test_extras_travel_in_the_manifest(source, base, tmp_path) -> None:
    prompt = {"messages": [{"role": "user", "content": "打开灯"}], "answer": "好"}
    extras = {"business": {"name": "home", "sampling": {"temperature": 0}}, "golden_prompts": [prompt]}
    (source / "socle.json").write_text(json.dumps(extras))
    convert_adapter(source, base, tmp_path / "bundle")
    manifest, _ = read_adapter(tmp_path / "bundle")
    assert manifest.business == extras["business"]
    assert manifest.golden_prompts == (GoldenPrompt(({"role": "user", "content": "打开灯"},), "好"),)


def test_scale_follows_every_option() -> None:
    def scale(module=Q0, **options) -> float:
        return PeftOptions({"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": ["x"], **options}).scale(
            module
        )

    assert scale() == 1.5
    assert scale(use_rslora=True) == 3.0
    assert scale(alpha_pattern={"q_proj": 8}) == 2.0
    assert scale(rank_pattern={"self_attn.q_proj": 3}) == 2.0
    assert scale(rank_pattern={"q_proj": 9}, use_rslora=True) == 2.0
    assert (
        scale(rank_pattern={r"^model\.layers\.0\..*": 3}, alpha_pattern={r"layers\.[01]\.self_attn\.q_proj": 12}) == 4.0
    )
    assert scale(GATE0, rank_pattern={"q_proj": 3}) == 1.5
    assert scale(rank_pattern={"proj": 3}) == 1.5  # no module is called so: patterns match whole names
    assert scale(alpha_pattern={"q_proj": 2, "self_attn.q_proj": 4}) == 0.5  # the first that matches
    assert math.isclose(scale(r=3, lora_alpha=1), 1 / 3)


def test_targets_follow_every_option() -> None:
    def targets(module=Q0, **options) -> bool:
        return PeftOptions({"peft_type": "LORA", **options}).targets(module)

    assert targets(target_modules=["q_proj"])
    assert targets(target_modules=["self_attn.q_proj", "x"])
    assert targets(target_modules=[Q0])
    assert targets(target_modules="all-linear")
    assert targets(target_modules=r".*\.(q|v)_proj")
    assert not targets(target_modules=["proj"])
    assert not targets(target_modules=r"q_proj")
    assert not targets(target_modules=["q_proj"], exclude_modules=["q_proj"])
    assert not targets(target_modules=["q_proj"], exclude_modules=r".*\.0\..*")
    assert targets(target_modules=["q_proj"], layers_to_transform=[0, 2])
    assert targets(target_modules=["q_proj"], layers_to_transform=0, layers_pattern="layers")
    assert not targets(target_modules=["q_proj"], layers_to_transform=[1])


def zero(which: str):
    return lambda name, value: value * 0 if f"lora_{which}" in name else value


def one_value(value):
    def change(name, array):
        if name == key(GATE0, "B"):
            array = array.copy()
            array[3, 1] = value
        return array

    return change


def set_tensor(name: str, value: np.ndarray):
    return lambda s: save_tensors(s, {**read_tensors(s), name: value})


def to_module(old: str, new: str):
    return lambda s: rename(s, lambda name: name.replace(old, new))


ROW = np.ones((1, 32), np.float32)
REFUSALS = {
    "empty": (lambda s: [p.unlink() for p in s.iterdir()], "not_an_adapter", "adapter_config.json is missing"),
    "config is no json": (lambda s: (s / "adapter_config.json").write_text("{"), "not_an_adapter", "not readable"),
    "config of a model": (
        lambda s: (s / "adapter_config.json").write_text('{"model_type": "llama"}'),
        "not_an_adapter",
        "peft_type is None",
    ),
    "no weights": (lambda s: (s / "adapter_model.safetensors").unlink(), "not_an_adapter", "is missing"),
    "pickle": (
        lambda s: (s / "adapter_model.safetensors").rename(s / "adapter_model.bin"),
        "pickle_file",
        "adapter_model.bin is a pickle file",
    ),
    "other pickle": (
        lambda s: (s / "adapter_model.safetensors").rename(s / "lora.pt"),
        "pickle_file",
        "lora.pt",
    ),
    "weights are html": (
        lambda s: (s / "adapter_model.safetensors").write_text("<!doctype html>"),
        "not_an_adapter",
        "no safetensors",
    ),
    "ia3": (lambda s: edit_config(s, peft_type="IA3"), "unsupported_peft_option", "'IA3'"),
    "dora": (lambda s: edit_config(s, use_dora=True), "unsupported_peft_option", "use_dora is True"),
    "dora by tensor": (
        set_tensor(f"base_model.model.{UP0}.lora_magnitude_vector.weight", ROW[0]),
        "unsupported_peft_option",
        "DoRA",
    ),
    "bias": (lambda s: edit_config(s, bias="all"), "unsupported_peft_option", "bias is 'all'"),
    "bias by tensor": (
        set_tensor(f"base_model.model.{UP0}.base_layer.bias", ROW[0]),
        "unsupported_peft_option",
        "bias",
    ),
    "lora bias": (lambda s: edit_config(s, lora_bias=True), "unsupported_peft_option", "lora_bias"),
    "modules to save": (
        lambda s: edit_config(s, modules_to_save=["lm_head"]),
        "unsupported_peft_option",
        "modules_to_save",
    ),
    "modules to save by tensor": (
        set_tensor("base_model.model.lm_head.modules_to_save.weight", ROW),
        "unsupported_peft_option",
        "modules_to_save",
    ),
    "whole module by tensor": (set_tensor("base_model.model.lm_head.weight", ROW), "unexpected_tensor", "lm_head"),
    "embedding": (
        set_tensor("base_model.model.model.embed_tokens.lora_embedding_A", ROW),
        "unsupported_peft_option",
        "embedding",
    ),
    "head": (to_module(UP0, "lm_head"), "unsupported_peft_option", "lm_head"),
    "fan in fan out": (lambda s: edit_config(s, fan_in_fan_out=True), "unsupported_peft_option", "fan_in_fan_out"),
    "pissa": (lambda s: edit_config(s, init_lora_weights="pissa"), "unsupported_peft_option", "pissa"),
    "trainable tokens": (
        lambda s: edit_config(s, trainable_token_indices=[1]),
        "unsupported_peft_option",
        "trainable_token_indices",
    ),
    "layer replication": (
        lambda s: edit_config(s, layer_replication=[[0, 2]]),
        "unsupported_peft_option",
        "layer_replication",
    ),
    "sequence classification": (
        lambda s: edit_config(s, task_type="SEQ_CLS"),
        "unsupported_peft_option",
        "task_type is 'SEQ_CLS'",
    ),
    "option of the future": (lambda s: edit_config(s, use_warp=True), "unsupported_peft_option", "use_warp is True"),
    "number for an option": (lambda s: edit_config(s, use_dora=1), "unsupported_peft_option", "use_dora"),
    "slow pattern": (
        lambda s: edit_config(s, target_modules="(a|a)*(x+x+)+y"),
        "unsupported_peft_option",
        "too complex",
    ),
    "pattern of many repetitions": (
        lambda s: edit_config(s, target_modules=".*.*.*.*.*.*x"),
        "unsupported_peft_option",
        "too complex",
    ),
    "bad pattern": (lambda s: edit_config(s, target_modules="("), "not_an_adapter", "bad pattern"),
    "bad rank pattern": (lambda s: edit_config(s, rank_pattern={"[": 2}), "not_an_adapter", "bad pattern"),
    "no targets": (lambda s: edit_config(s, target_modules=None), "not_an_adapter", "target_modules is missing"),
    "targets are numbers": (lambda s: edit_config(s, target_modules=[1]), "not_an_adapter", "target_modules"),
    "rank is text": (lambda s: edit_config(s, r="2"), "not_an_adapter", "r is '2'"),
    "flag is text": (lambda s: edit_config(s, use_rslora="false"), "not_an_adapter", "use_rslora"),
    "alpha is infinite": (lambda s: edit_config(s, lora_alpha=10**400), "not_an_adapter", "lora_alpha"),
    "layers are text": (lambda s: edit_config(s, layers_to_transform=["0"]), "not_an_adapter", "layers_to_transform"),
    "no tensors": (lambda s: save_tensors(s, {}), "no_module_matched", "none of the adapter's tensors"),
    "tensors of another model": (to_module("mlp", "feed_forward"), "no_module_matched", "none of the adapter's"),
    "targets match nothing": (
        lambda s: edit_config(s, target_modules=["c_attn"]),
        "no_module_matched",
        "target_modules matches no",
    ),
    "more tensors than targets": (
        lambda s: edit_config(s, target_modules=["up_proj", "down_proj"]),
        "unexpected_tensor",
        "gate_proj",
    ),
    "more targets than tensors": (
        lambda s: edit_config(s, target_modules=["up_proj", "down_proj", "gate_proj", "q_proj"]),
        "missing_tensor",
        "q_proj",
    ),
    "lone A": (
        lambda s: edit_tensors(s, lambda name, value: None if name == key(UP0, "B") else value),
        "missing_tensor",
        "lacks its lora_B",
    ),
    "two adapters": (
        set_tensor(f"base_model.model.{UP0}.lora_A.other.weight", ROW),
        "unexpected_tensor",
        "two lora_A",
    ),
    "a layer that the base has not": (to_module("layers.1.", "layers.7."), "wrong_base", "layers.7"),
    "rank differs": (lambda s: edit_config(s, r=4), "shape_mismatch", "calls for rank 4"),
    "a vector": (
        lambda s: edit_tensors(s, lambda name, value: value[:, 0] if name == key(UP0, "A") else value),
        "shape_mismatch",
        "lora_A has shape",
    ),
    "hidden size differs": (
        lambda s: edit_tensors(s, lambda name, value: value[:, :16].copy() if name == key(UP0, "A") else value),
        "wrong_base",
        "64 x 32 in this base, the adapter is made for 64 x 16",
    ),
    "nan": (lambda s: edit_tensors(s, one_value(np.nan)), "not_finite", "NaN"),
    "infinity": (lambda s: edit_tensors(s, one_value(-np.inf)), "not_finite", "infinity"),
    "overflow by the scale": (
        lambda s: [edit_tensors(s, one_value(3e38)), edit_config(s, lora_alpha=9e5)],
        "not_finite",
        "lora_alpha / r",
    ),
    "too large for 8 bits": (lambda s: edit_tensors(s, one_value(1e15)), "not_finite", "too large to quantise"),
    "B is zero": (lambda s: edit_tensors(s, zero("B")), "all_zero", "changes nothing"),
    "A is zero": (lambda s: edit_tensors(s, zero("A")), "all_zero", "changes nothing"),
    "vanishes in 8 bits": (
        lambda s: edit_tensors(s, lambda _, value: value * np.float32(1e-10)),
        "all_zero",
        "changes nothing",
    ),
    "alpha is zero": (lambda s: edit_config(s, lora_alpha=0), "all_zero", "changes nothing"),
    "integers": (lambda s: edit_tensors(s, lambda _, value: value.astype(np.int32)), "not_finite", "I32"),
    "extras are a list": (lambda s: (s / "socle.json").write_text("[]"), "bad_extras", "no JSON object"),
    "extras with other keys": (lambda s: (s / "socle.json").write_text('{"busines": {}}'), "bad_extras", "busines"),
    "extras with a bad prompt": (
        lambda s: (s / "socle.json").write_text('{"golden_prompts": [{"messages": "hi", "answer": ""}]}'),
        "bad_extras",
        r"golden_prompts\[0\].messages",
    ),
    "extras with an unknown deadline": (
        lambda s: (s / "socle.json").write_text('{"business": {"deadline": "soon"}}'),
        "bad_extras",
        r"business.deadline.*soon",
    ),
    "extras with a budget of nothing": (
        lambda s: (s / "socle.json").write_text('{"business": {"max_running": 0}}'),
        "bad_extras",
        r"business.max_running: give a whole number of at least 1",
    ),
    "extras too large": (
        lambda s: (s / "socle.json").write_text(json.dumps({"business": {"x": "y" * (1 << 20)}})),
        "bad_extras",
        "larger than 1 MiB",
    ),
    "extras with infinity": (
        lambda s: (s / "socle.json").write_text('{"business": {"x": 1e999}}'),
        "bad_extras",
        "not a finite number",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal_has_its_code_and_says_what_to_mend(name, source, base) -> None:
    spoil, code, words = REFUSALS[name]
    spoil(source)
    error = refusal(source, base)
    assert error.code == code
    assert error.hint.endswith(".")
    assert re.search(words, str(error))


def test_adapter_of_another_base_is_refused(bases, source) -> None:
    assert refusal(source, bases["qwen3"]).code == "wrong_base"


def test_base_must_be_a_base_bundle(source, base, tmp_path) -> None:
    convert_adapter(source, base, tmp_path / "bundle")
    with pytest.raises(BundleError, match="holds an adapter"):
        convert_adapter(source, tmp_path / "bundle", tmp_path / "other")


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_no_value_of_any_option_crashes(base, tmp_path_factory, data) -> None:
    config = json.loads((CASES["qwen2"].adapter / "adapter_config.json").read_text())
    values = st.sampled_from(
        [None, True, False, -1, 0, 3, 1.5, 1e300, 10**400, "", "x", "(", "none", [], [[]], {}, {"a": 1}]
    )
    config[data.draw(st.sampled_from(sorted(config)))] = data.draw(values)
    try:
        options = PeftOptions(config)
    except ConversionError:
        return
    options.targets(Q0)
    options.scale(Q0)


def test_damaged_weights_of_a_bundle_are_a_bad_bundle(source, base, tmp_path) -> None:
    convert_adapter(source, base, tmp_path / "bundle")
    manifest = read_base(base)[0]
    path = tmp_path / "bundle" / "adapter.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleError, match="cut short"):
        AdapterWeights.open(tmp_path / "bundle", manifest)


def test_adapter_does_not_open_on_a_base_of_other_shape(source, bases, base, tmp_path) -> None:
    convert_adapter(source, base, tmp_path / "bundle")
    with pytest.raises(BundleError, match=r"adapter\.safetensors"):
        AdapterWeights.open(tmp_path / "bundle", read_base(bases["qwen3"])[0])
