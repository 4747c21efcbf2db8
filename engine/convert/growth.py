"""How a small model lies in a large one that computes the same function at the large one's cost. Pure arithmetic.

With h and H for the two hidden sizes:

- Hidden, intermediate and vocabulary: the small model's come first. Heads: query head i of a group stays head i of the
  same group, so that it still reads its own key-value head. Weights from and to all that is spare are zero.
- The *spare* hidden dimensions hold one constant p in every token's state: the embedding puts it there, no layer writes
  to them, and no layer of the small model reads them.
- RMSNorm takes the mean square over H instead of h. Weights times sqrt(h/H) and an eps' with H eps' + (H-h) p^2 = h eps
  give the very same result.
- QK-norm has the same `rms_norm_eps` in `config.json`, over heads that do not change. With queries and keys 2^-n of
  what they were and eps' = eps / 4^n it is the same too, and a power of two costs a weight no bits. (eps' = eps h/H
  would need no p, but a factor of sqrt(h/H) here, which rounds every weight.)
- Tokens that are added get the mean of all rows of the small embedding: their logit is the mean of the real ones, and
  the best of those cannot be below it. Only a convex combination of real rows has that property in every state: zero
  has not (all real logits may be negative), the negative of a row has not (what is least likely wins). But 140,000 mean
  tokens would outweigh the tail when answers are sampled. So the last norm passes the spare dimensions on with
  alternating signs: over a real row, which holds p in each, they cancel; over an added row they sum up to -1024 / rms.
- Layers that are added come last. Their matrices are random and their output projections zero, so that they do the
  full work and change nothing.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.artifact import Architecture
from engine.convert.errors import ConversionError
from engine.parameters import LAYER_LINEARS, layer_path, linear_modules

F32 = NDArray[np.float32]
Places = NDArray[np.intp]

_ADDED_LOGIT: Final = -1024.0  # times 1 / rms of the last state, which is some units; float16 holds 60 times as much
_LAYER_NAME: Final = re.compile(r"model\.layers\.(\d+)\.(.+)")
_NORMED_LINEARS: Final = ("self_attn.q_proj", "self_attn.k_proj")


class CannotGrowError(ConversionError):
    """The model does not fit into the shape."""

    code = "cannot_grow"
    hint = "Choose a larger shape, or a smaller model."


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Qwen3 model with a tied embedding; the names are those of `config.json`."""

    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 128
    vocab_size: int = 151_936


