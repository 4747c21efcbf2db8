import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from engine.bench.cases import Case, settings
from engine.bench.child import PeakMemory
from engine.bench.contestants import REGISTRY
from engine.bench.machine import NATIVE_MODULE, Capability, Machine, describe_machine, measure_capability
from engine.bench.report import document, table
from engine.bench.results import Participant, ShapeResults, Spread, cosine, median_of, shares
from engine.bench.shapes import SHAPES, num_weights, quick, step_bytes, step_macs

STEP = Case(256, 8, "all")
PROMPT = Case(0, 128, "last")
MACHINE = Machine("a processor", 2, "3.11", load=0.3)


@pytest.fixture
def results():
    participants = {
        "ours": Participant("ours", is_peer=False, is_native=True),
        "ours+lora": Participant("ours+lora", is_peer=False, is_native=True, has_adapter=True),
        "peer": Participant("peer", is_peer=True),
        "better": Participant("better", is_peer=True),
    }
    filled = ShapeResults("tiny", SHAPES["tiny"], participants)
    filled.seconds = {
        ("ours", STEP): [0.02, 0.04, 0.01],
        ("ours+lora", STEP): [0.04],
        ("peer", STEP): [0.08],
        ("better", STEP): [0.04, 0.04],
        ("peer", PROMPT): [1.0],
    }
    filled.samples = {("ours", STEP): [6.0, 8.0], ("peer", STEP): [2.0, 0.0], ("better", STEP): [0.0, 3.0]}
    filled.capabilities = [Capability(4e9, 2e9), Capability(2e9, None), Capability(6e9, None)]
    filled.participants["ours"].opening = PeakMemory(3 << 20, 1 << 20)
    filled.participants["ours"].serving = {"context 256": PeakMemory(5 << 20, 2 << 20)}
    filled.participants["gone"] = Participant("gone", is_peer=True, failure="not installed: do this")
    return filled


def test_a_step_of_several_rows_is_as_many_tokens(results):
    assert results.speed("ours", STEP) == Spread(median=400, low=200, high=800)
    assert results.speed("ours", PROMPT) is None


def test_ratios_are_to_the_best_peer_and_ours_is_none(results):
    assert results.best_peer(STEP) == 200
    assert results.ratio("ours", STEP) == 2.0
    assert results.ratio("peer", STEP) == 0.5
    assert results.ratio("ours", PROMPT) is None


def test_without_peers_there_is_no_ratio(results):
    del results.participants["peer"], results.participants["better"]
    assert results.ratio("ours", STEP) is None
    assert "800" in table(MACHINE, [results])


def test_agreement_is_with_the_first_peer(results):
    results.samples["ours+lora", STEP] = [1.0, 0.0]
    assert results.agreement("ours") == pytest.approx(0.6)
    assert results.agreement("peer") == pytest.approx(1.0)
    assert results.agreement("better") == 0.0
    assert results.agreement("ours+lora") is None
    assert results.agreement("gone") is None


def test_cosine_of_nothing_is_zero():
    assert cosine([0.0, 0.0], [1.0, 2.0]) == 0.0


def test_shares_use_the_median_of_what_was_measured(results):
    assert shares(results, "ours", STEP, step_bytes=2e7, step_macs=4_000_000) == {"bandwidth": 0.25, "arithmetic": 0.1}
    unknown = {"bandwidth": None, "arithmetic": None}
    assert shares(results, "peer", STEP, step_bytes=2e7, step_macs=1) == unknown
    results.capabilities = []
    assert shares(results, "ours", STEP, step_bytes=1, step_macs=1) == unknown


def test_median_of_nothing_known():
    assert median_of([None, None]) is None


def test_the_table_says_all_of_it(results):
    text = table(MACHINE, [results])
    assert "400 [200, 800] 2.00x" in text
    assert "5 PSS, 2 anon." in text
    assert "of 4.0 GB/s" in text
    assert "gone is missing: not installed: do this" in text
    (better,) = (line for line in text.splitlines() if line.startswith("better is"))
    assert better.endswith("0.0000: IT DOES NOT COMPUTE THE SAME MODEL")
    (peer,) = (line for line in text.splitlines() if line.startswith("peer is"))
    assert peer.endswith("cosine of its logits 1.0000")


def test_a_busy_machine_is_said_to_be_busy(results):
    assert "OTHERS" not in table(MACHINE, [results])
    assert "OTHERS" in table(replace(MACHINE, load=1.2), [results])


def test_the_document_is_json_and_keeps_every_round(results):
    report = json.loads(json.dumps(document(MACHINE, [results], {"rounds": 3})))
    (shape,) = report["shapes"]
    ours = next(r for r in shape["results"] if (r["contestant"], r["rows"]) == ("ours", 8))
    assert ours["step_s"] == [0.02, 0.04, 0.01]
    assert ours["ratio_to_best_peer"] == 2.0
    assert shape["contestants"][-1]["failure"] == "not installed: do this"
    assert report["machine"]["num_cores"] == 2


def test_a_state_has_room_for_its_largest_case():
    planned = settings(contexts=[64, 256], rows=[8, 1], prefills=[512, 128])
    assert [(s.context, s.capacity, s.max_logit_rows) for s in planned] == [(64, 72, 8), (256, 264, 8), (0, 512, 1)]
    assert [case.rows for case in planned[2].cases] == [128, 512]
    assert settings(contexts=[64], rows=[], prefills=[]) == []


def test_shapes_have_their_known_sizes():
    assert num_weights(SHAPES["0.5b"]) == pytest.approx(0.494e9, rel=0.01)
    assert num_weights(SHAPES["1.7b"]) == pytest.approx(1.72e9, rel=0.01)
    assert num_weights(SHAPES["4b"]) == pytest.approx(4.02e9, rel=0.01)
    assert quick(SHAPES["4b"]).num_hidden_layers == 4
    assert quick(SHAPES["tiny"]).num_hidden_layers == 2


def test_costs_of_a_step():
    shape = SHAPES["0.5b"]
    assert step_bytes(shape, 0) == pytest.approx(270e6, rel=0.01)
    assert step_bytes(shape, 256) - step_bytes(shape, 0) == shape.kv_bytes_per_token() * 256
    assert step_macs(shape, 1, 1) == num_weights(shape)
    assert step_macs(shape, 8, 1) < step_macs(shape, 8, 8) == 8 * num_weights(shape)


def test_every_contestant_can_say_whether_it_is_missing():
    reasons = {name: entry.missing() for name, entry in REGISTRY.items()}
    assert reasons["onnxruntime"] is None
    assert all(reason is None or reason for reason in reasons.values())


def test_the_machine_is_described_and_what_cannot_be_measured_is_unknown():
    assert describe_machine().num_cores >= 1
    capability = measure_capability(1)
    assert capability.read_bytes_per_s is None or capability.read_bytes_per_s > 0


def test_the_native_module_measures_what_it_can(monkeypatch):
    native = SimpleNamespace(read_bandwidth=lambda num_threads: 1e9 * num_threads)
    monkeypatch.setitem(sys.modules, NATIVE_MODULE, native)
    assert measure_capability(3) == Capability(read_bytes_per_s=3e9, int8_macs_per_s=None)
