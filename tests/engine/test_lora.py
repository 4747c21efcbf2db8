from __future__ import annotations

import numpy as np
import pytest

from engine.artifact import ADAPTER_WEIGHTS, read_base
from engine.backends.weights import AdapterWeights
from engine.lora import LoraMatrices, are_finite, lora_specs
from engine.tensor_file import TensorFile
from tests.engine.random_bundles import QWEN3, make_adapter, make_base

MATRICES_OF_A_LAYER = [
    *("q_proj.lora_A", "k_proj.lora_A", "v_proj.lora_A", "q_proj.lora_B", "k_proj.lora_B", "v_proj.lora_B"),
    *("o_proj.lora_A", "o_proj.lora_B"),
    *("gate_proj.lora_A", "up_proj.lora_A", "gate_proj.lora_B", "up_proj.lora_B"),
    *("down_proj.lora_A", "down_proj.lora_B"),
]


@pytest.fixture(params=["int4", "float32"])
def base(request, tmp_path):
    make_base(tmp_path / "base", QWEN3, request.param)
    return tmp_path / "base"


def matrices(a, b) -> LoraMatrices:
    """Matrices with this number everywhere."""
    filled = np.full((2, 3), a, np.float32), np.full((5, 2), b, np.float32)
    return LoraMatrices(*filled, rank=2, rows=5, inputs=3, bits=32)


def test_a_step_reads_the_file_forward_and_every_matrix_is_aligned(base, tmp_path) -> None:
    make_adapter(tmp_path / "adapter", base, rank=5)
    file = TensorFile(tmp_path / "adapter" / ADAPTER_WEIGHTS)
    assert [name.partition("layers.")[2] for name in file] == [
        f"{layer}.{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}"
        for layer in range(QWEN3.num_hidden_layers)
        for name in MATRICES_OF_A_LAYER
    ]
    starts = [file.view(name).__array_interface__["data"][0] for name in file]
    assert starts == sorted(starts)
    assert {start % 64 for start in starts} == {0}


def test_modules_without_a_rank_have_no_tensors(base) -> None:
    ranks = {"model.layers.1.mlp.up_proj": 3, "model.layers.0.self_attn.v_proj": 17}
    specs = lora_specs(read_base(base)[0], ranks)
    assert [spec.name.partition("layers.")[2] for spec in specs] == [
        *("0.self_attn.v_proj.lora_A", "0.self_attn.v_proj.lora_B"),
        *("1.mlp.up_proj.lora_A", "1.mlp.up_proj.lora_B"),
    ]


def test_blocks_have_the_shapes_that_the_core_reads(tmp_path) -> None:
    make_base(tmp_path / "base", QWEN3, "int4")
    specs = lora_specs(read_base(tmp_path / "base")[0], {"model.layers.0.mlp.down_proj": 17})
    assert [(spec.dtype, spec.shape) for spec in specs] == [("U8", (2, 1, 2112)), ("U8", (4, 5 * 64 + 32))]


def test_dense_matrices_are_copies(base, tmp_path) -> None:
    make_adapter(tmp_path / "adapter", base, rank=5)
    modules = AdapterWeights.open(tmp_path / "adapter", read_base(base)[0]).modules
    for lora in modules.values():
        a, b = lora.dense()
        assert (a.shape, b.shape) == ((5, lora.inputs), (lora.rows, 5))
        a[:], b[:] = 0, 0  # of the file this would be refused
        assert not lora.is_zero


@pytest.mark.parametrize(("a", "b", "is_zero"), [(1, 1, False), (0, 1, True), (1, 0, True)])
def test_a_product_is_zero_if_either_matrix_is(a, b, is_zero) -> None:
    assert matrices(a, b).is_zero is is_zero


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_bad_number_is_found_among_all(bad) -> None:
    assert are_finite([matrices(1, 1), matrices(0, 0)])
    assert not are_finite([matrices(1, 1), matrices(bad, 1), matrices(1, 1)])
    assert not are_finite([matrices(1, bad)])
