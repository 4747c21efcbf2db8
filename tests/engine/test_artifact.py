from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.artifact import (
    ABI,
    AdapterManifest,
    Architecture,
    BaseBinding,
    BaseManifest,
    FileEntry,
    GoldenPrompt,
    RopeScaling,
    TokenizerInfo,
    check_fits,
    describe_files,
    digest_of,
    parse_manifest,
    read_adapter,
    read_base,
    read_manifest,
    verify_files,
    write_manifest,
)
from engine.errors import AdapterMismatchError, BundleError
from engine.strict_json import encode

SHA256 = st.text("0123456789abcdef", min_size=64, max_size=64)
SIZES = st.integers(1, 2**31)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
NUMBERS = st.floats(1e-9, 1e9)
FILES = st.lists(
    st.builds(
        FileEntry, path=st.from_regex(r"[a-z0-9_][a-z0-9._-]{0,20}", fullmatch=True), size_bytes=SIZES, sha256=SHA256
    ),
    max_size=3,
).map(tuple)
ROPE = st.builds(RopeScaling, st.sampled_from(["linear", "llama3"]), NUMBERS, NUMBERS, NUMBERS, SIZES)
ARCHITECTURES = st.builds(
    Architecture,
    family=st.sampled_from(["qwen3", "qwen2", "llama", "mistral"]),
    rms_norm_eps=NUMBERS,
    rope_theta=NUMBERS,
    tie_word_embeddings=st.booleans(),
    rope_scaling=st.none() | ROPE,
    sliding_window=st.none() | SIZES,
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), SIZES),
    **dict.fromkeys(("num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings"), SIZES),
    **dict.fromkeys(("attention_bias", "qk_norm"), st.booleans()),
)
TOKENIZERS = st.builds(TokenizerInfo, SHA256, SHA256, st.lists(SIZES).map(tuple), st.none() | SIZES)
BASES = st.builds(
    BaseManifest,
    ARCHITECTURES,
    TOKENIZERS,
    st.sampled_from(["int4", "float32"]),
    FILES,
    st.dictionaries(TEXTS, NUMBERS, max_size=3),
)
ADAPTERS = st.builds(
    AdapterManifest,
    st.builds(BaseBinding, SHA256, SHA256, SHA256),
    st.dictionaries(TEXTS, SIZES, max_size=3),
    FILES,
    st.dictionaries(TEXTS, TEXTS | SIZES | st.booleans(), max_size=3),
    st.lists(st.builds(GoldenPrompt, st.lists(st.dictionaries(TEXTS, TEXTS, max_size=2)).map(tuple), TEXTS)).map(tuple),
)

BASE = BaseManifest(
    architecture=Architecture(
        family="llama",
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=100,
        rms_norm_eps=1e-6,
        rope_theta=1e4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        attention_bias=False,
        qk_norm=False,
    ),
    tokenizer=TokenizerInfo("a" * 64, "b" * 64, (2,)),
    weights="int4",
    files=(FileEntry("weights.safetensors", 3, "c" * 64),),
)
ADAPTER = AdapterManifest(
    base=BaseBinding(digest_of(BASE), "a" * 64, "b" * 64), ranks={"model.layers.0.mlp.up_proj": 8}, files=()
)


@given(BASES | ADAPTERS)
def test_manifest_survives_the_disk_bit_by_bit(tmp_path_factory, manifest) -> None:
    bundle = tmp_path_factory.mktemp("bundle")
    digest = write_manifest(bundle, manifest)
    assert read_manifest(bundle) == (manifest, digest)
    assert digest == hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest() == digest_of(manifest)
    assert encode(parse_manifest((bundle / "manifest.json").read_bytes())) == (bundle / "manifest.json").read_bytes()


def changed(manifest, **changes) -> bytes:
    return json.dumps({**json.loads(encode(manifest)), **changes}).encode()


def with_file(path: object = "weights", size_bytes: object = 1, sha256: object = "c" * 64) -> bytes:
    return changed(BASE, files=[{"path": path, "size_bytes": size_bytes, "sha256": sha256}])


