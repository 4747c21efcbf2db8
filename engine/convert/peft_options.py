"""What a PEFT `adapter_config.json` means: rank and scale of each module, and which modules it targets.

Every option that changes the result is either followed or refused by name; an option that this file does not know is
refused too, since it may have an effect. Knows nothing of tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from typing import Any, Final

from engine.convert.errors import NotAnAdapterError, UnsupportedPeftOptionError

# Options without effect on the result of a trained adapter: any value will do.
_WITHOUT_EFFECT: Final = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ephemeral_gpu_offload",
        "eva_config",
        "inference_mode",
        "lora_dropout",
        "lora_ga_config",
        "loftq_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
    }
)
_FOLLOWED: Final = frozenset(
    {
        "peft_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
    }
)
# Options that are not run: the values that switch them off. Initialisations that change the base's weights are among
# them, since such an adapter is wrong on the base that everybody else shares.
_SWITCHED_OFF: Final[Mapping[str, tuple[object, ...]]] = {
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    "task_type": ("CAUSAL_LM", None),
}
_OFF: Final[tuple[object, ...]] = (None, False, [], {})
_MAX_RANK: Final = 1024
_ALL_LINEAR: Final = "all-linear"


class PeftOptions:
    """The options of one adapter, checked."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Raise `NotAnAdapterError` or `UnsupportedPeftOptionError` for what cannot be run."""
        _check_known(config)
        self._rank = _count(config, "r", 8)
        self._alpha = _number("lora_alpha", config.get("lora_alpha", 8))
        self._is_rank_stabilised = _flag(config, "use_rslora")
        self._ranks, self._alphas = _patterns(config, "rank_pattern"), _patterns(config, "alpha_pattern")
        self._target, self._exclude = _target(config, "target_modules"), _target(config, "exclude_modules")
        self._layers = _layers(config)
        if self._target is None:
            raise NotAnAdapterError("adapter_config.json: target_modules is missing")

    def rank(self, module: str) -> int:
        """The rank that a module's matrices must have."""
        return int(_by_pattern(self._ranks, module, self._rank))

    def scale(self, module: str) -> float:
        """What B A is multiplied by: alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA."""
        rank = self.rank(module)
        return _by_pattern(self._alphas, module, self._alpha) / (math.sqrt(rank) if self._is_rank_stabilised else rank)

    def targets(self, module: str) -> bool:
        """Whether the adapter changes this linear layer, by PEFT's rules."""
        if self._exclude is not None and _matches(self._exclude, module):
            return False
        if self._target is None or not _matches(self._target, module):
            return False
        layer = re.search(r"\.layers\.(\d+)\.", module)
        return self._layers is None or (layer is not None and int(layer[1]) in self._layers)


def _check_known(config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        kind = config.get("peft_type")
        error = UnsupportedPeftOptionError if isinstance(kind, str) else NotAnAdapterError
        raise error(f"adapter_config.json: peft_type is {kind!r:.80}; LORA is supported")
    for key, value in config.items():
        if key not in _FOLLOWED | _WITHOUT_EFFECT and value not in _SWITCHED_OFF.get(key, _OFF):
            raise UnsupportedPeftOptionError(
                f"adapter_config.json: {key} is {value!r:.80}, which the engine does not run"
            )
    if config.get("layers_pattern") not in (None, "", [], "layers", ["layers"]):
        raise UnsupportedPeftOptionError(f"adapter_config.json: layers_pattern is {config['layers_pattern']!r:.80}")


def _count(config: Mapping[str, Any], key: str, default: int) -> int:
    value = config.get(key, default)
    if type(value) is not int or not 1 <= value <= _MAX_RANK:
        raise NotAnAdapterError(f"adapter_config.json: {key} is {value!r:.80}, not a number of 1 to {_MAX_RANK}")
    return value


def _flag(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key)
    if value is not None and type(value) is not bool:
        raise NotAnAdapterError(f"adapter_config.json: {key} is {value!r:.80}, true or false is expected")
    return bool(value)


def _number(key: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e6:
        raise NotAnAdapterError(f"adapter_config.json: {key} is {value!r:.80}, a number is expected")
    return float(value)


def _patterns(config: Mapping[str, Any], key: str) -> list[tuple[re.Pattern[str], float]]:
    """Pattern and value, in order; PEFT matches a pattern against the end of a module's path."""
    table = config.get(key) or {}
    if not isinstance(table, dict):
        raise NotAnAdapterError(f"adapter_config.json: {key} is {table!r:.80}, an object is expected")
    if key == "rank_pattern":
        table = {pattern: _count(table, pattern, 0) for pattern in table}
    return [(_regex(key, rf"(.*\.)?({pattern})$"), _number(key, value)) for pattern, value in table.items()]


def _by_pattern(table: list[tuple[re.Pattern[str], float]], module: str, default: float) -> float:
    return next((value for pattern, value in table if pattern.match(module)), default)


def _target(config: Mapping[str, Any], key: str) -> re.Pattern[str] | Collection[str] | None:
    """A list names modules by the end of their path, a text is a regular expression for all of it."""
    value = config.get(key)
    if value is None or value == []:
        return None
    if value == _ALL_LINEAR:
        return re.compile(".*")
    if isinstance(value, str):
        return _regex(key, value)
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return frozenset(value)
    raise NotAnAdapterError(f"adapter_config.json: {key} is {value!r:.80}, a list of names is expected")


def _matches(target: re.Pattern[str] | Collection[str], module: str) -> bool:
    if isinstance(target, re.Pattern):
        return target.fullmatch(module) is not None
    return any(module == name or module.endswith(f".{name}") for name in target)


def _layers(config: Mapping[str, Any]) -> frozenset[int] | None:
    value = config.get("layers_to_transform")
    layers = [value] if type(value) is int else value
    if layers is None or layers == []:
        return None
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise NotAnAdapterError(f"adapter_config.json: layers_to_transform is {value!r:.80}, not layer numbers")
    return frozenset(layers)


def _regex(key: str, pattern: str) -> re.Pattern[str]:
    """Compile a pattern from the file; repeated groups and many repetitions are refused, they could run for ever."""
    repetitions = len(re.findall(r"[*+{]", pattern))
    if len(pattern) > 1000 or repetitions > 5 or re.search(r"\)\s*[*+{]", pattern):
        raise UnsupportedPeftOptionError(f"adapter_config.json: {key} is too complex a pattern: {pattern!r:.80}")
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise NotAnAdapterError(f"adapter_config.json: {key} holds a bad pattern: {pattern!r:.80}") from error
