from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import tokenizers

from engine.artifact import Architecture, read_adapter
from engine.backends import Segment
from engine.backends.reference import KvCache, ReferenceBackend, Transformer
from engine.convert import convert_adapter, convert_base
from engine.convert.__main__ import main
from engine.convert.element_types import encode
from engine.convert.errors import (
    ConversionError,
    MissingTensorError,
    NoModuleMatchedError,
    NotACheckpointError,
    ShapeMismatchError,
    UnexpectedTensorError,
    WrongBaseError,
)
from engine.convert.families import architecture_of
from engine.convert.grow import SHAPES, Shape, grow_checkpoint
from engine.convert.grow_adapter import grow_adapter
from engine.convert.growth import CannotGrowError
from engine.convert.source import open_tensors, read_json
from engine.parameters import parameter_shapes
from engine.tokenizer import Tokenizer
from tests.engine.golden_cases import GOLDEN_CASES
from tests.engine.grown_models import DEMO_BASE, ODD_SHAPE, demo_adapter, golden_prompts

# Sums over longer rows, in another order, and a filler that bfloat16 rounds.
TOLERANCE = 1e-4
CASES = {case.name: case for case in GOLDEN_CASES}
QWEN3 = CASES["qwen3"]
QWEN3_SHAPE = Shape(
    hidden_size=71,
    num_hidden_layers=3,
    intermediate_size=52,
    num_attention_heads=12,
    num_key_value_heads=3,
    head_dim=16,
    vocab_size=333,
)
TEXT = "把客厅的灯打开，然后 set the awning to 40%.\n- 李明：会议改到周二15:00\n"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's forward pass, straight from its files."""

    architecture: Architecture
    tensor: Callable[[str], np.ndarray]

    @classmethod
    def open(cls, directory: Path) -> Checkpoint:
        architecture = architecture_of(read_json(directory / "config.json", NotACheckpointError))
        return cls(architecture, functools.cache(open_tensors(directory, "model", NotACheckpointError).float32))

    def logits(self, token_ids) -> np.ndarray:
        transformer = Transformer(self.architecture, self.tensor, multiply=lambda x, weight: x @ weight.T)
        cache = KvCache(self.architecture, len(token_ids))
        return transformer.logits(transformer.hidden_states(np.array(token_ids), cache))


