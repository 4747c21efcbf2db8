"""Small random models and LoRA adapters of every family, made and run by transformers and peft: the other side's truth.

Weights are wide enough that logits spread over several units; with the usual initialisation all logits would be near
zero and any two models would agree. Needs torch, transformers and peft.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peft
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

TOKENIZER_TEXT = [
    "Please turn on the lamp in the study and set it to forty percent, then remind me to call the garage.",
    "把空调调到二十四度，风速小一点，再放一首安静的歌。打开客厅的灯，关上卧室的窗帘。",
    "The meeting moves to Thursday at three; the room is the same. 会议改到周四下午三点。",
]
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKUP_TOKENS = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content | trim %}
    {%- if message.role == 'assistant' and '</think>' in content %}
        {%- set content = content.split('</think>')[-1] | trim %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content }}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>' + (call.function | tojson) + '</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n' }}
{%- endif %}
"""

COMMON = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "eos_token_id": 2,
    "bos_token_id": 0,
    "initializer_range": 0.25,
}


@dataclass(frozen=True)
class Recipe:
    """What to make: options of the configuration class, how to save it, and options of the LoRA.

    old_rope: write config.json as transformers 4 did, with `rope_theta` and `rope_scaling`.
    """

    name: str
    model: str
    config: Mapping[str, Any]
    lora: Mapping[str, Any]
    dtype: torch.dtype = torch.float32
    max_shard_size: str = "5GB"
    old_rope: bool = False
    seed: int = field(default=0)


RECIPES = [
    Recipe(
        name="qwen3",
        model="Qwen3",
        dtype=torch.bfloat16,
        config={"tie_word_embeddings": True, "intermediate_size": 48, "rope_theta": 1e6},
        lora={"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    ),
    Recipe(
        name="qwen2",
        model="Qwen2",
        dtype=torch.float16,
        config={"tie_word_embeddings": True, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": None},
        lora={
            "r": 4,
            "lora_alpha": 6,
            "use_rslora": True,
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "rank_pattern": {"v_proj": 2, r"layers\.1\.mlp\.down_proj": 3},
            "alpha_pattern": {"model.layers.0.self_attn.q_proj": 12},
        },
    ),
    Recipe(
        name="llama",
        model="Llama",
        dtype=torch.float16,
        max_shard_size="40KB",
        old_rope=True,
        config={
            "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
        lora={"r": 3, "lora_alpha": 3, "target_modules": ["k_proj", "o_proj", "up_proj"], "layers_to_transform": [1]},
    ),
    Recipe(
        name="llama-linear",
        model="Llama",
        config={
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        },
        lora={"r": 2, "lora_alpha": 4, "target_modules": ["gate_proj", "up_proj", "down_proj"]},
    ),
    Recipe(
        name="mistral",
        model="Mistral",
        dtype=torch.bfloat16,
        config={"tie_word_embeddings": False, "sliding_window": 7, "rope_theta": 1e6},
        lora={"r": 4, "lora_alpha": 8, "target_modules": r".*\.self_attn\.(q|k|v|o)_proj"},
    ),
]


def make_checkpoint(recipe: Recipe, directory: Path) -> None:
    """A random model with its tokenizer, saved as people save theirs."""
    torch.manual_seed(recipe.seed)
    config_class = getattr(transformers, f"{recipe.model}Config")
    options = {key: value for key, value in {**COMMON, **recipe.config}.items() if value is not None}
    model = getattr(transformers, f"{recipe.model}ForCausalLM")(config_class(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.to(recipe.dtype).save_pretrained(directory, max_shard_size=recipe.max_shard_size)
    make_tokenizer().save_pretrained(directory)
    if recipe.old_rope:
        _write_old_rope(directory / "config.json")


def make_adapter(recipe: Recipe, checkpoint: Path, directory: Path) -> None:
    """A random LoRA of the model, saved by peft."""
    torch.manual_seed(recipe.seed + 1)
    options = peft.LoraConfig(task_type="CAUSAL_LM", **recipe.lora)
    model = peft.get_peft_model(load(checkpoint), options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.25 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    (directory / "README.md").unlink()
    _write_without_paths(directory / "adapter_config.json")


def load(checkpoint: Path, adapter: Path | None = None) -> Any:
    """The model in float32, with the adapter if one is given."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    )
    return (peft.PeftModel.from_pretrained(model, adapter) if adapter else model).eval()


def logits(model: Any, token_ids: np.ndarray) -> np.ndarray:
    """Logits of every position [num_tokens, vocab_size]."""
    with torch.no_grad():
        return model(torch.tensor(token_ids[None].astype(np.int64))).logits[0].numpy()


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE of 320 tokens with special and other added tokens, as Qwen's is built."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320 - len(MARKUP_TOKENS),
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TOKENIZER_TEXT, trainer)
    tokenizer.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in MARKUP_TOKENS])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


def _write_without_paths(path: Path) -> None:
    """PEFT notes where the base lay on this machine, and writes sets in no order."""
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = "checkpoint"
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _write_old_rope(path: Path) -> None:
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = rope
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
