# ruff: noqa: SIM905 - word lists read better as text
"""How sentences are made: patterns with alternatives, spoken numbers, politeness. Knows no task.

A pattern is text with `[a|b|]` for a choice (nested choices are allowed) and `{slot}` for a value.
"""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Final, Literal

Lang = Literal["zh", "en"]
LANGS: Final[tuple[Lang, Lang]] = ("zh", "en")

_INNERMOST_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_ZH_DIGITS = "零一二三四五六七八九"
_EN_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_EN_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()

_BEFORE: Final = {
    "zh": "[||||请|帮我|麻烦|请帮我|麻烦你|你好，|劳驾，|嗨，|那个，|快，|现在|能不能|可以|小石，]",
    "en": (
        "[||||please |can you |could you |could you please |hey, |would you |hi, |now |okay, |i want you to |kindly ]"
    ),
}
_AFTER: Final = {
    "zh": "[||||吧|，谢谢|，好吗|。|！|，多谢|，快点|，拜托]",
    "en": "[||||, please|, thanks|.|!| now| for me|, thank you| right away]",
}


def seeded(*parts: object) -> random.Random:
    """Return the random source of a stream: equal parts, equal text."""
    return random.Random("/".join(map(str, parts)))  # noqa: S311 - data, not secrets


def expand(pattern: str, rng: random.Random) -> str:
    """Resolve every choice of a pattern, from the innermost outwards."""
    while (match := _INNERMOST_CHOICE.search(pattern)) is not None:
        chosen = rng.choice(match.group(1).split("|"))
        pattern = pattern[: match.start()] + chosen + pattern[match.end() :]
    return pattern


def say(pattern: str, rng: random.Random, slots: Mapping[str, object] | None = None) -> str:
    """Resolve the choices, then put the slot values in: a value is never read as a pattern."""
    return expand(pattern, rng).format_map(dict(slots or {}))


def request(pattern: str, lang: Lang, rng: random.Random, slots: Mapping[str, object]) -> str:
    """Phrase a request. A pattern that starts with `!` is a whole sentence; others get polite words around them."""
    if pattern.startswith("!"):
        text = say(pattern[1:], rng, slots)
    else:
        text = expand(_BEFORE[lang], rng) + say(pattern, rng, slots) + expand(_AFTER[lang], rng)
    if lang == "en" and rng.random() < 0.6:
        text = text[0].upper() + text[1:]
    return text


def zh_number(value: int) -> str:
    """Chinese numeral of 0 to 100, as a speech recogniser may write it."""
    if value == 100:
        return "一百"
    tens, ones = divmod(value, 10)
    if tens == 0:
        return _ZH_DIGITS[ones]
    return ("" if tens == 1 else _ZH_DIGITS[tens]) + "十" + (_ZH_DIGITS[ones] if ones else "")


def en_number(value: int) -> str:
    """English words of 0 to 100."""
    if value == 100:
        return "one hundred"
    if value < 20:
        return _EN_ONES[value]
    tens, ones = divmod(value, 10)
    return _EN_TENS[tens - 2] + (f"-{_EN_ONES[ones]}" if ones else "")


def number(value: int, lang: Lang, rng: random.Random) -> str:
    """Digits mostly, words sometimes."""
    if rng.random() < 0.7:
        return str(value)
    return zh_number(value) if lang == "zh" else en_number(value)


def weighted_surface(names: Sequence[str], rng: random.Random) -> str:
    """One of the names of a thing; the first, canonical one half of the time."""
    return names[0] if rng.random() < 0.5 else rng.choice(names)
