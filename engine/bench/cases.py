"""What is measured: cases, grouped by the state of the sequence that they start from. Knows no contestant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Case:
    """One step of one sequence: `rows` tokens behind `context` tokens, all rows in a chain.

    logits: of "all" rows, as the verification of a draft needs them, or of the "last", as a prefill does.
    """

    context: int
    rows: int
    logits: Literal["all", "last"]

    @property
    def is_prefill(self) -> bool:
        """Whether it starts from nothing."""
        return self.context == 0

    @property
    def label(self) -> str:
        """For people."""
        return f"prefill {self.rows}" if self.is_prefill else f"{self.rows}"

    @property
    def logit_rows(self) -> int:
        """How many rows get logits."""
        return self.rows if self.logits == "all" else 1


@dataclass(frozen=True, slots=True)
class Setting:
    """A state that is prepared once: `context` random tokens in a state with room for `capacity`."""

    context: int
    capacity: int
    cases: tuple[Case, ...]

    @property
    def label(self) -> str:
        """For people."""
        return f"context {self.context}" if self.context else "prefill"

    @property
    def max_logit_rows(self) -> int:
        """The most logits that a case wants."""
        return max(case.logit_rows for case in self.cases)

    @property
    def largest(self) -> Case:
        """The case with the most rows, which takes the most memory."""
        return max(self.cases, key=lambda case: case.rows)


def settings(*, contexts: Sequence[int], rows: Sequence[int], prefills: Sequence[int]) -> list[Setting]:
    """The states to prepare, in order: each context, then the empty one for prefills."""
    planned = [_setting(context, [Case(context, count, "all") for count in rows]) for context in contexts if rows]
    if prefills:
        planned.append(_setting(0, [Case(0, count, "last") for count in prefills]))
    return planned


def _setting(context: int, cases: Iterable[Case]) -> Setting:
    ordered = tuple(sorted(cases, key=lambda case: case.rows))
    return Setting(context, context + ordered[-1].rows, ordered)
