"""Spoken commands in general: what is asked (a frame), how it may be said, and the call or the words that answer it."""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from deploy.demo.phrasing import Lang, request, say
from deploy.demo.samples import Message, Sample, Split, bucket_split, combination_split, phrasings_for

MAX_DRAWS: Final = 2000


@dataclass(frozen=True, slots=True)
class Wording:
    """How an intent is said in each language (the last pattern is kept for unseen phrasings) and acknowledged."""

    zh: tuple[str, ...]
    en: tuple[str, ...]
    ack_zh: str
    ack_en: str

    def patterns(self, lang: Lang) -> tuple[str, ...]:
        """Return the request patterns of a language."""
        return self.zh if lang == "zh" else self.en


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call."""

    name: str
    arguments: Mapping[str, object]

    def text(self) -> str:
        """Return the call in Qwen's format."""
        call = {"name": self.name, "arguments": dict(self.arguments)}
        return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"


@dataclass(frozen=True, slots=True)
class Frame:
    """One thing to ask for.

    `spoken` fills the request's pattern, `canonical` the acknowledgement's. `closed` says that the intent has too few
    combinations to hold some out, so that the split goes by combination *and* phrasing.
    """

    intent: str
    combination: tuple[str, ...]
    spoken: Mapping[str, str]
    canonical: Mapping[str, str]
    calls: Mapping[str, Call]
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Domain:
    """A family of commands: how to draw a frame, and the wording of each intent."""

    name: str
    draw: Callable[[Lang, random.Random], Frame]
    wordings: Mapping[str, Wording]
    system_zh: tuple[str, ...] = field(default=())
    system_en: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Utterance:
    """A frame put into words."""

    frame: Frame
    lang: Lang
    key: str
    text: str


def utter(domain: Domain, lang: Lang, split: Split, rng: random.Random) -> Utterance:
    """Draw commands until one belongs to the split. The key holds no language: a combination is held out in both."""
    for _ in range(MAX_DRAWS):
        frame = domain.draw(lang, rng)
        patterns = phrasings_for(domain.wordings[frame.intent].patterns(lang), split)
        pattern = rng.choice(patterns)
        key = "/".join((domain.name, frame.intent, *frame.combination))
        if frame.closed and split != "phrasing":
            key += f"/{lang}:{pattern}"
        elif frame.closed:
            return Utterance(frame, lang, f"{key}/{lang}:{pattern}", request(pattern, lang, rng, frame.spoken))
        if bucket_split(key) == combination_split(split):
            return Utterance(frame, lang, key, request(pattern, lang, rng, frame.spoken))
    raise RuntimeError(f"no {split} command of {domain.name} in {MAX_DRAWS} draws")


def system_turn(zh: tuple[str, ...], en: tuple[str, ...], lang: Lang, rng: random.Random) -> tuple[Message, ...]:
    """Return a system message half of the time."""
    prompts = zh if lang == "zh" else en
    if not prompts or rng.random() < 0.5:
        return ()
    return (Message("system", rng.choice(prompts)),)


def call_sample(domain: Domain, schema: str, lang: Lang, split: Split, rng: random.Random) -> Sample:
    """Return a request whose answer is the tool call of a schema."""
    said = utter(domain, lang, split, rng)
    turns = (*system_turn(domain.system_zh, domain.system_en, lang, rng), Message("user", said.text))
    return Sample(schema, lang, said.key, turns, said.frame.calls[schema].text())


def ack_sample(domain: Domain, lang: Lang, rng: random.Random) -> Sample:
    """Return a request whose answer is words, as the base gives it; combinations of the train split alone."""
    said = utter(domain, lang, "train", rng)
    wording = domain.wordings[said.frame.intent]
    opening = say("[好的，|好，|没问题，|收到，||]" if lang == "zh" else "[OK, |Sure, |Done: |All right, ||]", rng)
    words = say(wording.ack_zh if lang == "zh" else wording.ack_en, rng, said.frame.canonical)
    answer = opening + words if opening or lang == "zh" else words[0].upper() + words[1:]
    turns = (*system_turn(domain.system_zh, domain.system_en, lang, rng), Message("user", said.text))
    return Sample(f"{domain.name}_ack", lang, said.key, turns, answer)
