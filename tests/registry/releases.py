"""Releases put into the catalogue without archive and conversion: manifests are real, weights are a few bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

from engine.artifact import (
    ADAPTER_WEIGHTS,
    BASE_WEIGHTS,
    AdapterManifest,
    Architecture,
    BaseBinding,
    BaseManifest,
    Manifest,
    TokenizerInfo,
    describe_files,
    write_manifest,
)
from registry import publications, queries
from registry.models import Publication, Release
from registry.states import PublicationState

_ARCHITECTURE = Architecture(
    family="qwen3",
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    vocab_size=64,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    max_position_embeddings=64,
    tie_word_embeddings=True,
    attention_bias=False,
    qk_norm=True,
)
_TOKENIZER = TokenizerInfo(tokenizer_sha256="1" * 64, chat_template_sha256="2" * 64, eos_token_ids=(1,))


def put_base(folder: Path, ref: str, content: str = "base") -> Release:
    """A base release `name@version`; the same content has the same digest."""
    bundle = _bundle(folder, ref, BASE_WEIGHTS, content)
    files = describe_files(bundle, [BASE_WEIGHTS])
    return _put(ref, "base", None, bundle, BaseManifest(_ARCHITECTURE, _TOKENIZER, "int4", files))


def put_adapter(folder: Path, ref: str, base_ref: str, content: str = "adapter") -> Release:
    """An adapter release for a base that is there."""
    base = queries.resolve_release(base_ref)
    bundle = _bundle(folder, ref, ADAPTER_WEIGHTS, content)
    binding = BaseBinding(base.digest, _TOKENIZER.tokenizer_sha256, _TOKENIZER.chat_template_sha256)
    ranks = {"model.layers.0.self_attn.q_proj": 4}
    files = describe_files(bundle, [ADAPTER_WEIGHTS])
    return _put(ref, "adapter", base, bundle, AdapterManifest(base=binding, ranks=ranks, files=files))


def _bundle(folder: Path, ref: str, name: str, content: str) -> Path:
    bundle = folder / "bundles" / ref
    bundle.mkdir(parents=True)
    (bundle / name).write_text(content)
    return bundle


def _put(ref: str, kind: str, base: Release | None, bundle: Path, manifest: Manifest) -> Release:
    write_manifest(bundle, manifest)
    name, version = ref.split("@")
    publication = Publication.objects.create(
        kind=kind,
        name=name,
        version=version,
        base=base,
        archive_sha256=hashlib.sha256(ref.encode()).hexdigest(),
        archive_size_bytes=1,
        state=PublicationState.CONVERTING,
        created_by="someone",
    )
    publications.publish(claim=publications.Claim(publication.pk, publication.attempt), bundle=bundle)
    return queries.find_release(ref)
