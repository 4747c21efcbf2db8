from __future__ import annotations

import random

import pytest

from registry.errors import InvalidVersionError
from registry.versions import MAX_LENGTH, MAX_SORT_KEY_LENGTH, is_version, parse_version

# semver.org, section 11, and around it.
IN_ORDER = [
    "0.0.1-0",
    "0.0.1",
    "0.9.0",
    "0.10.0",
    "1.0.0-0",
    "1.0.0-2",
    "1.0.0-10",
    "1.0.0--",
    "1.0.0-Z",
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-alpha1",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
    "1.0.1-a",
    "2.0.0",
    "10.0.0",
    "123456789012345678901.0.0",
]


def test_versions_are_ordered_by_precedence() -> None:
    shuffled = random.Random(1).sample(IN_ORDER, len(IN_ORDER))
    assert sorted(shuffled, key=lambda text: parse_version(text).sort_key) == IN_ORDER


NO_VERSIONS = ["", "1", "1.0", "1.0.0.0", "v1.0.0", " 1.0.0", "1.0.0\n", "01.0.0", "1.00.0", "١.0.0", "1.0.0-"]
NO_VERSIONS += ["1.0.0-01", "1.0.0-a..b", "1.0.0-ä", "1.0.0+build", "1.0.0-" + "a" * MAX_LENGTH]


@pytest.mark.parametrize("text", NO_VERSIONS)
def test_what_is_no_version_is_refused(text) -> None:
    assert not is_version(text)
    with pytest.raises(InvalidVersionError):
        parse_version(text)


def test_the_longest_sort_key_fits_its_column() -> None:
    longest = "1.0.0-" + ".".join("1" * ((MAX_LENGTH - 6 + 1) // 2))
    assert len(longest) in (MAX_LENGTH, MAX_LENGTH - 1)
    assert len(parse_version(longest).sort_key) <= MAX_SORT_KEY_LENGTH
