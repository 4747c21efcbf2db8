import json

import pytest

from engine.bench.__main__ import main
from tests.engine.golden_cases import GOLDEN_CASES


def test_the_last_line_is_a_report(capsys, tmp_path):
    base, adapter = next(case for case in GOLDEN_CASES if case.name == "qwen3").convert(tmp_path)
    sizes = ["--prompt-tokens", "9", "--answer-tokens", "3", "--rounds", "2"]
    main([str(base), "--adapter", str(adapter), *sizes, "--config", '{"num_threads": 1}'])
    *table, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert [line.split()[0] for line in table] == ["model", "base", "adapter"]
    assert [speed["model"] for speed in report["speeds"]] == ["base", "adapter"]
    assert all(value > 0 for speed in report["speeds"] for name, value in speed.items() if name != "model")
    assert report["memory"]["pss_bytes"] > report["memory"]["adapter_bytes"] > 0


def test_an_answer_of_one_token_has_no_decode_to_measure(capsys):
    with pytest.raises(SystemExit):
        main(["bundle", "--answer-tokens", "1"])
    assert "at least 2" in capsys.readouterr().err
