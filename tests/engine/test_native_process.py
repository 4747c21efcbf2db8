"""What a process pays for the native back end: memory, processor time when idle, and its share of the time when not."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.backends import Segment
from engine.backends.native import NativeBackend
from engine.config import EngineConfig
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
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("process") / "base"
    make_base(base, BASE, "int4")
    return base


@pytest.fixture(scope="module")
def taken(base):
    """What a child process that ran the model took."""
    make_adapter(base.parent / "adapter", base, rank=16)
    command = [sys.executable, "-m", "tests.engine.native_child", base, base.parent / "adapter"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)


def test_a_model_takes_little_memory_beside_its_mapped_weights(taken):
    """40 MB are promised, but these weights are 47 MB: less, so that a copy of half of them cannot hide."""
    assert taken["logits_are_finite"]
    assert taken["anonymous_bytes"] <= taken["owed_bytes"] + (16 << 20)


def test_weights_stay_shared_pages_of_the_file(taken):
    weights = taken["weights"]
    assert weights["Rss"] > 20 << 20
    assert (weights["Private_Dirty"], weights["Shared_Dirty"], weights["Anonymous"]) == (0, 0, 0)


def test_a_thousand_steps_take_no_more_memory_than_a_few(taken):
    assert taken["growth_bytes"] < 256 << 10


def test_an_idle_engine_uses_no_processor(taken):
    assert taken["idle_cpu_s"] < 0.02


REFUSED_THREADS = """
import resource, sys
from pathlib import Path
from engine.backends.native import NativeBackend
from engine.config import EngineConfig
from engine.errors import CapacityError
used_bytes = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (used_bytes + (600 << 20),) * 2)
try:
    NativeBackend(Path(sys.argv[1]), EngineConfig(num_threads=500))
except CapacityError as error:
    sys.exit(f"{error}")
"""


def test_threads_that_the_system_refuses_are_an_error_and_no_crash(base):
    """Their stacks do not fit into the address space."""
    child = subprocess.run([sys.executable, "-c", REFUSED_THREADS, base], cwd=ROOT, check=False, capture_output=True)
    assert b"could not start its threads" in child.stderr


@pytest.mark.parametrize("duty_cycle", [0.25, 0.5])
def test_the_duty_cycle_is_kept(base, duty_cycle):
    """It is never exceeded, and is reached unless other processes have the processors."""
    backend = NativeBackend(base, EngineConfig(num_threads=1, duty_cycle=duty_cycle))
    state, token_ids = backend.new_state(64), np.arange(64, dtype=np.int32)

    def work():
        state.rewind(0)
        backend.step([Segment(state, token_ids, None, (63,))])

    work()
    windows = []
    while len(windows) < 8 and not any(worked > 0.9 * duty_cycle for worked, _ in windows):
        windows.append(shares_of(work, 0.7))
    assert all(worked < 1.1 * duty_cycle for worked, _ in windows)
    assert windows[-1][0] > 0.9 * duty_cycle or all(waited > 0.02 for _, waited in windows)


def shares_of(work, seconds):
    """Of the time while `work` is called for so long: what this thread worked, and what it waited for a processor."""
    started_at, before = time.perf_counter(), thread_times_ns()
    while (passed_s := time.perf_counter() - started_at) < seconds:
        work()
    return (thread_times_ns() - before) / (1e9 * passed_s)


def thread_times_ns():
    """How long this thread has worked, and how long it has waited for a processor."""
    return np.array(Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()[:2], np.int64)