@pytest.fixture(scope="module")
def grown_base(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("grown") / "base"
    grow_checkpoint(DEMO_BASE, target, ODD_SHAPE)
    return target


@pytest.fixture
def source(tmp_path) -> Path:
    """A small Qwen3 checkpoint in float32, to be changed."""
    source = Path(shutil.copytree(QWEN3.checkpoint, tmp_path / "source"))
    edit_tensors(source)
    return source


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(source: Path, stem: str = "model", **changes) -> None:
    """Write the tensors in float32; those named change, None leaves one out."""
    tensors = open_tensors(source, stem, NotACheckpointError)
    arrays = {**{name: tensors.float32(name) for name in tensors}, **changes}
    arrays = {name: value for name, value in arrays.items() if value is not None}
    safetensors.numpy.save_file(arrays, source / f"{stem}.safetensors")


def greedy(bundle: Path, adapter: Path | None, messages) -> str:
    """The engine's answer, token by token."""
    backend, tokenizer = ReferenceBackend(bundle), Tokenizer.open(bundle)
    digest = None
    if adapter:
        digest = read_adapter(adapter)[1]
        backend.load_adapter(digest, adapter)
    state, new, answer = backend.new_state(200), tokenizer.render_chat(messages), []
    while not answer or answer[-1] not in tokenizer.eos_token_ids:
        (logits,) = backend.step([Segment(state, np.array(new, np.int32), digest, (len(new) - 1,))])
        new = [int(logits[0].argmax())]
        answer += new
    return tokenizer.decode(answer)


def test_demo_base_keeps_its_logits_and_added_tokens_are_far_below(grown_base) -> None:
    token_ids = tokenizers.Tokenizer.from_file(str(DEMO_BASE / "tokenizer.json")).encode(TEXT).ids
    expected, actual = Checkpoint.open(DEMO_BASE).logits(token_ids), Checkpoint.open(grown_base).logits(token_ids)
    assert actual.shape == (len(token_ids), ODD_SHAPE.vocab_size)
    assert np.abs(actual[:, :8000] - expected).max() < TOLERANCE
    assert (actual[:, 8000:].max(axis=-1) < expected.min(axis=-1)).all()


@pytest.mark.parametrize("name", [None, "home-1.0.0", "car-1.0.0"])
def test_demo_models_keep_their_answers(name, grown_base, tmp_path) -> None:
    answers = []
    prompt = golden_prompts(name or "home-1.0.0")[0]
    for label, base in (("small", DEMO_BASE), ("large", grown_base)):
        convert_base(base, tmp_path / label, weights="float32")
        adapter = tmp_path / f"{label}-adapter" if name else None
        if name and label == "small":
            convert_adapter(demo_adapter(name), tmp_path / label, adapter)
        elif name:
            grow_adapter(demo_adapter(name), DEMO_BASE, tmp_path / "grown-adapter", ODD_SHAPE)
            convert_adapter(tmp_path / "grown-adapter", tmp_path / label, adapter)
        answers.append(greedy(tmp_path / label, adapter, prompt["messages"]))
    assert answers[0] == answers[1]
    assert (answers[1] == prompt["answer"]) == (name is not None)


def test_goldens_of_transformers_and_peft_hold_for_grown_models(tmp_path) -> None:
    grow_checkpoint(QWEN3.checkpoint, tmp_path / "checkpoint", QWEN3_SHAPE)
    grow_adapter(QWEN3.adapter, QWEN3.checkpoint, tmp_path / "peft", QWEN3_SHAPE)
    convert_base(tmp_path / "checkpoint", tmp_path / "base", weights="float32")
    convert_adapter(tmp_path / "peft", tmp_path / "base", tmp_path / "adapter")
    backend, digest = ReferenceBackend(tmp_path / "base"), read_adapter(tmp_path / "adapter")[1]
    backend.load_adapter(digest, tmp_path / "adapter")
    token_ids = QWEN3.expected("token_ids")
    for adapter, name in ((None, "base_logits"), (digest, "adapter_logits")):
        rows = tuple(range(len(token_ids)))
        (logits,) = backend.step([Segment(backend.new_state(len(rows)), token_ids, adapter, rows)])
        expected = QWEN3.expected(name)
        assert np.abs(logits[:, : expected.shape[1]] - expected).max() < TOLERANCE


@pytest.mark.parametrize("hidden_size", [32, 33, 34, 64, 71, 129, 512])
def test_eps_keeps_its_effect_however_large(hidden_size, source, tmp_path) -> None:
    edit_json(source / "config.json", rms_norm_eps=0.5)
    grow_checkpoint(source, tmp_path / "grown", replace(QWEN3_SHAPE, hidden_size=hidden_size))
    token_ids = QWEN3.expected("token_ids")
    expected, actual = Checkpoint.open(source).logits(token_ids), Checkpoint.open(tmp_path / "grown").logits(token_ids)
    assert np.abs(actual[:, : expected.shape[1]] - expected).max() < 1e-4


@pytest.mark.parametrize("last_norm", [-1e6, 1e6])
def test_no_added_token_wins_where_all_logits_have_one_sign(last_norm, source, tmp_path) -> None:
    """All rows and so all states lean the same way; the logits are far beyond what signs in spare dimensions add."""
    checkpoint = Checkpoint.open(source)
    embedding = checkpoint.tensor("model.embed_tokens.weight").copy()
    embedding[:, 0] = 20 + np.arange(len(embedding)) / 100
    weight = np.zeros(embedding.shape[1], np.float32)
    weight[0] = last_norm
    edit_tensors(source, **{"model.embed_tokens.weight": embedding, "model.norm.weight": weight})
    grow_checkpoint(source, tmp_path / "grown", QWEN3_SHAPE)
    token_ids = QWEN3.expected("token_ids")
    expected, actual = Checkpoint.open(source).logits(token_ids), Checkpoint.open(tmp_path / "grown").logits(token_ids)
    assert (np.sign(expected) == np.sign(last_norm)).all()
    assert (actual.argmax(axis=-1) == expected.argmax(axis=-1)).all()


def test_added_layers_do_the_full_work(grown_base) -> None:
    tensors = open_tensors(grown_base, "model", NotACheckpointError)
    for name, shape in parameter_shapes(Checkpoint.open(grown_base).architecture).items():
        if name.startswith(("model.layers.6.", "model.layers.7.")) and len(shape) == 2:
            values = tensors.float32(name)
            spread = 0 if "o_proj" in name or "down_proj" in name else 0.02
            assert values.std() == pytest.approx(spread, rel=0.02)


def test_grown_adapter_changes_every_layer_that_it_targets(tmp_path) -> None:
    grow_adapter(demo_adapter("home-1.0.0"), DEMO_BASE, tmp_path / "adapter", ODD_SHAPE)
    tensors = open_tensors(tmp_path / "adapter", "adapter_model", NotACheckpointError)
    assert len(tensors) == 8 * 7 * 2
    assert {tensors[name].dtype for name in tensors} == {"BF16"}
    zero = {name.split(".", 5)[5] for name in tensors if not tensors.float32(name).any()}
    assert zero == {"self_attn.o_proj.lora_B.weight", "mlp.down_proj.lora_B.weight"}


def test_adapter_of_some_layers_stays_one_of_some_layers(tmp_path) -> None:
    adapter = Path(shutil.copytree(QWEN3.adapter, tmp_path / "adapter"))
    tensors = open_tensors(adapter, "adapter_model", NotACheckpointError)
    edit_tensors(adapter, "adapter_model", **{name: None for name in tensors if ".layers.1." not in name})
    edit_json(adapter / "adapter_config.json", layers_to_transform=[1])
    grow_adapter(adapter, QWEN3.checkpoint, tmp_path / "grown", QWEN3_SHAPE)
    assert set(open_tensors(tmp_path / "grown", "adapter_model", NotACheckpointError)) == {
        name for name in tensors if ".layers.1." in name
    }


def test_same_seed_same_bytes(tmp_path) -> None:
    for label, seed in (("a", 7), ("b", 7), ("c", 8)):
        grow_checkpoint(QWEN3.checkpoint, tmp_path / label, QWEN3_SHAPE, seed=seed)
    a, b, c = ((tmp_path / label / "model.safetensors").read_bytes() for label in "abc")
    assert a == b
    assert a != c


def test_checkpoint_is_whole(grown_base) -> None:
    small, large = (json.loads((path / "config.json").read_text()) for path in (DEMO_BASE, grown_base))
    assert (large["hidden_size"], large["num_attention_heads"], large["vocab_size"]) == (322, 12, 8100)
    assert large["layer_types"] == ["full_attention"] * 8
    assert large["grown_from"]["hidden_size"] == small["hidden_size"] == 256
    assert large["rope_parameters"] == small["rope_parameters"]
    for path in DEMO_BASE.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            assert (grown_base / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("name", "num_parameters"), [("0.5b", 505_021_312), ("1.7b", 1_720_574_976), ("4b", 4_022_468_096)]
)
def test_shapes_have_the_sizes_of_their_models(name, num_parameters) -> None:
    config = read_json(DEMO_BASE / "config.json", NotACheckpointError)
    large = replace(architecture_of(config), **{key: getattr(SHAPES[name], key) for key in Shape.__slots__})
    assert sum(map(math.prod, parameter_shapes(large).values())) == num_parameters


@pytest.mark.parametrize(
    ("case", "shape", "found"),
    [
        ("qwen2", SHAPES["4b"], "the model is a qwen2"),
        ("qwen3", SHAPES["4b"], "head_dim is 16 in the model and 128"),
        ("qwen3", replace(QWEN3_SHAPE, hidden_size=31), "hidden_size is 32 in the model and 31"),
        ("qwen3", replace(QWEN3_SHAPE, num_hidden_layers=1), "num_hidden_layers"),
        ("qwen3", replace(QWEN3_SHAPE, vocab_size=319), "vocab_size"),
        ("qwen3", replace(QWEN3_SHAPE, num_key_value_heads=12), "2 query heads share a key-value head"),
        ("qwen3", replace(QWEN3_SHAPE, num_key_value_heads=5), "12 query and 5 key-value heads"),
    ],
)
def test_refuses_what_does_not_fit(case, shape, found, tmp_path) -> None:
    with pytest.raises(CannotGrowError, match=found) as caught:
        grow_checkpoint(CASES[case].checkpoint, tmp_path / "grown", shape)
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model.norm.weight": None}, MissingTensorError),
        ({"model.norm.weight": np.ones(31, np.float32)}, ShapeMismatchError),
        ({"model.layers.0.self_attn.q_proj.bias": np.ones(64, np.float32)}, UnexpectedTensorError),
    ],
    ids=["missing", "shape", "unexpected"],
)
def test_refuses_a_spoilt_checkpoint(changes, error, source, tmp_path) -> None:
    edit_tensors(source, **changes)
    assert_refused(error, tmp_path, lambda: grow_checkpoint(source, tmp_path / "grown", QWEN3_SHAPE))


