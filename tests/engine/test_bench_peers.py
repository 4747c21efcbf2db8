"""The peers run the very weights that we run. Only where they are installed: see `./dev bench engine --peers`."""

import json

import pytest

from engine.bench.__main__ import main
from engine.bench.contestants import REGISTRY


@pytest.mark.parametrize("name", ["llama.cpp", "openvino"])
def test_a_peer_computes_the_same_model(capsys, tmp_path, name):
    if missing := REGISTRY[name].missing():
        pytest.skip(missing)
    sizes = ["--rows", "1,4", "--context", "40", "--prefill", "70", "--rounds", "1", "--budget-s", "0.001"]
    main(["--shape", "tiny", "--only", f"onnxruntime,{name}", "--cache", str(tmp_path), "--no-memory", *sizes])
    (shape,) = json.loads(capsys.readouterr().out.splitlines()[-1])["shapes"]
    peer = shape["contestants"][1]
    assert peer["failure"] is None
    assert peer["agreement"] > 0.99