HOSTILE = {
    "nothing": b"",
    "no json": b"{",
    "a list": b"[]",
    "a number": b"3",
    "deep": b"[" * 200_000,
    "not utf-8": b'{"kind": "\xff"}',
    "too large": b'"' + b"x" * (5 << 20) + b'"',
    "no kind": b"{}",
    "other kind": changed(BASE, kind="model"),
    "kind is a list": changed(BASE, kind=[]),
    "other format": changed(BASE, format=1),
    "other abi": changed(BASE, abi="socle-2"),
    "unknown key": changed(BASE, extra=1),
    "adapter with base's keys": changed(BASE, kind="adapter"),
    "infinite agreement": encode(BASE).replace(b'"agreement":{}', b'"agreement":{"top1":1e999}'),
    "negative rank": changed(ADAPTER, ranks={"a": "-1"}),
    "size is text": with_file(size_bytes="1"),
    "size is negative": with_file(size_bytes=-1),
    "hash too short": with_file(sha256="c" * 63),
    "hash in capitals": with_file(sha256="C" * 64),
    "path leads up": with_file("../weights"),
    "path is the parent": with_file(".."),
    "path is absolute": with_file("/etc/passwd"),
    "path has a folder": with_file("a/b"),
    "path has a backslash": with_file("a\\b"),
    "path is hidden": with_file(".weights"),
    "path is empty": with_file(""),
    "path is long": with_file("a" * 300),
    "path ends in a line feed": with_file("weights\n"),
    "path has a null byte": with_file("a\0b"),
    "path is the manifest": with_file("manifest.json"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_manifest_is_a_bad_bundle(name) -> None:
    with pytest.raises(BundleError):
        parse_manifest(HOSTILE[name])


@given(st.binary())
def test_no_bytes_crash_the_parser(data) -> None:
    with pytest.raises(BundleError):
        parse_manifest(data)


@given(st.data())
def test_flipped_bytes_never_crash_the_parser(data) -> None:
    content = bytearray(encode(data.draw(st.sampled_from([BASE, ADAPTER]))))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        parse_manifest(bytes(content))
    except BundleError:
        return


def test_directory_without_manifest_is_no_bundle(tmp_path) -> None:
    with pytest.raises(BundleError, match="is no bundle"):
        read_manifest(tmp_path)


def test_kinds_are_not_taken_for_each_other(tmp_path) -> None:
    write_manifest(tmp_path, BASE)
    assert read_base(tmp_path)[0] == BASE
    with pytest.raises(BundleError, match="not an adapter"):
        read_adapter(tmp_path)
    write_manifest(tmp_path, ADAPTER)
    assert read_adapter(tmp_path)[0] == ADAPTER
    with pytest.raises(BundleError, match="not a base"):
        read_base(tmp_path)


@pytest.fixture
def bundle(tmp_path) -> Path:
    (tmp_path / "a").write_bytes(b"first")
    (tmp_path / "b").write_bytes(b"second")
    return tmp_path


def test_files_are_described_in_order_and_verify(bundle) -> None:
    files = describe_files(bundle, ["b", "a"])
    assert [entry.path for entry in files] == ["a", "b"]
    assert files[0] == FileEntry("a", 5, hashlib.sha256(b"first").hexdigest())
    verify_files(bundle, dataclasses.replace(BASE, files=files))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "b is missing"),
        (lambda path: path.write_bytes(b"secon"), "b has 5 bytes, 6 expected"),
        (lambda path: path.write_bytes(b"Second"), "b does not have the SHA-256"),
    ],
)
def test_damaged_file_is_named(bundle, damage, words) -> None:
    manifest = dataclasses.replace(BASE, files=describe_files(bundle, ["a", "b"]))
    damage(bundle / "b")
    with pytest.raises(BundleError, match=words):
        verify_files(bundle, manifest)


def test_adapter_fits_its_own_base() -> None:
    check_fits(ADAPTER, BASE, digest_of(BASE))


@pytest.mark.parametrize("field", ["digest", "tokenizer_sha256", "chat_template_sha256"])
def test_adapter_of_another_base_does_not_fit(field) -> None:
    other = dataclasses.replace(ADAPTER, base=dataclasses.replace(ADAPTER.base, **{field: "f" * 64}))
    with pytest.raises(AdapterMismatchError, match="ffffffffffff"):
        check_fits(other, BASE, digest_of(BASE))


def test_adapter_of_another_abi_does_not_fit() -> None:
    with pytest.raises(AdapterMismatchError, match=ABI):
        check_fits(dataclasses.replace(ADAPTER, abi="socle-9"), BASE, digest_of(BASE))


def test_kv_bytes_are_keys_and_values_of_all_layers() -> None:
    assert BASE.architecture.kv_bytes_per_token() == 2 * 2 * 2 * 8 * 2
    assert BASE.architecture.kv_bytes_per_token(bytes_per_value=4) == 2 * 2 * 2 * 8 * 4
