"""Every option of PEFT that the engine follows, alone and beside peft: in float32, and in 8 bits as adapters lie."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: ./dev parity installs and runs this suite")

from engine.artifact import read_base
from engine.backends import Segment
from engine.backends.reference import ReferenceBackend
from engine.backends.weights import AdapterWeights
from engine.convert import convert_adapter, convert_base
from tests.parity.random_models import RECIPES, load, logits, make_adapter, make_checkpoint

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:::transformers"),
    pytest.mark.filterwarnings("ignore:::peft"),
]

TOLERANCE = 1e-3
EIGHT_BITS = 0.02
RECIPE = next(recipe for recipe in RECIPES if recipe.name == "llama-linear")
PLAIN = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"]}
OPTIONS = {
    "nothing else": {},
    "all modules": {"target_modules": "all-linear"},
    "modules of a pattern": {"target_modules": r".*\.1\.(mlp|self_attn)\.(up|k)_proj"},
    "all modules but some": {"target_modules": "all-linear", "exclude_modules": ["o_proj", "gate_proj"]},
    "ranks by pattern": {"rank_pattern": {"v_proj": 1, r"layers\.1\.mlp\.down_proj": 19}},
    "alphas by pattern": {"alpha_pattern": {"q_proj": 1, "model.layers.0.mlp.down_proj": 24}},
    "rank-stabilised": {"use_rslora": True},
    "rank-stabilised, ranks by pattern": {"use_rslora": True, "rank_pattern": {"q_proj": 9}},
    "some layers": {"layers_to_transform": [1]},
    "one layer": {"layers_to_transform": 0, "layers_pattern": "layers"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with a checkpoint and its base in float32 and in 4 bits."""
    folder = tmp_path_factory.mktemp("lora")
    make_checkpoint(RECIPE, folder / "checkpoint")
    for weights in ("float32", "int4"):
        convert_base(folder / "checkpoint", folder / weights, weights=weights)
    return folder


@pytest.fixture(params=OPTIONS)
def adapter(request, models, tmp_path):
    """A PEFT directory with one option more than the plain ones."""
    recipe = replace(RECIPE, lora={**PLAIN, **OPTIONS[request.param]})
    make_adapter(recipe, models / "checkpoint", tmp_path / "adapter")
    return tmp_path / "adapter"


def test_logits_agree(models, adapter, tmp_path) -> None:
    convert_adapter(adapter, models / "float32", tmp_path / "bundle")
    backend = ReferenceBackend(models / "float32")
    backend.load_adapter("x", tmp_path / "bundle")
    token_ids = np.random.default_rng(5).integers(3, 300, 30, dtype=np.int32)
    (ours,) = backend.step([Segment(backend.new_state(30), token_ids, "x", tuple(range(30)))])
    expected = logits(load(models / "checkpoint", adapter), token_ids)
    assert np.abs(ours - expected).max() < TOLERANCE
    assert np.abs(expected - logits(load(models / "checkpoint"), token_ids)).max() > 0.1


def test_what_8_bits_add_to_each_weight_agrees(models, adapter, tmp_path) -> None:
    convert_adapter(adapter, models / "int4", tmp_path / "bundle")
    modules = AdapterWeights.open(tmp_path / "bundle", read_base(models / "int4")[0]).modules
    expected = deltas(load(models / "checkpoint", adapter))
    assert set(modules) == set(expected)
    for module, lora in modules.items():
        a, b = lora.dense()
        assert np.linalg.norm(b @ a - expected[module]) < EIGHT_BITS * np.linalg.norm(expected[module])


def deltas(model) -> dict[str, np.ndarray]:
    """What peft adds to the weight of each module that the adapter changes."""
    changed = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach().numpy()
        for name, module in changed.items()
    }
