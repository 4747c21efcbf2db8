from __future__ import annotations

import contextlib

import pytest

from engine.artifact import RopeScaling
from engine.convert.errors import ConversionError, NotACheckpointError, UnknownArchitectureError, UnsupportedConfigError
from engine.convert.families import architecture_of

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "rms_norm_eps": 1e-06,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
    "rope_theta": 1000000,
    "rope_scaling": None,
    "sliding_window": None,
    "use_sliding_window": False,
    "max_window_layers": 28,
    "attention_bias": False,
}
QWEN2 = {
    **QWEN3,
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "head_dim": None,
    "sliding_window": 32768,
}
MISTRAL = {
    **{key: value for key, value in QWEN3.items() if "window" not in key},
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
}
LLAMA = {**MISTRAL, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_qwen3() -> None:
    architecture = architecture_of(QWEN3)
    assert architecture.family == "qwen3"
    assert (architecture.qk_norm, architecture.attention_bias, architecture.sliding_window) == (True, False, None)
    assert (architecture.rope_theta, architecture.rope_scaling) == (1e6, None)


def test_qwen2_has_biases_and_derives_its_heads() -> None:
    architecture = architecture_of(QWEN2)
    assert (architecture.head_dim, architecture.attention_bias, architecture.qk_norm) == (64, True, False)
    assert architecture.sliding_window is None


@pytest.mark.parametrize(
    ("config", "window"),
    [
        (MISTRAL, 4096),
        ({**MISTRAL, "sliding_window": None}, None),
        ({**MISTRAL, "sliding_window": 100}, 100),
        ({**LLAMA, "sliding_window": 100}, None),
        ({**QWEN2, "use_sliding_window": True, "max_window_layers": 0}, 32768),
        ({**QWEN2, "use_sliding_window": True, "layer_types": ["sliding_attention"] * 28}, 32768),
        ({**QWEN2, "use_sliding_window": True, "max_window_layers": 0, "sliding_window": None}, None),
    ],
    ids=str,
)
def test_sliding_window_is_on_where_the_family_has_it_on(config, window) -> None:
    assert architecture_of(config).sliding_window == window


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 500000.0, "rope_scaling": LLAMA3},
        {"rope_theta": None, "rope_scaling": None, "rope_parameters": {**LLAMA3, "rope_theta": 500000.0}},
        {"rope_theta": 7.0, "rope_scaling": None, "rope_parameters": {**LLAMA3, "rope_theta": 500000.0}},
    ],
    ids=["transformers 4", "transformers 5", "both"],
)
def test_rope_options_in_either_form(rope) -> None:
    architecture = architecture_of({**LLAMA, **rope})
    assert architecture.rope_theta == 500000.0
    assert architecture.rope_scaling == RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)


def test_linear_rope_in_its_oldest_form() -> None:
    scaling = architecture_of({**LLAMA, "rope_scaling": {"type": "linear", "factor": 2}}).rope_scaling
    assert scaling == RopeScaling("linear", 2.0)


def test_missing_keys_have_the_familys_defaults() -> None:
    def without(config, *keys):
        return {key: value for key, value in config.items() if key not in keys}

    assert architecture_of(without(LLAMA, "num_key_value_heads", "rope_theta")).num_key_value_heads == 16
    assert architecture_of(without(LLAMA, "rope_theta", "rope_scaling")).rope_theta == 10000.0
    assert architecture_of(without(MISTRAL, "num_key_value_heads")).num_key_value_heads == 8
    assert architecture_of(without({**QWEN3, "hidden_size": 512}, "head_dim")).head_dim == 128
    assert architecture_of(without(LLAMA, "head_dim", "architectures")).head_dim == 64


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model_type": "gpt2"}, UnknownArchitectureError, "'gpt2'"),
        ({"model_type": None}, UnknownArchitectureError, "None"),
        ({"model_type": ["qwen3"]}, UnknownArchitectureError, "model_type"),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, UnknownArchitectureError, "ForSequenceClassification"),
        ({"architectures": "Qwen3ForCausalLM"}, UnknownArchitectureError, "architectures"),
        ({"hidden_act": "gelu"}, UnsupportedConfigError, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, UnsupportedConfigError, "attention_bias"),
        ({"mlp_bias": True}, UnsupportedConfigError, "mlp_bias"),
        ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedConfigError, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, UnsupportedConfigError, "partial_rotary_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, UnsupportedConfigError, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, UnsupportedConfigError, "yarn"),
        ({"rope_scaling": {"rope_type": ["linear"]}}, UnsupportedConfigError, "rope_type"),
        ({"rope_scaling": {"rope_type": "linear"}}, NotACheckpointError, "factor"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, NotACheckpointError, "high_freq_factor"),
        ({"rope_scaling": [1]}, UnsupportedConfigError, "RoPE"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, UnsupportedConfigError, "by layer"),
        ({"use_sliding_window": True, "sliding_window": 8}, UnsupportedConfigError, "some layers only"),
        ({"use_sliding_window": 1, "sliding_window": 8}, NotACheckpointError, "use_sliding_window"),
        ({"use_sliding_window": True, "sliding_window": 8, "layer_types": 3}, UnsupportedConfigError, "some layers"),
        ({"hidden_size": 0}, NotACheckpointError, "hidden_size is 0"),
        ({"hidden_size": "1024"}, NotACheckpointError, "hidden_size"),
        ({"hidden_size": 10**30}, NotACheckpointError, "hidden_size"),
        ({"hidden_size": None}, NotACheckpointError, "hidden_size is None"),
        ({"num_hidden_layers": 10**6}, NotACheckpointError, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, NotACheckpointError, "multiple"),
        ({"head_dim": 65}, NotACheckpointError, "even"),
        ({"rms_norm_eps": -1}, NotACheckpointError, "rms_norm_eps"),
        ({"rms_norm_eps": True}, NotACheckpointError, "rms_norm_eps"),
        ({"rope_theta": 1e999}, NotACheckpointError, "rope_theta"),
        ({"rope_theta": 10**400}, NotACheckpointError, "rope_theta"),
        ({"tie_word_embeddings": "yes"}, NotACheckpointError, "tie_word_embeddings"),
    ],
    ids=str,
)
def test_what_is_not_supported_is_refused_by_name(change, error, words) -> None:
    with pytest.raises(error, match=words):
        architecture_of({**QWEN3, **change})


@pytest.mark.parametrize("value", [None, True, -1, 0, 1.5, "x", [], {}, [1], {"a": {}}, 1e300], ids=str)
@pytest.mark.parametrize("key", QWEN3)
def test_no_value_of_any_key_crashes(key, value) -> None:
    with contextlib.suppress(ConversionError):
        architecture_of({**QWEN3, key: value})
