"""Tiny checkpoints and PEFT directories as people have them, as {path: bytes}, and archives of such files."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from typing import Any

import numpy as np
import safetensors.numpy
import tokenizers

Files = dict[str, bytes]
Tensors = dict[str, np.ndarray]

HIDDEN, HEAD_DIM, NUM_HEADS, NUM_KV_HEADS, INTERMEDIATE, VOCAB = 32, 16, 2, 1, 48, 64
RANK = 4
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": 1,
    "num_attention_heads": NUM_HEADS,
    "num_key_value_heads": NUM_KV_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "hidden_act": "silu",
    "eos_token_id": 1,
}
PEFT_CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": RANK,
    "lora_alpha": 8,
    "bias": "none",
    "target_modules": ["q_proj", "v_proj"],
    "base_model_name_or_path": "tiny",
}
_Q_PROJ, _V_PROJ = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"


def base_tensors(seed: int = 0) -> Tensors:
    random = np.random.default_rng(seed)
    query, key_value = NUM_HEADS * HEAD_DIM, NUM_KV_HEADS * HEAD_DIM
    matrices = {
        "model.embed_tokens": (VOCAB, HIDDEN),
        _Q_PROJ: (query, HIDDEN),
        "model.layers.0.self_attn.k_proj": (key_value, HIDDEN),
        _V_PROJ: (key_value, HIDDEN),
        "model.layers.0.self_attn.o_proj": (HIDDEN, query),
        "model.layers.0.mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "model.layers.0.mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "model.layers.0.mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }
    norms = {
        "model.norm": HIDDEN,
        "model.layers.0.input_layernorm": HIDDEN,
        "model.layers.0.post_attention_layernorm": HIDDEN,
        "model.layers.0.self_attn.q_norm": HEAD_DIM,
        "model.layers.0.self_attn.k_norm": HEAD_DIM,
    }
    tensors = {f"{name}.weight": random.normal(0, 0.1, shape).astype(np.float32) for name, shape in matrices.items()}
    return tensors | {f"{name}.weight": np.ones(size, np.float32) for name, size in norms.items()}


def adapter_tensors(seed: int = 1) -> Tensors:
    random = np.random.default_rng(seed)
    outputs = {_Q_PROJ: NUM_HEADS * HEAD_DIM, _V_PROJ: NUM_KV_HEADS * HEAD_DIM}
    tensors: Tensors = {}
    for module, rows in outputs.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = random.normal(0, 0.1, (RANK, HIDDEN)).astype(np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = random.normal(0, 0.1, (rows, RANK)).astype(np.float32)
    return tensors


def base_files(*, tensors: Tensors | None = None, config: dict[str, Any] | None = None, seed: int = 0) -> Files:
    return {
        "config.json": json.dumps(CONFIG | (config or {})).encode(),
        "model.safetensors": safetensors.numpy.save(base_tensors(seed) if tensors is None else tensors),
        "tokenizer.json": _tokenizer_json(),
        "tokenizer_config.json": json.dumps({"eos_token": "<end>"}).encode(),
        "chat_template.jinja": b"{% for m in messages %}{{ m.content }}<end>{% endfor %}",
        "README.md": b"not needed",
    }


def adapter_files(*, tensors: Tensors | None = None, config: dict[str, Any] | None = None, seed: int = 1) -> Files:
    return {
        "adapter_config.json": json.dumps(PEFT_CONFIG | (config or {})).encode(),
        "adapter_model.safetensors": safetensors.numpy.save(adapter_tensors(seed) if tensors is None else tensors),
        "README.md": b"not needed",
    }


def _tokenizer_json() -> bytes:
    words = ["<unk>", "<end>", *"abcdefghijklmnopqrstuvwxyz .,?"]
    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer.to_str().encode()


def tar_of(files: Files, *, mode: str = "w", extra: list[tarfile.TarInfo] | None = None, top: str = "") -> bytes:
    """A tar archive; `extra` are entries without content, such as links."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(top + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in extra or []:
            archive.addfile(info)
    return buffer.getvalue()


def zip_of(files: Files, *, top: str = "") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(top + name, data)
    return buffer.getvalue()


def entry(name: str, kind: bytes = tarfile.SYMTYPE, target: str = "config.json") -> tarfile.TarInfo:
    """A tar entry without content: a link, a device."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info
