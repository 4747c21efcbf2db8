"""Semantic versions (semver.org 2.0.0) and their order. Pure; knows no releases.

Build metadata is refused: two versions that differ in nothing else would have no order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from registry.errors import InvalidVersionError

MAX_LENGTH = 64
MAX_SORT_KEY_LENGTH = 512

_NUMBER = r"0|[1-9][0-9]*"
_IDENTIFIER = rf"(?:{_NUMBER}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
PATTERN = rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})(?:-({_IDENTIFIER}(?:\.{_IDENTIFIER})*))?"
_VERSION = re.compile(PATTERN)


@dataclass(frozen=True, slots=True)
class Version:
    """A parsed version; `prerelease` is empty for a final one."""

    major: int
    minor: int
    patch: int
    prerelease: tuple[str, ...] = ()

    @property
    def sort_key(self) -> str:
        """Text whose plain order is the order of precedence, in lower-case hex so that no collation changes it."""
        numbers = "".join(_number_key(str(n)) for n in (self.major, self.minor, self.patch))
        tail = "-" + "".join(_identifier_key(i) for i in self.prerelease) if self.prerelease else "~"
        return (numbers + tail).encode().hex()


def parse_version(text: str) -> Version:
    """The version that the text stands for; raises `InvalidVersionError`."""
    match = _VERSION.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if match is None:
        raise InvalidVersionError(f"{text!r:.80} is not a semantic version")
    major, minor, patch, prerelease = match.groups()
    return Version(int(major), int(minor), int(patch), tuple(prerelease.split(".")) if prerelease else ())


def is_version(text: str) -> bool:
    """Whether the text is a version that `parse_version` takes."""
    return len(text) <= MAX_LENGTH and _VERSION.fullmatch(text) is not None


def _number_key(digits: str) -> str:
    """Longer numbers are greater, so the number of digits goes first."""
    return f"{len(digits):02d}{digits}"


def _identifier_key(identifier: str) -> str:
    """Numbers come before words; the end mark sorts below every character that an identifier may hold."""
    return f"0{_number_key(identifier)}!" if identifier.isdigit() else f"1{identifier}!"
