import re

import pytest

from engine.__main__ import main
from engine.runtime import Engine
from engine.sampling import GREEDY
from tests.engine.golden_cases import GOLDEN_CASES

CONFIG = '{"backend": "onnx", "num_threads": 1}'


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    (case,) = (case for case in GOLDEN_CASES if case.name == "qwen3")
    return case.convert(tmp_path_factory.mktemp("cli"))


def generate(capsys, *arguments):
    status = main(["generate", *map(str, arguments), "--config", CONFIG, "--max-tokens", "8"])
    printed = capsys.readouterr()
    return status, printed.out.rstrip("\n"), printed.err


def answer(base, adapter, prompt):
    engine = Engine.open(base)
    digest = engine.load_adapter(adapter) if adapter else None
    outputs = list(engine.generate(prompt, adapter=digest, sampling=GREEDY))[:8]
    engine.close()
    return engine.tokenizer.decode([token for output in outputs for token in output.token_ids])


def test_generate_streams_the_answer_and_says_how_fast(capsys, bundles):
    base, adapter = bundles
    messages = [{"role": "user", "content": "hello"}]
    for extra, used in (((), None), (("--adapter", adapter), adapter)):
        status, text, summary = generate(capsys, base, "--prompt", "hello", *extra)
        assert (status, text) == (0, answer(base, used, messages))
        assert re.search(r"onnx: \d+ prompt tokens at \d+/s, \d answer tokens, decode at \d+/s", summary)


def test_raw_prompts_and_system_messages_change_the_prompt(capsys, bundles):
    base, _ = bundles
    lengths = [
        int(re.search(r"(\d+) prompt tokens", generate(capsys, base, "--prompt", "hello", *extra)[2])[1])
        for extra in (("--raw",), (), ("--system", "be brief"))
    ]
    assert lengths == sorted(set(lengths))


def test_errors_are_told_by_their_code(capsys, bundles, tmp_path):
    base, adapter = bundles
    status, _, told = generate(capsys, adapter, "--prompt", "hello")
    assert (status, told.split(":")[0]) == (1, "bad_bundle")
    status, _, told = generate(capsys, base, "--prompt", "hello", "--top-p", "2")
    assert (status, told.split(":")[0]) == (1, "invalid_input")
