"""The door to the engine's formats: bundle manifests, digests, and which adapter fits which base.

A bundle is a directory with a `manifest.json` in canonical JSON and the files that it lists. The SHA-256 of the
manifest's bytes is the release digest: it names the content, never the name or version that people give it. Knows
nothing of arrays or models; standard library only, so that server and device read manifests with the same code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from engine.errors import AdapterMismatchError, BundleError
from engine.strict_json import DecodeError, decode, encode

FORMAT = 3
ABI = "socle-1"
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 4 << 20

BASE_WEIGHTS = "weights.safetensors"
ADAPTER_WEIGHTS = "adapter.safetensors"
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"

_SHA256 = re.compile(r"[0-9a-f]{64}")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a bundle; `path` is relative, with forward slashes."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3's frequency scaling (`rope_type: llama3`) or plain linear scaling (`rope_type: linear`)."""

    rope_type: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True, slots=True)
class Architecture:
    """Shape of a decoder-only transformer; the names are those of Hugging Face's `config.json`."""

    family: Literal["qwen3", "qwen2", "llama", "mistral"]
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool
    qk_norm: bool
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None

    def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Key and value bytes that one token adds over all layers."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * bytes_per_value


@dataclass(frozen=True, slots=True)
class TokenizerInfo:
    """What binds an adapter to its tokenizer and template, and which tokens end an answer."""

    tokenizer_sha256: str
    chat_template_sha256: str
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class BaseManifest:
    """Manifest of a base bundle.

    `weights` names the quantisation: "int4" (of groups of 32, 8-bit head and embedding) or "float32" (parity tests).
    `agreement` is the report of the conversion against fp32: {"num_tokens", "top1", "mean_kl", ...}.
    """

    architecture: Architecture
    tokenizer: TokenizerInfo
    weights: Literal["int4", "float32"]
    files: tuple[FileEntry, ...]
    agreement: Mapping[str, float] = field(default_factory=dict)
    abi: str = ABI
    format: int = FORMAT
    kind: Literal["base"] = "base"


@dataclass(frozen=True, slots=True)
class BaseBinding:
    """The base that an adapter was made for."""

    digest: str
    tokenizer_sha256: str
    chat_template_sha256: str


@dataclass(frozen=True, slots=True)
class GoldenPrompt:
    """A prompt and the answer that greedy decoding must give on the device before a release is committed."""

    messages: tuple[Mapping[str, str], ...]
    answer: str


@dataclass(frozen=True, slots=True)
class AdapterManifest:
    """Manifest of an adapter bundle. `ranks` maps a module path such as `model.layers.0.self_attn.q_proj` to its rank.

    `business` holds the options that ship with the adapter (name, default sampling, limits), as plain JSON.
    """

    base: BaseBinding
    ranks: Mapping[str, int]
    files: tuple[FileEntry, ...]
    business: Mapping[str, Any] = field(default_factory=dict)
    golden_prompts: tuple[GoldenPrompt, ...] = ()
    abi: str = ABI
    format: int = FORMAT
    kind: Literal["adapter"] = "adapter"


Manifest = BaseManifest | AdapterManifest


def digest_of(manifest: Manifest) -> str:
    """The release digest: SHA-256 of the manifest's canonical JSON."""
    return hashlib.sha256(encode(manifest)).hexdigest()


