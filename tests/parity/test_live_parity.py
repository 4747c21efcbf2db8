"""The engine beside torch, transformers and peft, on random models made on the spot and on the demo's tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: ./dev parity installs and runs this suite")

import transformers

from engine.artifact import read_adapter
from engine.backends import Segment
from engine.backends.reference import ReferenceBackend
from engine.convert import convert_adapter, convert_base
from engine.tokenizer import Tokenizer
from tests.parity.random_models import RECIPES, load, logits, make_adapter, make_checkpoint

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:::transformers"),
    pytest.mark.filterwarnings("ignore:::peft"),
]

TOLERANCE = 1e-3
DEMO_BASE = Path(__file__).resolve().parents[2] / "deploy" / "demo" / "models" / "base"
TEXTS = [
    "打开客厅的灯，调到40%",
    "What's on my calendar?\n\n- today\n",
    "  spaces  and\ttabs ",
    "😀🌧️ naïve café",
    "a <b> | c <",
]


@pytest.fixture(params=[(recipe, seed) for recipe in RECIPES for seed in (11, 12)], ids=lambda p: f"{p[0].name}-{p[1]}")
def models(request, tmp_path):
    """Recipe, checkpoint, adapter, and both as bundles."""
    recipe, seed = request.param
    recipe = replace(recipe, seed=seed)
    checkpoint, adapter = tmp_path / "checkpoint", tmp_path / "adapter"
    make_checkpoint(recipe, checkpoint)
    make_adapter(recipe, checkpoint, adapter)
    convert_base(checkpoint, tmp_path / "base", weights="float32")
    convert_adapter(adapter, tmp_path / "base", tmp_path / "lora")
    return checkpoint, adapter, tmp_path / "base", tmp_path / "lora"


def test_logits_agree_with_and_without_adapter(models) -> None:
    checkpoint, adapter, base, lora = models
    backend = ReferenceBackend(base)
    digest = read_adapter(lora)[1]
    backend.load_adapter(digest, lora)
    token_ids = np.random.default_rng(5).integers(3, 300, 60, dtype=np.int32)
    for name, truth in ((None, load(checkpoint)), (digest, load(checkpoint, adapter))):
        segment = Segment(backend.new_state(60), token_ids, name, tuple(range(60)))
        (ours,) = backend.step([segment])
        assert np.abs(ours - logits(truth, token_ids)).max() < TOLERANCE


@pytest.mark.parametrize("text", TEXTS)
def test_demo_tokenizer_agrees(text, tmp_path) -> None:
    if not DEMO_BASE.is_dir():
        pytest.skip("the demo's base model is not in this checkout")
    convert_base(DEMO_BASE, tmp_path / "base", weights="float32")
    ours, theirs = Tokenizer.open(tmp_path / "base"), transformers.AutoTokenizer.from_pretrained(DEMO_BASE)
    messages = [
        {"role": "system", "content": "You are Socle."},
        {"role": "user", "content": text},
        {"role": "assistant", "content": "<tool_call>\n{}\n</tool_call>"},
        {"role": "user", "content": "thanks"},
    ]
    tools = [{"type": "function", "function": {"name": "light", "parameters": {"room": "客厅"}}}]
    assert ours.encode(text) == theirs(text).input_ids
    for chosen in (None, tools):
        expected = theirs.apply_chat_template(messages, tools=chosen, add_generation_prompt=True, return_dict=False)
        assert ours.render_chat(messages, tools=chosen) == expected
    assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=True)
