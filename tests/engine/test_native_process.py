"""What a process pays for the native back end: memory, processor time when idle, and its share of the time when not."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from socle_native import Governor

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
    make_adapter(base.parent / "adapter", base, rank=128)
    command = [sys.executable, "-m", "tests.engine.native_child", base, base.parent / "adapter"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)


def test_a_model_takes_little_memory_beside_its_mapped_weights(taken):
    """40 MB are promised, but these weights are 47 MB: less, so that a copy of half of them cannot hide."""
    assert taken["logits_are_finite"]
    assert taken["anonymous_bytes"] <= taken["owed_bytes"] + (16 << 20)


@pytest.mark.parametrize(("file", "least_bytes"), [("weights", 20 << 20), ("adapter", 2 << 20)])
def test_weights_stay_shared_pages_of_the_file(taken, file, least_bytes):
    pages = taken[file]
    assert pages["Rss"] > least_bytes
    assert (pages["Private_Dirty"], pages["Shared_Dirty"], pages["Anonymous"]) == (0, 0, 0)


def test_a_loaded_adapter_is_no_copy_of_its_file(taken):
    """It is 3 MB."""
    assert taken["load_bytes"] < 1 << 20


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


CUT_BASE = """
import os, sys
from pathlib import Path
import numpy as np
from engine.artifact import BASE_WEIGHTS
from engine.backends import Segment
from engine.backends.native import NativeBackend
from engine.config import EngineConfig
from engine.errors import BundleError
backend = NativeBackend(Path(sys.argv[1]), EngineConfig(num_threads=1))
state = backend.new_state(8)
run = lambda: backend.step([Segment(state, np.zeros(1, np.int32), None, (0,))])
run()
os.truncate(Path(sys.argv[1], BASE_WEIGHTS), 1 << 20)
for _ in range(2):
    try:
        run()
    except BundleError as error:
        print(state.num_tokens, error)
"""


def test_a_base_that_is_cut_while_it_is_in_use_is_an_error_and_no_crash(tmp_path):
    make_base(tmp_path / "base", BASE, "int4")
    command = [sys.executable, "-c", CUT_BASE, tmp_path / "base"]
    child = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    expected = "1 weights.safetensors changed while it was in use: fetch it again and restart the engine\n"
    assert child.stdout == 2 * expected


bursts = st.lists(st.tuples(st.floats(1e-4, 0.004), st.floats(0, 0.02), st.floats(0, 0.002)), min_size=50, max_size=50)


@given(bursts=bursts, duty_cycle=st.sampled_from([0.05, 0.25, 0.5, 0.9]))
def test_no_window_holds_more_work_than_the_duty_cycle_allows(bursts, duty_cycle):
    """Beyond a rest that is too short to be taken, and the burst that nothing interrupts; sleep may last longer."""
    governor, now_s, edges = Governor(duty_cycle), 0.0, []
    for work_s, idle_s, oversleep_s in bursts * 4:
        edges.append((now_s, work_s))
        rest_s = governor.rest_s(passed_s=work_s, worked_s=work_s)
        slept_s = idle_s + (rest_s + oversleep_s if rest_s else 0.0)
        governor.rest_s(passed_s=slept_s, worked_s=0.0)
        now_s += work_s + slept_s
    starts_s, works_s = np.array(edges).T
    ends_s, before_s = starts_s + works_s, np.cumsum(works_s) - works_s
    windows_s = ends_s[None, :] - starts_s[:, None]  # from the start of one burst to the end of another
    worked_s = before_s[None, :] + works_s[None, :] - before_s[:, None]
    allowed_s = duty_cycle * (windows_s + 0.005) + works_s.max()
    assert (worked_s <= allowed_s + 1e-9)[windows_s > 0].all()


def test_rest_is_taken_as_soon_as_it_is_worth_a_sleep_and_never_saved_up():
    governor = Governor(0.25)
    assert governor.rest_s(passed_s=100.0, worked_s=0.0) == 0.0
    assert governor.rest_s(passed_s=0.001, worked_s=0.001) == 0.0
    assert governor.rest_s(passed_s=0.001, worked_s=0.001) == pytest.approx(0.006)
    assert governor.rest_s(passed_s=0.006, worked_s=0.0) == 0.0
    assert governor.rest_s(passed_s=0.004, worked_s=0.002) == 0.0
    assert governor.rest_s(passed_s=0.010, worked_s=0.010) == pytest.approx(0.034)


SECONDS_OF_PYTHON = 0.0005


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("num_rows", [1, 64])
@pytest.mark.parametrize("duty_cycle", [0.25, 0.5])
def test_the_duty_cycle_is_kept(base, duty_cycle, num_rows, num_threads):
    """No thread exceeds it, with short steps and work between them; it is reached unless others have the processors."""
    backend = NativeBackend(base, EngineConfig(num_threads=num_threads, duty_cycle=duty_cycle))
    state, token_ids = backend.new_state(64), np.arange(num_rows, dtype=np.int32)

    def work():
        state.rewind(0)
        backend.step([Segment(state, token_ids, None, (num_rows - 1,))])
        busy_until = time.thread_time() + SECONDS_OF_PYTHON
        while time.thread_time() < busy_until:
            pass

    work()
    windows = []
    while len(windows) < 8 and not any(worked > 0.9 * duty_cycle for worked, _ in windows):
        windows.append(shares_of(work, 0.7))
    assert all(worked < 1.1 * duty_cycle for worked, _ in windows)
    assert windows[-1][0] > 0.9 * duty_cycle or all(waited > 0.02 for _, waited in windows)


def test_what_the_caller_does_for_long_between_steps_is_its_own_business(base):
    backend = NativeBackend(base, EngineConfig(num_threads=1, duty_cycle=0.25))
    state, token_ids = backend.new_state(64), np.zeros(1, np.int32)
    backend.step([Segment(state, token_ids, None, ())])
    began_at, busy_until = time.perf_counter(), time.thread_time() + 0.5
    while time.thread_time() < busy_until:
        pass
    me = str(threading.get_native_id())
    started_at, waited_before_ns = time.perf_counter(), thread_times_ns()[me][1]
    backend.step([Segment(state, token_ids, None, ())])
    rested_s = time.perf_counter() - started_at - (thread_times_ns()[me][1] - waited_before_ns) / 1e9
    assert rested_s < 1.2
    assert rested_s > 0.2 or started_at - began_at > 0.75  # others have the processor: less is owed


def shares_of(work, seconds):
    """Of the time while `work` is called for so long: what the busiest thread worked, and waited for a processor."""
    started_at, before = time.perf_counter(), thread_times_ns()
    while (passed_s := time.perf_counter() - started_at) < seconds:
        work()
    after = thread_times_ns()
    return max(tuple((after[thread] - before[thread]) / (1e9 * passed_s)) for thread in after.keys() & before.keys())


def thread_times_ns():
    """How long each thread of this process has worked, and how long it has waited for a processor."""
    return {
        path.name: np.array((path / "schedstat").read_text(encoding="ascii").split()[:2], np.int64)
        for path in Path("/proc/self/task").iterdir()
    }
