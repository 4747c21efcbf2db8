import pytest

from engine.config import EngineConfig
from engine.errors import InvalidInputError


def test_a_mapping_gives_the_same_as_keywords():
    document = {"backend": "onnx", "max_context_tokens": 512, "verify_files": True}
    assert EngineConfig.from_mapping(document) == EngineConfig(
        backend="onnx", max_context_tokens=512, verify_files=True
    )
    assert EngineConfig.from_mapping({}) == EngineConfig()


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"max_context": 512}, "max_context"),
        ({"backend": "cuda"}, "backend"),
        ({"max_context_tokens": "512"}, "max_context_tokens"),
        ({"max_context_tokens": 0}, "max_context_tokens"),
        ({"max_running": True}, "max_running"),
        ({"num_threads": -1}, "num_threads"),
        ({"kv_budget_bytes": 1.5}, "kv_budget_bytes"),
        ({"onnx_accuracy_level": 3}, "onnx_accuracy_level"),
    ],
)
def test_unknown_keys_and_bad_values_are_refused_by_name(document, named):
    with pytest.raises(InvalidInputError, match=named):
        EngineConfig.from_mapping(document)


@pytest.mark.parametrize(
    "values",
    [
        {"backend": "cuda"},
        {"prefill_chunk_tokens": 0},
        {"max_running": True},
        {"kv_budget_bytes": 1.5},
        {"onnx_accuracy_level": 3},
    ],
)
def test_keywords_are_checked_as_well(values):
    with pytest.raises(InvalidInputError, match=next(iter(values))):
        EngineConfig(**values)
