"""Names made of parts: people, places and songs in both languages. Many more combinations than a model can memorise."""

import random

from deploy.demo import lexicon
from deploy.demo.phrasing import Lang


def person(lang: Lang, rng: random.Random) -> str:
    """Return a contact: a full name, a nickname, a name with a title, or a relative."""
    if lang == "zh":
        return _zh_person(rng)
    kind = rng.random()
    first = rng.choice(lexicon.EN_FIRST)
    if kind < 0.4:
        return f"{first} {rng.choice(lexicon.EN_LAST)}"
    if kind < 0.6:
        return f"{rng.choice(('Mr.', 'Mrs.', 'Dr.', 'Ms.'))} {rng.choice(lexicon.EN_LAST)}"
    return rng.choice(lexicon.EN_FAMILY) if kind < 0.7 else first


def _zh_person(rng: random.Random) -> str:
    kind, surname = rng.random(), rng.choice(lexicon.ZH_SURNAMES)
    if kind < 0.5:
        return surname + rng.choice(lexicon.ZH_GIVEN)
    if kind < 0.6:
        return rng.choice("小老") + surname
    if kind < 0.85:
        return surname + rng.choice(lexicon.ZH_TITLES)
    return rng.choice(lexicon.ZH_FAMILY)


def place(lang: Lang, rng: random.Random) -> str:
    """Return a place that one can drive to."""
    if lang == "zh":
        return rng.choice(lexicon.ZH_PLACE_NAMES) + rng.choice(lexicon.ZH_PLACE_KINDS)
    return f"{rng.choice(lexicon.EN_PLACE_NAMES)} {rng.choice(lexicon.EN_PLACE_KINDS)}"


def song(lang: Lang, rng: random.Random) -> str:
    """Return a song's title."""
    if lang == "zh":
        return f"{rng.choice(lexicon.ZH_SONG_ADJ)}的{rng.choice(lexicon.ZH_SONG_NOUN)}"
    return f"{rng.choice(lexicon.EN_SONG_ADJ)} {rng.choice(lexicon.EN_SONG_NOUN)}"
