"""Model families: from a Hugging Face `config.json` to the `Architecture` that the engine runs.

A family is data: where it differs from the others stands in `FAMILIES`. Options that would change the computation in a
way that the engine does not do are refused by name, never ignored. Knows nothing of files and weights.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from engine.artifact import Architecture, RopeScaling
from engine.convert.errors import NotACheckpointError, UnknownArchitectureError, UnsupportedConfigError

_MAX_SIZE = 1 << 24
_MAX_LAYERS = 1024
_MAX_NUMBER = sys.float_info.max
_DEFAULT_ROPE_THETA = 10_000.0


@dataclass(frozen=True, slots=True)
class Family:
    """How one family differs.

    model_class: the only class of the checkpoint that is supported. has_qkv_bias: q, k and v always have biases.
    window_switch: the key that turns the sliding window on; "" if it is on whenever set, None if the family has none.
    defaults: values of keys that old configurations leave out, as in Hugging Face's configuration class.
    """

    name: Literal["qwen3", "qwen2", "llama", "mistral"]
    model_class: str
    defaults: Mapping[str, int]
    qk_norm: bool = False
    has_qkv_bias: bool = False
    window_switch: str | None = None


FAMILIES: Final = {
    "qwen3": Family(
        name="qwen3",
        model_class="Qwen3ForCausalLM",
        defaults={"head_dim": 128, "num_key_value_heads": 32},
        qk_norm=True,
        window_switch="use_sliding_window",
    ),
    "qwen2": Family(
        name="qwen2",
        model_class="Qwen2ForCausalLM",
        defaults={"num_key_value_heads": 32},
        has_qkv_bias=True,
        window_switch="use_sliding_window",
    ),
    "llama": Family(name="llama", model_class="LlamaForCausalLM", defaults={}),
    "mistral": Family(
        name="mistral",
        model_class="MistralForCausalLM",
        defaults={"num_key_value_heads": 8, "sliding_window": 4096},
        window_switch="",
    ),
}

# Keys that change the computation, and the values of theirs that mean "as usual".
_AS_USUAL: Final[Mapping[str, tuple[object, ...]]] = {
    "hidden_act": ("silu", None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "quantization_config": (None,),
    "compression_config": (None,),
    "partial_rotary_factor": (1.0, 1, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
}


def architecture_of(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a `config.json` describes; raises a `ConversionError` naming what is not supported."""
    family = _family(config)
    _refuse_unusual(config)
    values = _Values({**family.defaults, **config})
    hidden_size, num_heads = values.size("hidden_size"), values.size("num_attention_heads")
    architecture = Architecture(
        family=family.name,
        hidden_size=hidden_size,
        intermediate_size=values.size("intermediate_size"),
        num_hidden_layers=values.size("num_hidden_layers", at_most=_MAX_LAYERS),
        num_attention_heads=num_heads,
        num_key_value_heads=values.size("num_key_value_heads", num_heads),
        head_dim=values.size("head_dim", hidden_size // num_heads),
        vocab_size=values.size("vocab_size"),
        rms_norm_eps=values.number("rms_norm_eps", 1e-6),
        rope_theta=_rope(config).number("rope_theta", values.number("rope_theta", _DEFAULT_ROPE_THETA)),
        max_position_embeddings=values.size("max_position_embeddings"),
        tie_word_embeddings=values.flag("tie_word_embeddings"),
        attention_bias=family.has_qkv_bias,
        qk_norm=family.qk_norm,
        rope_scaling=_rope_scaling(config, values),
        sliding_window=_sliding_window(family, values),
    )
    _check_heads(architecture)
    return architecture


class _Values:
    """Typed access to a JSON object, in which null means "not set"; bad values are a `NotACheckpointError`."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document

    def size(self, key: str, default: int | None = None, *, at_most: int = _MAX_SIZE) -> int:
        value = default if self.get(key) is None else self.get(key)
        if type(value) is not int or not 1 <= value <= at_most:
            raise NotACheckpointError(f"config.json: {key} is {value!r:.80}, not a number of 1 to {at_most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = default if self.get(key) is None else self.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= _MAX_NUMBER:
            raise NotACheckpointError(f"config.json: {key} is {value!r:.80}, a positive number is expected")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if value is not None and type(value) is not bool:
            raise NotACheckpointError(f"config.json: {key} is {value!r:.80}, true or false is expected")
        return bool(value)

    def get(self, key: str) -> Any:
        return self._document.get(key)


def _family(config: Mapping[str, Any]) -> Family:
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UnknownArchitectureError(f"config.json: model_type is {model_type!r:.80}")
    classes = config.get("architectures") or [family.model_class]
    if classes != [family.model_class]:
        raise UnknownArchitectureError(f"config.json: architectures is {classes!r:.80}, not {family.model_class}")
    return family


def _refuse_unusual(config: Mapping[str, Any]) -> None:
    for key, usual in _AS_USUAL.items():
        if config.get(key) not in usual:
            raise UnsupportedConfigError(f"config.json: {key} is {config[key]!r:.80}, which the engine does not run")


def _rope(config: Mapping[str, Any]) -> _Values:
    """The RoPE options: `rope_parameters` since transformers 5, `rope_scaling` before."""
    options = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(options, Mapping) or any(isinstance(value, Mapping) for value in options.values()):
        raise UnsupportedConfigError("config.json: RoPE options that differ by layer are not supported")
    if options.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise UnsupportedConfigError("config.json: partial_rotary_factor is not supported")
    return _Values(options)


def _rope_scaling(config: Mapping[str, Any], values: _Values) -> RopeScaling | None:
    rope = _rope(config)
    rope_type = rope.get("rope_type") or rope.get("type") or "default"
    if rope_type == "default":
        return None
    if rope_type == "linear":
        return RopeScaling(rope_type="linear", factor=rope.number("factor"))
    if rope_type != "llama3":
        raise UnsupportedConfigError(f"config.json: rope_type is {rope_type!r:.80}, not default, linear or llama3")
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise NotACheckpointError(f"config.json: high_freq_factor {high} is not above low_freq_factor {low}")
    return RopeScaling(
        rope_type="llama3",
        factor=rope.number("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=rope.size(
            "original_max_position_embeddings", values.size("max_position_embeddings")
        ),
    )


def _sliding_window(family: Family, values: _Values) -> int | None:
    """The window of all layers, None if each sees everything; raises if layers differ."""
    is_on = family.window_switch is not None and (family.window_switch == "" or values.flag(family.window_switch))
    if not is_on or values.get("sliding_window") is None:
        return None
    if family.window_switch and _is_window_partial(values):
        raise UnsupportedConfigError("config.json: a sliding window on some layers only is not supported")
    return values.size("sliding_window")


def _is_window_partial(values: _Values) -> bool:
    layer_types = values.get("layer_types")
    if layer_types is None:
        return bool(values.get("max_window_layers") != 0)
    return not isinstance(layer_types, list) or any(kind != "sliding_attention" for kind in layer_types)


def _check_heads(architecture: Architecture) -> None:
    if architecture.num_attention_heads % architecture.num_key_value_heads:
        raise NotACheckpointError("config.json: num_attention_heads is no multiple of num_key_value_heads")
    if architecture.head_dim % 2:
        raise NotACheckpointError(f"config.json: head_dim is {architecture.head_dim}, RoPE needs an even one")
