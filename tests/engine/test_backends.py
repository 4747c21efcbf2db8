"""Which back end runs: the configured one, or the fastest that is installed."""

import importlib.util
import logging

import pytest

from engine.backends import open_backend
from engine.config import EngineConfig
from engine.errors import UnsupportedInputError
from tests.engine.random_bundles import make_base

NEEDS_CORE = pytest.mark.skipif(
    not importlib.util.find_spec("socle_native"), reason="the native core is not built here"
)


@pytest.mark.parametrize(
    ("installed", "name", "why"),
    [
        pytest.param({"socle_native", "onnxruntime"}, "native", "the native core is built", marks=NEEDS_CORE),
        ({"onnxruntime"}, "onnx", "the native core is not built, install a C++ compiler and run ./dev setup for"),
        (set(), "reference", "neither the native core nor ONNX Runtime is installed, answers will be slow"),
    ],
)
def test_auto_says_which_back_end_it_takes(tmp_path, monkeypatch, caplog, installed, name, why):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: module if module in installed else None)
    make_base(tmp_path / "base")
    with caplog.at_level(logging.INFO):
        backend = open_backend(tmp_path / "base", EngineConfig(num_threads=1))
    assert backend.name == name
    (record,) = caplog.records
    assert record.getMessage().startswith(f"backend_chosen backend={name} reason='{why}")


def test_a_core_that_is_not_built_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _module: None)
    with pytest.raises(UnsupportedInputError, match=r"install a C\+\+ compiler and run ./dev setup"):
        open_backend(tmp_path, EngineConfig(backend="native"))
