"""Text to tokens and back, and streams that never cut a character. Knows no model.

**Text that people give cannot inject control tokens.** A control token is one that the tokenizer marks as special or
that the chat template writes (`<|im_end|>`, `<tool_call>`). `encode` does not recognise them. `render_chat` puts
a sentinel before whatever spells one in the messages, then the template runs, which can still read and trim them; what
spells a control token in its output was written by the template. A string's end that could begin a control token is
broken too, as a template may put the next string right behind it. Broken spellings become ordinary tokens. Messages
without any take the plain path and give the very tokens of transformers' `apply_chat_template`.

An assistant's own turns may hold control tokens that are not special, such as `<think>`: the model wrote them, and
templates look for them.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import tokenizers

from engine.artifact import CHAT_TEMPLATE, TOKENIZER, TokenizerInfo, read_base
from engine.chat_template import ChatTemplate
from engine.errors import BundleError, InvalidInputError

REPLACEMENT: Final = "\ufffd"
_SENTINEL: Final = "\ufdd0"  # a noncharacter: no part of any text, and dropped where it is
_MAX_CHARACTER_BYTES: Final = 4
_MAX_WINDOW_TOKENS: Final = 64


class Tokenizer:
    """The tokenizer and chat template of a base bundle."""

    def __init__(self, folder: Path, info: TokenizerInfo) -> None:
        """Read `tokenizer.json` and `chat_template.jinja`; raises `BundleError`."""
        try:
            text = (folder / TOKENIZER).read_bytes().decode()
            document = json.loads(text)
            template = (folder / CHAT_TEMPLATE).read_bytes().decode()
            special, control = _control_tokens(document, template)
            self._full, self._plain = _load(text), _load(json.dumps(_with_special(document, control)))
        except Exception as error:  # the library raises plain Exception
            raise BundleError(f"{folder} has no usable tokenizer: {error!s:.200}") from error
        self._plain.encode_special_tokens = True  # that is, as ordinary text
        self._special, self._control = _Spellings(special), _Spellings(control)
        self._unknown_id = _unknown_id(document)
        self._template = ChatTemplate(template, self._named_tokens(info))
        self.eos_token_ids = frozenset(info.eos_token_ids)

    @classmethod
    def open(cls, bundle: Path) -> Self:
        """The tokenizer of the base bundle in this directory."""
        manifest, _ = read_base(bundle)
        return cls(bundle, manifest.tokenizer)

    def encode(self, text: str) -> list[int]:
        """Tokens of a plain text, within those that the tokenizer puts around every text, such as BOS."""
        encoding = self._encode_ordinary(_cleaned(text))
        return list(self._plain.post_process(encoding, None, True).ids)  # noqa: FBT003 - positional in the library

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tool_choice: str | None = None,
        add_generation_prompt: bool = True,
        beginning: str = "",
    ) -> list[int]:
        """Tokens of a conversation; raises `InvalidInputError` if the template refuses it.

        beginning: how the answer begins. It is ours, not people's: control tokens that it spells count.
        """
        broken_messages = [self._broken_message(message) for message in messages]
        broken_tools = None if tools is None else _map_strings(list(tools), self._control.broken)
        text = self._template.render(
            broken_messages, broken_tools, tool_choice=tool_choice, add_generation_prompt=add_generation_prompt
        )
        text += beginning
        token_ids = self._full.encode(text.replace(_SENTINEL, ""), add_special_tokens=False).ids
        num_control = sum(token_id in self._control.text_of for token_id in token_ids)
        return list(token_ids) if num_control == self._control.count(text) else self._encode_broken(text)

    def token_text(self, token_id: int) -> str:
        """A token by itself, special ones by their names; half a character gives U+FFFD."""
        return str(self._full.decode([token_id], skip_special_tokens=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of the tokens, special ones left out."""
        return str(self._full.decode(list(token_ids), skip_special_tokens=True))

    def stream(self) -> TextStream:
        """A stream that turns tokens into text one by one."""
        return TextStream(self.decode)

    def _named_tokens(self, info: TokenizerInfo) -> dict[str, str]:
        """The texts that templates know as `bos_token` and `eos_token`; the first end token is the tokenizer's own."""
        named = {"bos_token": info.bos_token_id, "eos_token": next(iter(info.eos_token_ids), None)}
        texts = {name: self._full.id_to_token(token_id) for name, token_id in named.items() if token_id is not None}
        return {name: text for name, text in texts.items() if text is not None}

    def _broken_message(self, message: Mapping[str, Any]) -> Any:
        spellings = self._special if message.get("role") == "assistant" else self._control
        return _map_strings(dict(message), spellings.broken)

    def _encode_broken(self, text: str) -> list[int]:
        """Control tokens where the template wrote them, ordinary tokens for all between."""
        token_ids: list[int] = []
        for piece in self._control.split(text):
            if piece in self._control.id_of:
                token_ids.append(self._control.id_of[piece])
            elif piece:
                token_ids += self._encode_ordinary(piece.replace(_SENTINEL, "")).ids
        return token_ids

    def _encode_ordinary(self, text: str) -> tokenizers.Encoding:
        """Refuses what gives a control token all the same: some models know its spelling as an ordinary word."""
        encoding = self._plain.encode(text, add_special_tokens=False)
        for token_id in self._control.text_of.keys() & set(encoding.ids) - {self._unknown_id}:
            raise InvalidInputError(f"the text spells the control token {self._control.text_of[token_id]!r}: remove it")
        return encoding


