"""The peers run the very weights that we run. Only where they are installed: see `./dev bench engine --peers`."""

import json

import pytest

from engine.bench.__main__ import main


@pytest.mark.parametrize(("name", "modules"), [("llama.cpp", ["llama_cpp", "gguf"]), ("openvino", ["openvino"])])
@pytest.mark.parametrize("shape", ["tiny"])
def test_a_peer_computes_the_same_model(capsys, tmp_path, name, modules, shape):
    for module in modules:
        pytest.importorskip(module)
    sizes = ["--rows", "1,4", "--context", "40", "--prefill", "70", "--rounds", "1", "--budget-s", "0.001"]
    main(["--shape", shape, "--only", f"onnxruntime,{name}", "--cache", str(tmp_path), "--no-memory", *sizes])
    (shape_report,) = json.loads(capsys.readouterr().out.splitlines()[-1])["shapes"]
    peer = shape_report["contestants"][1]
    assert peer["failure"] is None
    assert peer["agreement"] > 0.99
