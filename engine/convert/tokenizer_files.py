"""A checkpoint's tokenizer and chat template: found in the places where Hugging Face puts them, checked, and copied.

Knows which tokens end an answer; how text becomes tokens is `engine.tokenizer`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from engine.artifact import CHAT_TEMPLATE, TOKENIZER, TokenizerInfo, sha256_file
from engine.chat_template import ChatTemplate
from engine.convert.errors import NotACheckpointError, UnsupportedTokenizerError
from engine.convert.source import MAX_JSON_BYTES, read_optional_json
from engine.errors import InvalidInputError

_MAX_TEMPLATE_BYTES = 1 << 20


def write_tokenizer(source: Path, folder: Path, config: Mapping[str, Any], vocab_size: int) -> TokenizerInfo:
    """Copy tokenizer and template into a bundle's directory; an empty template means that the model has none."""
    data = _tokenizer_bytes(source)
    tokenizer = _parse_tokenizer(data)
    options = read_optional_json(source / "tokenizer_config.json", UnsupportedTokenizerError)
    (folder / TOKENIZER).write_bytes(data)
    (folder / CHAT_TEMPLATE).write_text(_chat_template(source, options), encoding="utf-8", newline="")
    if (largest := max(tokenizer.get_vocab().values(), default=0)) >= vocab_size:
        raise UnsupportedTokenizerError(
            f"the tokenizer has a token {largest}, the model's vocabulary ends at {vocab_size - 1}",
            hint="Take the tokenizer that the model was trained with, or resize the model's embedding.",
        )
    generation = read_optional_json(source / "generation_config.json", NotACheckpointError)
    return TokenizerInfo(
        tokenizer_sha256=sha256_file(folder / TOKENIZER),
        chat_template_sha256=sha256_file(folder / CHAT_TEMPLATE),
        eos_token_ids=_eos_token_ids(tokenizer, options, generation, config, vocab_size),
        bos_token_id=_named_token(tokenizer, options, "bos_token"),
    )


def _tokenizer_bytes(source: Path) -> bytes:
    path = source / TOKENIZER
    if not path.is_file():
        raise UnsupportedTokenizerError("tokenizer.json is missing")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise UnsupportedTokenizerError(f"tokenizer.json is larger than {MAX_JSON_BYTES >> 20} MiB")
    return path.read_bytes()


def _parse_tokenizer(data: bytes) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(data.decode())
    except Exception as error:  # the library raises plain Exception
        raise UnsupportedTokenizerError(f"tokenizer.json cannot be used: {error!s:.200}") from error


def _chat_template(source: Path, options: Mapping[str, Any]) -> str:
    """The default template: `chat_template.jinja`, or the entry of tokenizer_config.json in either of its forms."""
    path = source / CHAT_TEMPLATE
    if path.is_file():
        if path.stat().st_size > _MAX_TEMPLATE_BYTES:
            raise UnsupportedTokenizerError("chat_template.jinja is larger than 1 MiB")
        template: object = path.read_bytes().decode(errors="replace")
    else:
        template = options.get("chat_template") or ""
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if not isinstance(template, str):
        raise UnsupportedTokenizerError("the chat template is no text", hint="Save it as chat_template.jinja.")
    _check_template(template)
    return template


def _check_template(template: str) -> None:
    try:
        ChatTemplate(template, {})
    except InvalidInputError as error:
        raise UnsupportedTokenizerError(str(error), hint="Mend the chat template.") from error


def _eos_token_ids(
    tokenizer: tokenizers.Tokenizer,
    options: Mapping[str, Any],
    generation: Mapping[str, Any],
    config: Mapping[str, Any],
    vocab_size: int,
) -> tuple[int, ...]:
    """Every token that ends an answer; the tokenizer's own eos_token, which templates write, comes first."""
    declared = generation.get("eos_token_id", config.get("eos_token_id"))
    own = _named_token(tokenizer, options, "eos_token")
    found = dict.fromkeys([*([] if own is None else [own]), *_token_ids(declared, vocab_size)])
    if not found:
        raise UnsupportedTokenizerError(
            "no token ends an answer", hint="Set eos_token_id in generation_config.json or config.json."
        )
    return tuple(found)


def _token_ids(value: object, vocab_size: int) -> Iterator[int]:
    for token_id in value if isinstance(value, list) else [value]:
        if token_id is None:
            continue
        if type(token_id) is not int or not 0 <= token_id < vocab_size:
            raise UnsupportedTokenizerError(f"eos_token_id {token_id!r:.40} is no token of the model")
        yield token_id


def _named_token(tokenizer: tokenizers.Tokenizer, options: Mapping[str, Any], key: str) -> int | None:
    """The id of `eos_token` or `bos_token` in tokenizer_config.json, which is a string or an AddedToken's fields."""
    token = options.get(key)
    if isinstance(token, dict):
        token = token.get("content")
    if token is None:
        return None
    token_id = tokenizer.token_to_id(token) if isinstance(token, str) else None
    if token_id is None:
        raise UnsupportedTokenizerError(f"tokenizer_config.json: {key} {token!r:.80} is not in tokenizer.json")
    return token_id
