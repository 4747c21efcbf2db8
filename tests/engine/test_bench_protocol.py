import io
import json

import numpy as np
import pytest

from engine.bench.models import ModelFolder, ensure_model
from engine.bench.protocol import SAMPLE_LOGITS, Session, serve
from engine.bench.shapes import SHAPES

TINY = SHAPES["tiny"]


class CountingContestant:
    """Logits tell how many tokens it holds; each step moves its clock by `step_s`."""

    def __init__(self, step_s=0.125):
        self.step_s = step_s
        self.now = 0.0
        self.num_tokens = self.num_prepared = 0
        self.steps = []

    def export(self, folder):
        self.exported = folder

    def open(self, folder, num_threads):
        self.opened = folder
        self.now += 3.0
        return {"version": "counting", "num_threads": num_threads}

    def prepare(self, tokens, room):
        self.num_tokens = self.num_prepared = len(tokens)
        self.room = room

    def step(self, tokens, *, all_logits):
        self.steps.append((self.num_tokens, tokens.tolist(), all_logits))
        self.num_tokens += len(tokens)
        self.now += self.step_s
        return np.full((len(tokens) if all_logits else 1, TINY.vocab_size), self.num_tokens, np.float32)

    def rewind(self):
        self.num_tokens = self.num_prepared


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = ModelFolder(tmp_path_factory.mktemp("models"))
    ensure_model(folder, TINY)
    return str(folder.path)


@pytest.fixture
def opened(folder):
    contestant = CountingContestant()
    session = Session(contestant, clock=lambda: contestant.now)
    answer = session.answer({"op": "open", "folder": folder, "num_threads": 2})
    assert answer == {"version": "counting", "num_threads": 2, "open_s": 3.0}
    return contestant, session


def prepare(session, context=7):
    session.answer({"op": "prepare", "context": context, "capacity": 40, "max_logit_rows": 8})


def test_every_step_starts_from_the_same_state(opened):
    contestant, session = opened
    prepare(session)
    session.answer({"op": "run", "rows": 3, "logits": "all", "budget_s": 0.25})
    assert contestant.room.capacity == 40
    assert len(contestant.steps) == 3
    assert {tuple(map(str, step)) for step in contestant.steps} == {tuple(map(str, contestant.steps[0]))}
    held, tokens, all_logits = contestant.steps[0]
    assert (held, len(tokens), all_logits) == (7, 3, True)


def test_the_first_step_does_not_count(opened):
    _, session = opened
    prepare(session)
    answer = session.answer({"op": "run", "rows": 1, "logits": "last", "budget_s": 0.5})
    assert answer["seconds"] == [0.125] * 4
    assert answer["sample"] == [8.0] * SAMPLE_LOGITS


def test_a_step_that_spends_the_budget_runs_once(opened):
    contestant, session = opened
    prepare(session)
    contestant.step_s = 5.0
    assert session.answer({"op": "run", "rows": 1, "logits": "all", "budget_s": 0.5})["seconds"] == [5.0]
    assert len(contestant.steps) == 1


def test_logits_that_are_not_numbers_are_refused(opened):
    contestant, session = opened
    prepare(session)
    contestant.num_prepared = np.nan
    contestant.rewind()
    with pytest.raises(ValueError, match="not numbers"):
        session.answer({"op": "run", "rows": 1, "logits": "all", "budget_s": 0.0})


def test_a_failure_is_an_answer_and_the_next_request_is_heard(folder, capsys):
    requests = [
        {"op": "prepare", "context": 1},
        {"op": "open", "folder": folder, "num_threads": 1},
    ]
    answers = io.StringIO()
    serve(CountingContestant(), [json.dumps(request) for request in requests], answers)
    failed, opened = map(json.loads, answers.getvalue().splitlines())
    assert failed["error"].startswith("TypeError")
    assert opened["version"] == "counting"
    assert "Traceback" in capsys.readouterr().err
