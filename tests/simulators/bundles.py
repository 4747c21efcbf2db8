"""Bundles that are right in form and hold no weights: for whoever moves bundles about without running them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.artifact import (
    ADAPTER_WEIGHTS,
    BASE_WEIGHTS,
    AdapterManifest,
    Architecture,
    BaseBinding,
    BaseManifest,
    GoldenPrompt,
    TokenizerInfo,
    describe_files,
    read_base,
    write_manifest,
)
from engine.tensor_file import TensorSpec, write_tensor_file

ARCHITECTURE = Architecture(
    family="qwen3",
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    vocab_size=113,
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    max_position_embeddings=512,
    tie_word_embeddings=True,
    attention_bias=False,
    qk_norm=True,
)


def payload(tag: str, size_bytes: int) -> bytes:
    """Bytes that begin with the tag in a line of its own and go on at random, but always the same for a tag."""
    head = tag.encode() + b"\n"
    return head + hashlib.shake_256(head).digest(max(size_bytes - len(head), 0))


def make_base(directory: Path, tag: str, *, size_bytes: int = 1000, tensors: Mapping[str, bytes] | None = None) -> str:
    """A base bundle; returns its digest. `tag` is what the scripted engine answers with, unless tensors are given."""
    directory.mkdir(parents=True)
    if tensors is None:
        (directory / BASE_WEIGHTS).write_bytes(payload(tag, size_bytes))
    else:
        write_tensors(directory / BASE_WEIGHTS, tensors)
    (directory / "tokenizer.json").write_bytes(b"{}")
    info = TokenizerInfo("0" * 64, "1" * 64, eos_token_ids=(1,))
    files = describe_files(directory, [BASE_WEIGHTS, "tokenizer.json"])
    return write_manifest(directory, BaseManifest(ARCHITECTURE, info, "int4", files))


def write_tensors(path: Path, tensors: Mapping[str, bytes]) -> None:
    """A safetensors file of these bytes."""
    specs = [TensorSpec(name, "U8", (len(data),)) for name, data in tensors.items()]
    write_tensor_file(path, specs, lambda name: np.frombuffer(tensors[name], np.uint8))


def make_adapter(
    directory: Path,
    base: Path,
    tag: str,
    *,
    size_bytes: int = 500,
    golden: Mapping[str, str] | None = None,
    business: Mapping[str, Any] | None = None,
    weights_tag: str | None = None,
) -> str:
    """An adapter bundle for a base; its golden prompts are those that the scripted engine answers rightly.

    `weights_tag` is what it answers with, if that is another tag.
    """
    manifest, digest = read_base(base)
    directory.mkdir(parents=True)
    (directory / ADAPTER_WEIGHTS).write_bytes(payload(weights_tag or tag, size_bytes))
    binding = BaseBinding(digest, manifest.tokenizer.tokenizer_sha256, manifest.tokenizer.chat_template_sha256)
    answers = {"ping": f"{tag}: ping"} if golden is None else golden
    prompts = tuple(GoldenPrompt(({"role": "user", "content": q},), a) for q, a in answers.items())
    adapter = AdapterManifest(
        base=binding,
        ranks={"model.layers.0.self_attn.q_proj": 4},
        files=describe_files(directory, [ADAPTER_WEIGHTS]),
        business=business or {},
        golden_prompts=prompts,
    )
    return write_manifest(directory, adapter)
