"""What sharing one base costs a process: its ledger says what the system says, and the engine's cap holds."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.random_bundles import LLAMA, make_adapter, make_base

ROOT = Path(__file__).resolve().parents[2]
BASE = replace(
    LLAMA,
    hidden_size=512,
    intermediate_size=1024,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    vocab_size=32768,
    max_position_embeddings=4096,
)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharing")
    make_base(folder / "base", BASE, "int4")
    for seed in (1, 2):
        make_adapter(folder / f"adapter-{seed}", folder / "base", rank=64, seed=seed)
    return folder / "base", folder / "adapter-1", folder / "adapter-2"


def run(bundles, what):
    command = [sys.executable, "-m", "tests.engine.shared_base_child", what, *bundles]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)


def test_the_ledger_agrees_with_the_system_within_five_per_cent(bundles):
    phases = run(bundles, "phases")
    opened = phases.pop("opened")
    assert list(phases) == ["idle", "running", "running on cached prompts", "cached", "many answers to one prompt"]
    for phase, taken in phases.items():
        pss = taken["pss"] - (taken["libraries"] - opened["libraries"])
        assert taken["resident"] == pytest.approx(pss, rel=0.05), phase
        assert taken["reserved"] > 0.98 * pss, phase
    growth = phases["running on cached prompts"]["resident"] - phases["running"]["resident"]
    assert growth < 2 << 20  # a second request on a prompt of 1,000 tokens, whose keys and values are 3 MiB


def test_a_flood_of_requests_waits_or_is_refused_and_the_cap_holds(bundles):
    flood = run(bundles, "flood")
    assert flood["largest_pss"] - flood["library_growth"] <= 1.02 * flood["cap"]
    assert flood["largest_reserved"] <= flood["cap"]
    assert flood["most_running"] < flood["accepted"]
    assert min(flood["refused"]) > 0  # seconds after which to try again
    assert flood["finished"] == flood["accepted"]
    assert flood["errors"] == []
