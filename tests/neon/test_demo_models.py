"""The demo's trained base and adapter answer its golden prompts on an Arm processor, bit for bit as they do here."""

from __future__ import annotations

import numpy as np
import pytest

from engine.artifact import read_base
from engine.backends import Segment
from engine.convert import convert_adapter, convert_base
from engine.tokenizer import Tokenizer
from tests.engine.grown_models import DEMO_BASE, demo_adapter, golden_prompts
from tests.engine.instruction_sets import PORTABLE
from tests.neon.bits import assert_same_bits

NAME = "home-1.0.0"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    convert_base(DEMO_BASE, folder / "base")
    convert_adapter(demo_adapter(NAME), folder / "base", folder / "adapter")
    return folder


@pytest.fixture(scope="module")
def tokenizer(bundles):
    return Tokenizer.open(bundles / "base")


@pytest.fixture(scope="module")
def backends(bundles, neon):
    """Here in one thread, there in two."""
    pair = PORTABLE.open(bundles / "base", num_threads=1), neon.open(bundles / "base", num_threads=2)
    for backend in pair:
        backend.load_adapter(NAME, bundles / "adapter")
    return pair


class Pair:
    """A sequence here and there."""

    def __init__(self, backends, adapter) -> None:
        self._halves = [(backend, backend.new_state(200)) for backend in backends]
        self._adapter = adapter

    def run(self, token_ids) -> np.ndarray:
        """Logits of all of these tokens, after they were found to be the same."""
        rows, token_ids = tuple(range(len(token_ids))), np.array(token_ids, np.int32)
        here, there = (
            backend.step([Segment(state, token_ids, self._adapter, rows)])[0] for backend, state in self._halves
        )
        assert_same_bits(there, here)
        return there


@pytest.mark.parametrize("number", range(3))
def test_golden_prompts(backends, tokenizer, number):
    prompt = golden_prompts(NAME)[number]
    pair, answer = Pair(backends, NAME), []
    new = tokenizer.render_chat(prompt["messages"])
    while not answer or answer[-1] not in tokenizer.eos_token_ids:
        new = [int(pair.run(new)[-1].argmax())]
        answer += new
    assert tokenizer.decode(answer) == prompt["answer"]


def test_the_bare_base(bundles, backends, tokenizer):
    assert read_base(bundles / "base")[0].weights == "int4"
    Pair(backends, None).run(tokenizer.encode("The lights in the living room are 打开的."))