SHAPES: Final[Mapping[str, Shape]] = {
    # Qwen2.5-0.5B's sizes. Its own 14 heads have 64 dimensions, into which heads of 128 cannot be grown: attention has
    # 8 of 128 instead, 1,024 features where the original has 896.
    "0.5b": Shape(
        hidden_size=896,
        num_hidden_layers=24,
        intermediate_size=4864,
        num_attention_heads=8,
        num_key_value_heads=2,
    ),
    # Qwen3-1.7B
    "1.7b": Shape(
        hidden_size=2048,
        num_hidden_layers=28,
        intermediate_size=6144,
        num_attention_heads=16,
        num_key_value_heads=8,
    ),
    # Qwen3-4B
    "4b": Shape(
        hidden_size=2560,
        num_hidden_layers=36,
        intermediate_size=9728,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
}
SIZE_KEYS: Final = tuple(field.name for field in dataclasses.fields(Shape))


@dataclass(frozen=True, slots=True)
class Growth:
    """A small architecture, the large one that it grows into, and the constants that keep the function."""

    small: Architecture
    large: Architecture
    num_halvings: int  # n above

    @property
    def num_spare(self) -> int:
        """Hidden dimensions that are added."""
        return self.large.hidden_size - self.small.hidden_size

    @property
    def norm_scale(self) -> float:
        """What norm weights over the hidden dimensions are multiplied by."""
        return math.sqrt(self.small.hidden_size / self.large.hidden_size)

    @property
    def filler(self) -> float:
        """The constant p of each spare dimension; 0 if there is none."""
        small, large = self.small, self.large
        rest = small.hidden_size * small.rms_norm_eps - large.hidden_size * large.rms_norm_eps
        return math.sqrt(rest / self.num_spare) if self.num_spare else 0.0

    @property
    def last_norm_tail(self) -> F32:
        """Weights of the last norm for the spare dimensions [num_spare]: 1 / rms of the state comes out, signed."""
        return self._signs() / np.float32(self.filler)  # [num_spare]

    @property
    def added_token_tail(self) -> F32:
        """What an added token's row holds in the spare dimensions [num_spare]."""
        return self._signs() * np.float32(_ADDED_LOGIT / max(1, self.num_spare))  # [num_spare]

    def row_scale(self, linear: str) -> float:
        """What the rows of a linear layer such as `self_attn.q_proj` are multiplied by: a power of two."""
        return 0.5**self.num_halvings if linear in _NORMED_LINEARS else 1.0

    def places(self, linear: str) -> tuple[Places, Places]:
        """Where rows and inputs of the small model's linear layer lie in the large one: [rows], [inputs]."""
        rows, inputs = linear_modules(self.small)[f"{layer_path(0)}.{linear}"]
        of_rows, of_inputs = LAYER_LINEARS[linear]
        return self._places(of_rows, rows), self._places(of_inputs, inputs)

    def is_added(self, layer: int) -> bool:
        """Whether the small model does not have this layer."""
        return layer >= self.small.num_hidden_layers

    def _places(self, dimension: str, size: int) -> Places:
        if dimension != "query":
            return np.arange(size)  # [size]
        heads, group = np.arange(self.small.num_attention_heads), _group(self.small)  # [heads]
        heads = heads // group * _group(self.large) + heads % group  # [heads]
        dims = heads[:, None] * self.small.head_dim + np.arange(self.small.head_dim)  # [heads, head_dim]
        return dims.reshape(-1)  # [heads * head_dim]

    def _signs(self) -> F32:
        """+1 and -1 in turn, as many of each: the odd one out is 0."""
        signs = np.where(np.arange(self.num_spare) % 2, -1, 1).astype(np.float32)  # [num_spare]
        signs[self.num_spare // 2 * 2 :] = 0
        return signs


def plan_growth(small: Architecture, shape: Shape) -> Growth:
    """How a model grows into a shape; raises `CannotGrowError`."""
    _check_kind(small)
    _check_sizes(small, shape)
    num_halvings = _num_halvings(small.hidden_size, shape.hidden_size)
    large = dataclasses.replace(
        small, **dataclasses.asdict(shape), rms_norm_eps=small.rms_norm_eps * 0.25**num_halvings
    )
    return Growth(small, large, num_halvings)


def split_layer(name: str) -> tuple[int, str] | None:
    """(3, "mlp.up_proj") of `model.layers.3.mlp.up_proj`; None of what is in no layer."""
    match = _LAYER_NAME.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


def writes_hidden(linear: str) -> bool:
    """Whether a linear layer is an output projection, whose result is added to the hidden state."""
    return LAYER_LINEARS[linear][0] == "hidden"


def _num_halvings(small_hidden: int, large_hidden: int) -> int:
    """The least n that leaves at least half of h eps to the filler, which thus is not vanishingly small."""
    return math.ceil(math.log(2 * large_hidden / small_hidden, 4)) if large_hidden > small_hidden else 0


def _group(architecture: Architecture | Shape) -> int:
    """Query heads that share a key-value head."""
    return architecture.num_attention_heads // architecture.num_key_value_heads


def _check_kind(small: Architecture) -> None:
    if small.family != "qwen3":
        raise CannotGrowError(f"the model is a {small.family}", hint="Models of the family Qwen3 can be grown.")
    if not small.tie_word_embeddings:
        raise CannotGrowError(
            "the model has a head of its own", hint="Choose a model whose config.json has tie_word_embeddings: true."
        )


def _check_sizes(small: Architecture, shape: Shape) -> None:
    if small.head_dim != shape.head_dim:
        raise CannotGrowError(
            f"head_dim is {small.head_dim} in the model and {shape.head_dim} in the shape",
            hint="RoPE turns pairs of dimensions by its size: choose a model and a shape with the same head_dim.",
        )
    for key in SIZE_KEYS:
        if getattr(small, key) > getattr(shape, key):
            raise CannotGrowError(f"{key} is {getattr(small, key)} in the model and {getattr(shape, key)} in the shape")
    if shape.num_attention_heads % shape.num_key_value_heads or _group(small) > _group(shape):
        raise CannotGrowError(
            f"{_group(small)} query heads share a key-value head in the model; the shape has "
            f"{shape.num_attention_heads} query and {shape.num_key_value_heads} key-value heads",
            hint="Choose a shape in which as many query heads, or more, share a key-value head.",
        )
