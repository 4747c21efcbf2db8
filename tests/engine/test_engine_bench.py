"""Both benchmarks as they are called, on models that are small enough to say nothing about speed."""

import argparse
import json
import re

import pytest

from engine.bench.__main__ import main
from engine.bench.arguments import count, counts, positive
from tests.engine.golden_cases import GOLDEN_CASES


def test_a_bundle_of_ones_own(capsys, tmp_path):
    base, adapter = next(case for case in GOLDEN_CASES if case.name == "qwen3").convert(tmp_path)
    sizes = ["--prompt-tokens", "9", "--answer-tokens", "3", "--rounds", "2"]
    main(["bundle", str(base), "--adapter", str(adapter), *sizes, "--config", '{"num_threads": 1}'])
    *table, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert [line.split()[0] for line in table] == ["model", "base", "adapter"]
    assert [speed["model"] for speed in report["speeds"]] == ["base", "adapter"]
    assert all(value > 0 for speed in report["speeds"] for name, value in speed.items() if name != "model")
    assert report["memory"]["pss_bytes"] > report["memory"]["reserved"]["adapters"] > 0


def test_an_answer_of_one_token_has_no_decode_to_measure(capsys):
    with pytest.raises(SystemExit):
        main(["bundle", "bundle", "--answer-tokens", "1"])
    assert "at least 2" in capsys.readouterr().err


def test_a_bad_bundle_is_named_without_a_traceback(tmp_path):
    (tmp_path / "manifest.json").write_text('{"kind": "base", "format": 1}')
    with pytest.raises(SystemExit, match="bad_bundle: bad manifest"):
        main(["bundle", str(tmp_path)])


def test_the_engine_against_its_peers(capsys, tmp_path):
    sizes = ["--rows", "1,3", "--context", "40", "--prefill", "150", "--rounds", "2", "--budget-s", "0.001"]
    places = ["--cache", str(tmp_path / "cache"), "--json", str(tmp_path / "report.json")]
    main(["--shape", "tiny", "--only", "onnxruntime,onnxruntime+lora", "--num-threads", "1", *sizes, *places])
    *_, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    (shape,) = report["shapes"]
    assert [contestant["failure"] for contestant in shape["contestants"]] == [None, None]
    assert all(contestant["serving"]["context 40"]["pss_bytes"] > 0 for contestant in shape["contestants"])
    figures = {(r["contestant"], r["context"], r["rows"]): r for r in shape["results"]}
    assert len(figures) == 6
    assert all(len(figure["step_s"]) == 2 and figure["tokens_per_s"]["median"] > 0 for figure in figures.values())
    assert figures["onnxruntime", 40, 3]["ratio_to_best_peer"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--shape", "7b"], "'7b' is none of tiny, 0.5b"),
        (["--only", "socle,vllm"], "'vllm' is none of socle"),
        (["--rows", "0"], "at least 1"),
        (["--rows", "two"], "at least 1"),
        (["--context", "4090", "--rows", "8"], "limited to 4096"),
        (["--prefill", "5000"], "limited to 4096"),
    ],
)
def test_bad_arguments_are_named(capsys, arguments, text):
    with pytest.raises(SystemExit):
        main(arguments)
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("parse", "text"),
    [(count, "0"), (count, "-1"), (count, "²"), (positive, "0"), (positive, "nan"), (positive, "inf"), (counts, "1,x")],
)
def test_words_that_are_refused(parse, text):
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(text.split(",")[-1]))):
        parse(text)
