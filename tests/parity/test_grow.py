"""Grown models beside the small ones, both in transformers and peft: equal greedy answers, close logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: ./dev parity installs and runs this suite")

import peft
import torch
import transformers

from engine.convert.grow import SHAPES, grow_checkpoint
from engine.convert.grow_adapter import grow_adapter
from tests.engine.grown_models import DEMO_BASE, ODD_SHAPE, demo_adapter, golden_prompts
from tests.parity.random_models import load, logits

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:::transformers"),
    pytest.mark.filterwarnings("ignore:::peft"),
]

TOLERANCE = 1e-3
ADAPTERS = {"home": "home-1.0.0", "car": "car-1.0.0"}  # PEFT's names have no dots
MAX_ANSWER_TOKENS = 64


@pytest.mark.parametrize("shape", [ODD_SHAPE, SHAPES["0.5b"]], ids=["odd", "0.5b"])
def test_grown_models_answer_like_the_small_ones(shape, tmp_path) -> None:
    grow_checkpoint(DEMO_BASE, tmp_path / "base", shape)
    for name, release in ADAPTERS.items():
        grow_adapter(demo_adapter(release), DEMO_BASE, tmp_path / name, shape)
    small = load_all(DEMO_BASE, {name: demo_adapter(release) for name, release in ADAPTERS.items()})
    large = load_all(tmp_path / "base", {name: tmp_path / name for name in ADAPTERS})
    with small.disable_adapter(), large.disable_adapter():
        compare(small, large, golden_prompts(ADAPTERS["home"])[0]["messages"])
    for name, release in ADAPTERS.items():
        small.set_adapter(name)
        large.set_adapter(name)
        golden = golden_prompts(release)[-1]
        assert compare(small, large, golden["messages"]) == golden["answer"]


def load_all(checkpoint: Path, adapters: dict[str, Path]) -> peft.PeftModel:
    """The model once, with all the adapters."""
    (name, first), *others = adapters.items()
    model = peft.PeftModel.from_pretrained(load(checkpoint), first, adapter_name=name)
    for name, directory in others:
        model.load_adapter(directory, adapter_name=name)
    return model.eval()


def compare(small, large, messages) -> str:
    """The answer that both give, after their logits along it have been compared."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_BASE)
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    answer = greedy(small, prompt)
    assert greedy(large, prompt) == answer
    expected, actual = (logits(model, np.array([*prompt, *answer])) for model in (small, large))
    num_real = expected.shape[1]
    assert np.abs(actual[:, :num_real] - expected).max() < TOLERANCE
    assert (actual[:, num_real:].max(axis=-1) < expected.max(axis=-1)).all()
    return tokenizer.decode(answer, skip_special_tokens=True)


def greedy(model, prompt: list[int]) -> list[int]:
    tokens = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": MAX_ANSWER_TOKENS}
    with torch.no_grad():
        whole = model.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), **options)
    return whole[0, len(prompt) :].tolist()