class TextStream:
    """Turns one answer's tokens into text as they come. A character in several tokens waits for its last one."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        # Decoders treat the first token of a text in their own way, so that some sent ones stay before the others.
        self._token_ids: list[int] = []
        self._num_context_tokens = 0
        self._num_sent_chars = 0
        self._num_silent_pushes = 0

    def push(self, token_id: int) -> str:
        """The text that this token completes, maybe none."""
        self._token_ids.append(token_id)
        text = self._decode(self._token_ids)
        ready = self._ready(text)
        piece = ready[self._num_sent_chars :]
        self._num_sent_chars = max(self._num_sent_chars, len(ready))
        self._num_silent_pushes = 0 if piece or ready == text else self._num_silent_pushes + 1
        if ready == text:
            self._keep(self._token_ids[self._num_context_tokens :], num_held_chars=0)
        elif len(self._token_ids) > _MAX_WINDOW_TOKENS:
            self._keep(self._token_ids[-_MAX_WINDOW_TOKENS // 2 :], num_held_chars=len(text) - self._num_sent_chars)
        return piece

    def flush(self) -> str:
        """What still waits, at the end of the answer: an incomplete character becomes U+FFFD."""
        return self._decode(self._token_ids)[self._num_sent_chars :]

    def _ready(self, text: str) -> str:
        """The text less what the next tokens may still make a character of, which decodes to U+FFFD so far.

        Some decoders give one per byte, others one per incomplete character. A character has at most four bytes: those
        before the last one that have waited for so long are none.
        """
        if self._num_silent_pushes + 1 < _MAX_CHARACTER_BYTES:
            return text.rstrip(REPLACEMENT)
        return text.removesuffix(REPLACEMENT)

    def _keep(self, token_ids: list[int], *, num_held_chars: int) -> None:
        """Keep the latest tokens alone, so that a push's cost does not grow with the answer."""
        self._token_ids = token_ids
        self._num_context_tokens = len(token_ids)
        self._num_sent_chars = len(self._decode(token_ids)) - num_held_chars


class _Spellings:
    """A set of control tokens: finds what spells them, unless a sentinel stands before it."""

    def __init__(self, id_of: Mapping[str, int]) -> None:
        self.id_of = dict(id_of)
        self.text_of = {token_id: text for text, token_id in id_of.items()}
        longest_first = "|".join(sorted(map(re.escape, id_of), key=len, reverse=True)) or "(?!)"
        self._unbroken = re.compile(f"(?<!{_SENTINEL})({longest_first})")
        self._starts = re.compile(f"(?={longest_first})")  # finds those that overlap as well
        self._beginnings = {text[:length] for text in id_of for length in range(1, len(text))}
        self._longest_beginning = max(map(len, self._beginnings), default=0)

    def count(self, text: str) -> int:
        """How many control tokens the text spells."""
        return len(self._unbroken.findall(text))

    def split(self, text: str) -> list[str]:
        """The text cut before and after each control token."""
        return self._unbroken.split(text)

    def broken(self, text: str) -> str:
        """The text with a sentinel before each spelling, and before each end that could begin one."""
        text = _cleaned(text)
        ends = range(max(0, len(text) - self._longest_beginning), len(text))
        starts = {match.start() for match in self._starts.finditer(text)}
        starts |= {start for start in ends if text[start:] in self._beginnings}
        cuts = [0, *sorted(starts), len(text)]
        return _SENTINEL.join(text[start:end] for start, end in itertools.pairwise(cuts))


def _cleaned(text: str) -> str:
    """The text without sentinels and without halves of UTF-16 pairs, which JSON can spell and UTF-8 cannot."""
    return text.replace(_SENTINEL, "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with every string changed, keys too; raises `InvalidInputError` for anything else."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_map_strings(key, change): _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_map_strings(item, change) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    raise InvalidInputError(f"messages hold JSON values only, not {type(value).__name__}")


def _load(text: str) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _control_tokens(document: Mapping[str, Any], template: str) -> tuple[dict[str, int], dict[str, int]]:
    """The special tokens, and all control tokens: those, and what else of markup the template writes."""
    added = document.get("added_tokens") or []
    special = {token["content"]: token["id"] for token in added if token["special"]}
    written = {
        token["content"]: token["id"]
        for token in added
        if _is_markup(token["content"]) and token["content"] in template
    }
    return special, special | written


def _unknown_id(document: Mapping[str, Any]) -> int | None:
    """The token for unknown words, if the model has one; it may be special, and yet any text may hold unknown words."""
    model = document["model"]
    is_by_word = isinstance(model.get("vocab"), Mapping)
    unknown: int | None = model["vocab"].get(model.get("unk_token")) if is_by_word else model.get("unk_id")
    return unknown


def _is_markup(text: str) -> bool:
    """Neither blanks nor a plain word, which templates hold for other reasons."""
    return bool(text.strip()) and not text.strip().isalnum()


def _with_special(document: Mapping[str, Any], control: Mapping[str, int]) -> dict[str, Any]:
    added = [{**token, "special": token["content"] in control} for token in document.get("added_tokens") or []]
    return {**document, "added_tokens": added}
