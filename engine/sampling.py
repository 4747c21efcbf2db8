"""From logits to the next token. Pure functions of arrays; the only state is a request's own random generator.

The order is Hugging Face's: repetition penalty, temperature, top-k, top-p, min-p. Ties go to the lower token id, so
that the same logits and seed give the same token anywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import InvalidInputError, NumericalError

Logits = NDArray[np.float32]
TokenIds = NDArray[np.int64]
Probabilities = NDArray[np.float64]

MAX_LOGPROBS = 20
NOT_FINITE = "the model's logits are not finite: fetch the base and the adapter again"


def _require(condition: bool, name: str, expected: str) -> None:  # noqa: FBT001 - a predicate, not an option
    if not condition:
        raise InvalidInputError(f"{name}: give {expected}")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a request wants its answer.

    temperature 0 takes the likeliest token; top_k 0, top_p 1 and min_p 0 keep all tokens. `stop` strings end the
    answer and are no part of it. max_tokens None means as many as the context holds. seed None draws a fresh one.
    logprobs: how many of the likeliest tokens to name with each token of the answer, None for no probabilities at all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _require(math.isfinite(self.temperature) and self.temperature >= 0, "temperature", "a number of at least 0")
        _require(self.top_k >= 0, "top_k", "a whole number, 0 for no limit")
        _require(0 < self.top_p <= 1, "top_p", "a number above 0 and at most 1")
        _require(0 <= self.min_p <= 1, "min_p", "a number from 0 to 1")
        _require(
            math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0,
            "repetition_penalty",
            "a number above 0",
        )
        _require(self.seed is None or self.seed >= 0, "seed", "a whole number of at least 0")
        _require(all(self.stop), "stop", "strings that are not empty")
        _require(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", "a whole number of at least 1")
        _require(self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS, "logprobs", f"0 to {MAX_LOGPROBS}")


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The natural logarithm of a token's probability, and the likeliest tokens with theirs, the likeliest first.

    They are the model's own, before temperature, penalties and cuts.
    """

    token_id: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]


GREEDY = SamplingParams(temperature=0.0)


def new_generator(params: SamplingParams) -> np.random.Generator:
    """A generator for one request alone: what else runs cannot change its draws."""
    return np.random.default_rng(params.seed)


def draw_uniform(params: SamplingParams, generator: np.random.Generator) -> float:
    """What `next_token` needs: a number in [0, 1), or 0 at temperature 0, where nothing is drawn."""
    return generator.random() if params.temperature else 0.0


def next_token(logits: Logits, params: SamplingParams, seen_token_ids: list[int], uniform: float) -> int:
    """The next token from logits [vocab_size], in which -inf is a mask; changes nothing.

    seen_token_ids: those of prompt and answer so far. uniform: drawn from [0, 1), not used at temperature 0. Raises
    `NumericalError` if a logit is NaN or the largest is not finite.
    """
    if params.repetition_penalty != 1.0:
        logits = penalise_repetition(logits, seen_token_ids, params.repetition_penalty)
    likeliest = int(np.argmax(logits))  # finds the first NaN, if there is one
    if not np.isfinite(logits[likeliest]):
        raise NumericalError(NOT_FINITE)
    if params.temperature == 0.0:
        return likeliest
    token_ids, probabilities = candidates(logits, params)
    return draw(token_ids, probabilities, uniform)


def logprobs_of(logits: Logits, token_id: int, num_likeliest: int) -> TokenLogprobs:
    """Of a token and the likeliest ones, from finite logits [vocab_size] in which -inf is a mask."""
    top = float(logits.max())
    total = top + math.log(float(np.exp(logits.astype(np.float64) - top).sum()))
    likeliest = _largest(logits, num_likeliest) if num_likeliest else np.empty(0, np.int64)
    return TokenLogprobs(
        token_id, float(logits[token_id]) - total, tuple((int(t), float(logits[t]) - total) for t in likeliest)
    )


def penalise_repetition(logits: Logits, seen_token_ids: list[int], penalty: float) -> Logits:
    """Lower the logits of seen tokens (Keskar et al., 2019): divide the positive ones, multiply the others."""
    seen = np.unique(np.asarray(seen_token_ids, np.int64))
    penalised = logits.copy()
    values = penalised[seen]
    penalised[seen] = np.where(values > 0, values / penalty, values * penalty)
    return penalised


def candidates(logits: Logits, params: SamplingParams) -> tuple[TokenIds, Probabilities]:
    """The tokens that may follow and their probabilities, which add up to 1.

    In descending order if top_k or top_p cut, else in order of token id.
    """
    token_ids: TokenIds = np.arange(len(logits)) if params.top_k == 0 else _largest(logits, params.top_k)
    probabilities = _softmax(logits[token_ids], params.temperature)
    if params.top_p < 1.0:
        kept = _nucleus(logits[token_ids], probabilities, params.top_p)
        token_ids, probabilities = token_ids[kept], probabilities[kept]
    if params.min_p > 0.0:
        likely = probabilities >= params.min_p * probabilities.max()
        token_ids, probabilities = token_ids[likely], probabilities[likely]
    return token_ids, probabilities / probabilities.sum()


def draw(token_ids: TokenIds, probabilities: Probabilities, uniform: float) -> int:
    """The token at `uniform` (in [0, 1)) of the cumulative distribution."""
    cumulative = np.cumsum(probabilities)
    index = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return int(token_ids[min(index, len(token_ids) - 1)])


def _largest(logits: Logits, count: int) -> TokenIds:
    """The ids of the `count` largest logits, descending, without sorting them all."""
    if count >= len(logits):
        return np.argsort(-logits, kind="stable")
    threshold = np.partition(logits, -count)[-count]
    shortlist = np.flatnonzero(logits >= threshold)
    return shortlist[np.argsort(-logits[shortlist], kind="stable")[:count]]


def _softmax(logits: Logits, temperature: float) -> Probabilities:
    with np.errstate(over="ignore", under="ignore"):  # a tiny temperature leaves the likeliest token alone
        weights: Probabilities = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    return np.asarray(weights / weights.sum())


def _nucleus(logits: Logits, probabilities: Probabilities, top_p: float) -> TokenIds:
    """Places of the fewest likeliest tokens that together reach `top_p` (Holtzman et al., 2020), descending.

    Tokens below (1 - top_p) / n hold less than 1 - top_p together, so they are never needed and never sorted.
    """
    shortlist = np.flatnonzero(probabilities >= (1.0 - top_p) / len(probabilities))
    order = shortlist[np.argsort(-logits[shortlist], kind="stable")]  # by logit: probabilities round to the same
    mass_before = np.cumsum(probabilities[order]) - probabilities[order]
    return order[mass_before < top_p]
