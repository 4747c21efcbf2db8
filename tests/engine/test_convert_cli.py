from __future__ import annotations

import re
import subprocess
import sys

import pytest

from engine.artifact import read_adapter, read_base
from engine.convert.__main__ import main
from tests.engine.golden_cases import GOLDEN_CASES

CASE = next(case for case in GOLDEN_CASES if case.name == "llama-linear")


def test_converts_base_and_adapter_and_prints_digests(tmp_path, capsys) -> None:
    base, adapter = str(tmp_path / "base"), str(tmp_path / "adapter")
    assert main(["base", str(CASE.checkpoint), base]) == 0
    assert capsys.readouterr().out.strip() == read_base(tmp_path / "base")[1]
    assert main(["adapter", str(CASE.adapter), adapter, "--base", base]) == 0
    output = capsys.readouterr()
    assert output.out.strip() == read_adapter(tmp_path / "adapter")[1]
    assert "100%" in output.err


def test_float32_is_a_choice(tmp_path) -> None:
    assert main(["base", str(CASE.checkpoint), str(tmp_path / "base"), "--weights", "float32"]) == 0
    assert read_base(tmp_path / "base")[0].weights == "float32"


def test_error_has_code_message_and_hint(tmp_path, capsys) -> None:
    assert main(["base", str(tmp_path), str(tmp_path / "base")]) == 1
    error = capsys.readouterr().err
    assert re.search(r"^error \[not_a_checkpoint\]: config\.json is missing$", error, re.MULTILINE)
    assert re.search(r"^hint: Give the directory", error, re.MULTILINE)


@pytest.mark.parametrize(("place", "code"), [("source", "bad_bundle"), ("exists", "exists")])
def test_other_errors_are_for_people_too(tmp_path, capsys, place, code) -> None:
    (tmp_path / "exists").mkdir()
    main(["base", str(CASE.checkpoint), str(tmp_path / "base")])
    base = {"source": CASE.checkpoint, "exists": tmp_path / "base"}[place]
    assert main(["adapter", str(CASE.adapter), str(tmp_path / "exists"), "--base", str(base)]) == 1
    assert f"error [{code}]: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["base"], ["adapter", "a", "b"], ["base", "a", "b", "--weights", "int3"]], ids=str
)
def test_bad_arguments_exit_with_two(arguments, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_help_shows_examples() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "engine.convert", "--help"], capture_output=True, text=True, check=True
    )
    assert "python -m engine.convert adapter" in done.stdout
