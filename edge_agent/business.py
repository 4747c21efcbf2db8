"""The options of a business that ship with its adapter: which of them this agent understands, and what they must be.

Everything else in a manifest's `business` is for the business's own apps and passes untouched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge_agent.errors import AdmissionError


class SamplingOptions(BaseModel):
    """How an answer is drawn; None leaves it to whoever is asked next: request, business, engine."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0)
    seed: int | None = Field(default=None, ge=0)
    stop: str | list[str] | None = None
    max_tokens: int | None = Field(default=None, ge=1)

    def for_engine(self) -> dict[str, Any]:
        """What was said, as fields of `engine.sampling.SamplingParams`."""
        options = self.model_dump(exclude_none=True, include=set(SamplingOptions.model_fields))
        if options.get("top_k") == -1:
            options["top_k"] = 0
        if isinstance(options.get("stop"), str):
            options["stop"] = [options["stop"]]
        return options


def sampling_of(business: Mapping[str, Any]) -> dict[str, Any]:
    """The business's defaults for the engine; raises `AdmissionError` for what the engine would refuse later."""
    try:
        return SamplingOptions.model_validate(business.get("sampling", {})).for_engine()
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(("business", "sampling", *map(str, first["loc"])))
        raise AdmissionError(
            f"{place}: {first['msg']}; publish the adapter again", code="bad_business_options"
        ) from error
