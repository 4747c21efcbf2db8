"""Words on a benchmark's command line: each turns a text into a value, or tells argparse what is wrong with it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def counts(text: str) -> list[int]:
    """Whole numbers of at least 1 with commas between them, in order, each once; none for an empty text."""
    return sorted({count(part) for part in text.split(",")}) if text else []


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (number > 0 and math.isfinite(number)):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number


def one_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """A parser of names with commas between them."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return names

    return parse