def parse_manifest(data: bytes) -> Manifest:
    """A manifest from its bytes; raises `BundleError` for anything that is not one of ours."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"manifest of {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are allowed")
    try:
        kind = json.loads(data).get("kind")
        manifest = decode(AdapterManifest, data) if kind == "adapter" else decode(BaseManifest, data)
    except (DecodeError, ValueError, AttributeError, RecursionError) as error:
        raise BundleError(f"bad manifest: {error}") from error
    if (manifest.format, manifest.abi) != (FORMAT, ABI):
        raise BundleError(
            f"bundle of format {manifest.format}, ABI {manifest.abi}; this engine runs format {FORMAT}, ABI {ABI}: "
            "publish the model again or update the agent"
        )
    for entry in manifest.files:
        _check_entry(entry)
    return manifest


def read_manifest(bundle: Path) -> tuple[Manifest, str]:
    """Manifest and release digest of the bundle in this directory."""
    try:
        data = (bundle / MANIFEST_NAME).read_bytes()
    except OSError as error:
        raise BundleError(f"{bundle} is no bundle: {error.strerror}") from error
    return parse_manifest(data), hashlib.sha256(data).hexdigest()


def read_base(bundle: Path) -> tuple[BaseManifest, str]:
    """As `read_manifest`, and it must be a base."""
    manifest, digest = read_manifest(bundle)
    if not isinstance(manifest, BaseManifest):
        raise BundleError(f"{bundle} holds an adapter, not a base model")
    return manifest, digest


def read_adapter(bundle: Path) -> tuple[AdapterManifest, str]:
    """As `read_manifest`, and it must be an adapter."""
    manifest, digest = read_manifest(bundle)
    if not isinstance(manifest, AdapterManifest):
        raise BundleError(f"{bundle} holds a base model, not an adapter")
    return manifest, digest


def write_manifest(bundle: Path, manifest: Manifest) -> str:
    """Write `manifest.json` last and atomically, so that a directory with one is whole. Returns the digest."""
    temporary = bundle / f".{MANIFEST_NAME}.tmp"
    with temporary.open("wb") as file:
        file.write(encode(manifest))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(bundle / MANIFEST_NAME)
    return digest_of(manifest)


def describe_files(bundle: Path, names: list[str]) -> tuple[FileEntry, ...]:
    """Entries for files that lie in the bundle's directory, sorted by path."""
    return tuple(FileEntry(n, (bundle / n).stat().st_size, sha256_file(bundle / n)) for n in sorted(names))


def verify_files(bundle: Path, manifest: Manifest) -> None:
    """Read every listed file and compare size and SHA-256; raises `BundleError` naming the first that differs."""
    for entry in manifest.files:
        path = bundle / entry.path
        if not path.is_file():
            raise BundleError(f"{entry.path} is missing from {bundle}")
        if path.stat().st_size != entry.size_bytes:
            raise BundleError(f"{entry.path} has {path.stat().st_size} bytes, {entry.size_bytes} expected")
        if sha256_file(path) != entry.sha256:
            raise BundleError(f"{entry.path} does not have the SHA-256 that the manifest lists")


def check_fits(adapter: AdapterManifest, base: BaseManifest, base_digest: str) -> None:
    """Raise `AdapterMismatchError` unless the adapter was made for this very base, tokenizer, template and ABI."""
    expected = BaseBinding(base_digest, base.tokenizer.tokenizer_sha256, base.tokenizer.chat_template_sha256)
    for name, label in (("digest", "base"), ("tokenizer_sha256", "tokenizer"), ("chat_template_sha256", "template")):
        have, want = getattr(adapter.base, name), getattr(expected, name)
        if have != want:
            raise AdapterMismatchError(
                f"the adapter was made for {label} {have[:12]}, this base has {want[:12]}: "
                "train or publish the adapter for this base, or roll out its own base with it"
            )
    if adapter.abi != base.abi:
        raise AdapterMismatchError(f"the adapter has ABI {adapter.abi}, the base {base.abi}: publish one of them again")


def _check_entry(entry: FileEntry) -> None:
    """Files lie flat in the bundle's directory, so a path is a plain name and can never lead out of it."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,100}", entry.path) or entry.path == MANIFEST_NAME:
        raise BundleError(f"bad file name {entry.path!r:.120} in the manifest")
    if not _SHA256.fullmatch(entry.sha256) or entry.size_bytes < 0:
        raise BundleError(f"bad size or SHA-256 for {entry.path} in the manifest")
