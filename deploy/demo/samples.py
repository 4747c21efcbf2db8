"""What a sample is and to which split it belongs.

The split is a function of *what is asked* alone: a combination of intent and slot values lies in one split for ever,
whatever the seed, the phrasing and the language model that is trained on it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from deploy.demo.phrasing import Lang

Split = Literal["train", "valid", "test", "phrasing"]
SPLITS: Final[tuple[Split, ...]] = ("train", "valid", "test", "phrasing")
"""`test`: unseen combinations in known phrasings. `phrasing`: unseen combinations in unseen phrasings."""

_NUM_BUCKETS: Final = 20
_TEST_BUCKETS: Final = (0, 1)
_VALID_BUCKETS: Final = (2,)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn, as the chat template takes it."""

    role: str
    content: str

    def as_dict(self) -> dict[str, str]:
        """Return the turn as JSON-ready data."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Sample:
    """A conversation and the one right answer to its last turn. `key` names the combination that is asked for."""

    task: str
    lang: Lang
    key: str
    messages: tuple[Message, ...]
    answer: str
    tools: tuple[dict[str, object], ...] = ()

    def as_dict(self) -> dict[str, object]:
        """Return the sample as JSON-ready data."""
        return {
            "task": self.task,
            "lang": self.lang,
            "key": self.key,
            "messages": [message.as_dict() for message in self.messages],
            "answer": self.answer,
        }


def bucket_split(key: str) -> Split:
    """Return the split that owns a combination: 10 % test, 5 % valid, the rest train."""
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % _NUM_BUCKETS
    if bucket in _TEST_BUCKETS:
        return "test"
    return "valid" if bucket in _VALID_BUCKETS else "train"


def combination_split(split: Split) -> Split:
    """Return the split whose combinations `split` draws from: unseen phrasings ask for test combinations."""
    return "test" if split == "phrasing" else split


def phrasings_for(patterns: Sequence[str], split: Split) -> Sequence[str]:
    """Return the patterns that a split may use: the last of each list is kept for the `phrasing` split."""
    return patterns[-1:] if split == "phrasing" else patterns[:-1]