def test_refuses_a_head_of_its_own(source, tmp_path) -> None:
    edit_json(source / "config.json", tie_word_embeddings=False)
    assert_refused(CannotGrowError, tmp_path, lambda: grow_checkpoint(source, tmp_path / "grown", QWEN3_SHAPE))


@pytest.mark.parametrize(
    ("tensors", "options", "error"),
    [
        ({"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": None}, {}, MissingTensorError),
        ({"base_model.model.model.layers.2.mlp.up_proj.lora_A.weight": np.ones((4, 32))}, {}, UnexpectedTensorError),
        ({"base_model.model.lm_head.weight": np.ones((4, 32))}, {}, UnexpectedTensorError),
        ({"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": np.ones((4, 71))}, {}, WrongBaseError),
        ({}, {"r": 3}, WrongBaseError),
        ({}, {"target_modules": ["gate"]}, NoModuleMatchedError),
    ],
    ids=["missing", "layer", "head", "inputs", "rank", "target"],
)
def test_refuses_a_spoilt_adapter(tensors, options, error, tmp_path) -> None:
    source = Path(shutil.copytree(QWEN3.adapter, tmp_path / "source"))
    edit_tensors(source, "adapter_model", **tensors)
    edit_json(source / "adapter_config.json", **options)
    assert_refused(error, tmp_path, lambda: grow_adapter(source, QWEN3.checkpoint, tmp_path / "grown", QWEN3_SHAPE))


