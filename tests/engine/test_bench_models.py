from pathlib import Path

import numpy as np
import pytest

from engine.artifact import read_adapter, read_base, verify_files
from engine.backends.weights import AdapterWeights, BaseWeights
from engine.bench.models import LORA_RANK, WEIGHT_STD, ModelFolder, ensure_model, fingerprint
from engine.bench.shapes import SHAPES, quick
from engine.parameters import EMBEDDING, linear_modules, vectors

TINY = SHAPES["tiny"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = ModelFolder(tmp_path_factory.mktemp("models"))
    ensure_model(folder, TINY)
    return folder


def test_the_base_is_a_whole_bundle_with_weights_of_the_announced_spread(folder):
    manifest, _ = read_base(folder.base)
    verify_files(folder.base, manifest)
    weights = BaseWeights.open(folder.base)
    for module in (EMBEDDING, "model.layers.1.mlp.down_proj"):
        dense = weights.matrix(module).dense()
        assert dense.std() == pytest.approx(WEIGHT_STD, rel=0.1)
        assert abs(dense.mean()) < 0.1 * WEIGHT_STD
    assert all((weights.vector(name) == 1).all() for name in vectors(TINY) if name.endswith("norm.weight"))


def test_matrices_differ_and_their_lanes_do_too(folder):
    weights = BaseWeights.open(folder.base)
    first, second = (weights.matrix(f"model.layers.{layer}.mlp.up_proj").dense() for layer in (0, 1))
    assert not np.array_equal(first, second)
    assert len(np.unique(first, axis=0)) == len(first)


def test_the_adapter_fits_and_changes_everything(folder):
    manifest, digest = read_base(folder.base)
    adapter, _ = read_adapter(folder.adapter)
    assert adapter.base.digest == digest
    modules = AdapterWeights.open(folder.adapter, manifest).modules
    assert set(modules) == set(linear_modules(TINY))
    for lora in modules.values():
        assert lora.rank == LORA_RANK
        assert all(matrix.std() == pytest.approx(WEIGHT_STD, rel=0.1) for matrix in lora.dense())


def test_the_same_model_is_made_again(folder, tmp_path):
    again = ModelFolder(tmp_path)
    ensure_model(again, TINY)
    assert read_base(again.base)[1] == read_base(folder.base)[1]


def test_the_fingerprint_tells_architectures_apart():
    assert fingerprint(TINY) == fingerprint(SHAPES["tiny"]) != fingerprint(quick(SHAPES["0.5b"]))


def test_what_is_there_is_kept(folder):
    before = Path(folder.base / "manifest.json").stat().st_mtime_ns
    ensure_model(folder, TINY)
    assert Path(folder.base / "manifest.json").stat().st_mtime_ns == before
