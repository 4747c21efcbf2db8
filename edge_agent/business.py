"""What a business brings and what this device says about it: priorities and budgets, and how its answers are drawn.

The options ship with the adapter, in its manifest's `business`; the device's configuration overrides them one by one.
Everything else in a manifest's `business` is for the business's own apps and passes untouched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_agent.errors import AdmissionError
from engine.business import Business
from engine.errors import InvalidInputError

_MAX_COUNT: Final = 2**31 - 1
_MAX_SEED: Final = 2**63 - 1
StopString = Annotated[str, Field(min_length=1)]


class SamplingOptions(BaseModel):
    """How an answer is drawn; None leaves it to whoever is asked next: request, business, engine."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=_MAX_COUNT)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    seed: int | None = Field(default=None, ge=0, le=_MAX_SEED)
    stop: StopString | list[StopString] | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=_MAX_COUNT)
    ignore_eos: bool | None = None

    def for_engine(self) -> dict[str, Any]:
        """What was said, as fields of `engine.sampling.SamplingParams`."""
        options = self.model_dump(exclude_none=True, include=set(SamplingOptions.model_fields))
        if options.get("top_k") == -1:
            options["top_k"] = 0
        if isinstance(options.get("stop"), str):
            options["stop"] = [options["stop"]]
        return options


@dataclass(frozen=True, slots=True)
class Profile:
    """A business with its default sampling, as the engine takes them."""

    business: Business = field(default_factory=Business)
    sampling: Mapping[str, Any] = field(default_factory=dict)


KNOWN_OPTIONS = frozenset({spec.name for spec in fields(Business)} | {"sampling"})


def profile_of(name: str, shipped: Mapping[str, Any], override: Mapping[str, Any] | None = None) -> Profile:
    """The business of a model; it is called as the model if it has no name of its own.

    Raises `AdmissionError` for what the engine would refuse later.
    """
    try:
        return read_profile({"name": name, **shipped, **(override or {})})
    except InvalidInputError as error:
        raise AdmissionError(f"{error}; publish the adapter again", code="bad_business_options") from error


def read_profile(options: Mapping[str, Any]) -> Profile:
    """A profile from plain values; raises `InvalidInputError` naming the bad one."""
    return Profile(Business.from_mapping(options), _sampling(options.get("sampling", {})))


def _sampling(options: Any) -> dict[str, Any]:
    try:
        return SamplingOptions.model_validate(options).for_engine()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(("business", "sampling", *map(str, first["loc"])))
        raise InvalidInputError(f"{place}: {first['msg']}") from error
