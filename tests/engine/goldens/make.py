"""Writes the goldens: small random checkpoints and adapters, and the logits that transformers and peft give on them.

    python -m tests.engine.goldens.make        (with torch, transformers and peft installed: the extra `train`)

`tests/engine/golden_cases.py` reads them, without torch.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import transformers

from tests.parity.random_models import RECIPES, Recipe, load, logits, make_adapter, make_checkpoint

HERE = Path(__file__).resolve().parent
NUM_TOKENS = 20

TOOL = {"type": "function", "function": {"name": "set_light", "parameters": {"room": "客厅", "on": True}}}
CONVERSATIONS = [
    {"messages": [{"role": "user", "content": "打开客厅的灯"}]},
    {
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "  Turn on the <b>lamp</b> "},
        ]
    },
    {"messages": [{"role": "user", "content": "a < b, and a <"}], "tools": [TOOL]},
    {
        "messages": [
            {"role": "user", "content": "现在几点？🌧️"},
            {"role": "assistant", "content": "<think>\nlook at the clock\n</think>\n三点。"},
            {"role": "user", "content": "thanks\n\nand the weather?"},
        ],
        "add_generation_prompt": False,
    },
    {
        "messages": [
            {"role": "user", "content": "dim it"},
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": TOOL["function"]}]},
            {"role": "tool", "content": '{"done": true}'},
        ],
        "tools": [TOOL],
    },
]


def main() -> None:
    """Make every case afresh."""
    for recipe in RECIPES:
        write_case(recipe, HERE / recipe.name)
    write_chats(HERE / RECIPES[0].name / "checkpoint", HERE / "chats.json")


def write_case(recipe: Recipe, directory: Path) -> None:
    """Checkpoint, adapter, token ids, and the logits of all positions with and without the adapter."""
    shutil.rmtree(directory, ignore_errors=True)
    make_checkpoint(recipe, directory / "checkpoint")
    make_adapter(recipe, directory / "checkpoint", directory / "adapter")
    token_ids = np.random.default_rng(recipe.seed).integers(3, 300, NUM_TOKENS, dtype=np.int32)
    base_logits = logits(load(directory / "checkpoint"), token_ids)
    adapter_logits = logits(load(directory / "checkpoint", directory / "adapter"), token_ids)
    assert np.abs(base_logits - adapter_logits).max() > 0.5, "the adapter must matter"
    np.savez_compressed(
        directory / "expected.npz", token_ids=token_ids, base_logits=base_logits, adapter_logits=adapter_logits
    )


def write_chats(checkpoint: Path, path: Path) -> None:
    """Conversations and the tokens that transformers makes of them, and of plain texts."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    chats = []
    for conversation in CONVERSATIONS:
        options = {"tools": None, "add_generation_prompt": True, **conversation}
        token_ids = tokenizer.apply_chat_template(options["messages"], **_rest(options), return_dict=False)
        chats.append({**options, "token_ids": token_ids})
    texts = [
        message["content"]
        for chat in CONVERSATIONS
        for message in chat["messages"]
        if "think" not in message["content"]
    ]
    plain = [{"text": text, "token_ids": tokenizer(text).input_ids} for text in texts]
    path.write_text(json.dumps({"chats": chats, "texts": plain}, ensure_ascii=False) + "\n")


def _rest(options: dict) -> dict:
    return {key: value for key, value in options.items() if key != "messages"}


if __name__ == "__main__":
    main()
