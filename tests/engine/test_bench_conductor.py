"""The conductor with contestants that it cannot tell from real ones, in this process and in processes of their own."""

import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.bench.cases import Case, settings
from engine.bench.child import Child, ContestantError, PeakMemory
from engine.bench.conductor import Plan, Surroundings, run_shape
from engine.bench.machine import Capability
from engine.bench.results import Participant, ShapeResults
from engine.bench.shapes import SHAPES

SCRIPT = Path(__file__).with_name("scripted_contestant.py")
SETTINGS = settings(contexts=[64], rows=[1, 4], prefills=[16])


class Troupe:
    """Contestants by name with their seconds per row, and everything that they were asked."""

    def __init__(self, seconds_per_row, fail=()):
        self.seconds_per_row = seconds_per_row
        self.fail = fail
        self.heard = []
        self.alive = []
        self.crowds = []

    def start(self, name):
        self.alive.append(name)
        return Actor(self, name)


class Actor:
    def __init__(self, troupe, name):
        self.troupe, self.name = troupe, name

    def ask(self, op, **fields):
        self.troupe.heard.append((self.name, op, fields))
        self.troupe.crowds.append((op, len(self.troupe.alive)))
        if (self.name, op) in self.troupe.fail:
            raise ContestantError(f"{op}: broken")
        if op == "run":
            return {"seconds": [fields["rows"] * self.troupe.seconds_per_row[self.name]], "sample": [1.0, 2.0]}
        return {"version": f"{self.name} 1.0"}

    @contextmanager
    def sampled_memory(self):
        yield PeakMemory(200, 100)

    def close(self):
        self.troupe.alive.remove(self.name)


def perform(troupe, *, rounds=3, with_memory=True, missing=()):
    participants = {name: Participant(name, is_peer=name != "ours") for name in troupe.seconds_per_row}
    participants |= {name: Participant(name, is_peer=True, failure="not installed") for name in missing}
    results = ShapeResults("tiny", SHAPES["tiny"], participants)
    plan = Plan(SETTINGS, "folder", rounds, budget_s=0.1, num_threads=2, with_memory=with_memory)
    said = []
    run_shape(plan, results, Surroundings(troupe.start, lambda: Capability(1e9, None), said.append))
    assert troupe.alive == []
    return results, said


def timed(troupe):
    return [(name, fields["rows"]) for name, op, fields in troupe.heard if op == "run" and fields["budget_s"] > 0]


def test_every_contestant_gets_every_case_in_every_round():
    troupe = Troupe({"ours": 0.5, "peer": 1.0})
    results, _ = perform(troupe)
    for case in (Case(64, 1, "all"), Case(64, 4, "all"), Case(0, 16, "last")):
        assert results.seconds["ours", case] == [0.5 * case.rows] * 3
        assert results.ratio("ours", case) == 2.0
    assert len(results.capabilities) == len(SETTINGS)
    assert results.participants["ours"].facts == {"version": "ours 1.0"}


def test_they_take_turns_and_each_round_begins_with_another():
    troupe = Troupe({"a": 1.0, "b": 1.0, "c": 1.0})
    perform(troupe)
    in_context = [name for name, rows in timed(troupe) if rows == 1]
    assert "".join(in_context) == "abcbcacab"
    first_round = timed(troupe)[:6]
    assert first_round == [("a", 1), ("b", 1), ("c", 1), ("a", 4), ("b", 4), ("c", 4)]


def test_all_prepare_a_setting_before_it_is_timed():
    troupe = Troupe({"a": 1.0, "b": 1.0})
    perform(troupe, rounds=1, with_memory=False)
    operations = [op for _, op, _ in troupe.heard]
    assert operations == ["export"] * 2 + ["open"] * 2 + ["prepare"] * 2 + ["run"] * 4 + ["prepare"] * 2 + ["run"] * 2
    prepared = next(fields for _, op, fields in troupe.heard if op == "prepare")
    assert prepared == {"context": 64, "capacity": 68, "max_logit_rows": 4}


def test_files_are_made_and_memory_is_measured_with_nobody_else_there():
    troupe = Troupe({"a": 1.0, "b": 1.0})
    results, _ = perform(troupe, rounds=1)
    alone = Counter(op for op, crowd in troupe.crowds if crowd == 1)
    first_of_the_crowd = 1
    assert alone == {"export": 2, "open": 2 + first_of_the_crowd, "prepare": 2 * 2, "run": 2 * 2}
    for participant in results.participants.values():
        assert participant.opening == PeakMemory(200, 100)
        assert list(participant.serving) == ["context 64", "prefill"]


@pytest.mark.parametrize("op", ["export", "open", "prepare", "run"])
def test_who_fails_is_out_and_the_others_go_on(op):
    troupe = Troupe({"good": 1.0, "bad": 1.0}, fail={("bad", op)})
    results, said = perform(troupe)
    assert results.participants["bad"].failure == f"{op}: broken"
    assert any("bad is out" in line for line in said)
    assert results.participants["good"].failure is None
    assert len(results.seconds["good", Case(0, 16, "last")]) == 3
    assert [n for n, _, _ in troupe.heard].count("bad") < [n for n, _, _ in troupe.heard].count("good")


def test_who_is_missing_is_never_started():
    troupe = Troupe({"here": 1.0})
    results, _ = perform(troupe, missing=["elsewhere"])
    assert {name for name, _, _ in troupe.heard} == {"here"}
    assert results.participants["elsewhere"].failure == "not installed"


def test_with_processes(tmp_path):
    scripts = {"fast": ["0.001"], "slow": ["0.004"], "broken": ["0.001", "prepare", "end"]}
    results = ShapeResults("tiny", SHAPES["tiny"], {name: Participant(name, is_peer=True) for name in scripts})
    plan = Plan(SETTINGS, "folder", rounds=2, budget_s=0.1, num_threads=0, with_memory=True)

    def start(name):
        return Child(name, [sys.executable, str(SCRIPT), *scripts[name]], log=tmp_path / f"{name}.log")

    run_shape(plan, results, Surroundings(start, lambda: Capability(None, None), lambda _: None))
    assert results.ratio("slow", Case(64, 4, "all")) == pytest.approx(0.25)
    assert "has ended" in results.participants["broken"].failure
    assert results.participants["slow"].serving["prefill"].pss_bytes > 0