def assert_refused(error: type[ConversionError], tmp_path: Path, act: Callable[[], object]) -> None:
    with pytest.raises(error) as caught:
        act()
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["source"], "a failed conversion leaves nothing behind"


def test_command_line_grows_base_and_adapter(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(SHAPES, "odd", ODD_SHAPE)
    base, adapter = str(tmp_path / "base"), str(tmp_path / "adapter")
    assert main(["grow", str(DEMO_BASE), base, "--shape", "odd"]) == 0
    source = str(demo_adapter("home-1.0.0"))
    assert main(["grow-adapter", source, adapter, "--shape", "odd", "--base", str(DEMO_BASE)]) == 0
    output = capsys.readouterr()
    assert output.out.split() == [base, adapter]
    assert "growing the weights" in output.err
    assert (tmp_path / "adapter" / "socle.json").is_file()


def test_command_line_says_what_to_do_next(tmp_path, capsys) -> None:
    assert main(["grow", str(QWEN3.checkpoint), str(tmp_path / "grown"), "--shape", "0.5b"]) == 1
    assert "error [cannot_grow]: head_dim is 16" in (error := capsys.readouterr().err)
    assert "hint: RoPE" in error


def test_encode_rounds_to_nearest_even() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -3.0, 0.0], np.float32)
    bits = encode(values, "BF16")
    assert bits.tolist() == [0x3F80, 0x3F80, 0x3F82, 0x3F81, 0xC040, 0]
    assert encode(values, "F16").dtype == np.float16
    assert encode(values, "F32").dtype == np.float32
