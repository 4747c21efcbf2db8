"""Greedy answers of a model, and the golden prompts that ship with an adapter."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from deploy.demo.data import held_out
from deploy.demo.samples import Sample

_NUM_GOLDEN: Final = 4
_BATCH_ROWS: Final = 50


def greedy_answers(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, samples: Sequence[Sample], max_tokens: int
) -> list[str]:
    """Return the greedy answer to each sample, without the end-of-turn token."""
    model.eval()
    answers: list[str] = []
    for start in range(0, len(samples), _BATCH_ROWS):
        turns = [[message.as_dict() for message in sample.messages] for sample in samples[start : start + _BATCH_ROWS]]
        inputs = tokenizer.apply_chat_template(
            turns,
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
            tokenizer_kwargs={"padding_side": "left"},
        )
        with torch.no_grad():
            outputs = model.generate(**inputs, do_sample=False, max_new_tokens=max_tokens)  # type: ignore[operator]
        answers += [_text(tokenizer, row) for row in outputs[:, inputs["input_ids"].shape[1] :].tolist()]
    return answers


def _text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    end = next(
        (i for i, token in enumerate(ids) if token in (tokenizer.eos_token_id, tokenizer.pad_token_id)), len(ids)
    )
    return str(tokenizer.decode(ids[:end], skip_special_tokens=False))


def write(
    folder: Path, model: nn.Module, tokenizer: PreTrainedTokenizerBase, task: str, business: Mapping[str, Any]
) -> None:
    """Write `socle.json`: the business' options, and held-out prompts that the model answers rightly with them."""
    samples = held_out(task, "test", 8 * _NUM_GOLDEN, seed=1)
    answers = greedy_answers(model, tokenizer, samples, business["sampling"]["max_tokens"])
    right = [sample for sample, answer in zip(samples, answers, strict=True) if answer == sample.answer][:_NUM_GOLDEN]
    document = {
        "business": business,
        "golden_prompts": [{"messages": [m.as_dict() for m in s.messages], "answer": s.answer} for s in right],
    }
    (folder / "socle.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
