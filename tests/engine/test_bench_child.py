"""The conductor's end of the conversation, with real processes that answer by a script."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.bench.child import Child, ContestantError

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = Path(__file__).with_name("scripted_contestant.py")


@pytest.fixture
def start(tmp_path):
    children = []

    def start(*arguments):
        children.append(Child("scripted", [sys.executable, str(SCRIPT), *arguments], log=tmp_path / "logs" / "log"))
        return children[-1]

    yield start
    for child in children:
        child.close()


def state_of(child):
    return Path(f"/proc/{child._process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_for_state(child, state):
    deadline = time.monotonic() + 20
    while state_of(child) != state:
        assert time.monotonic() < deadline, f"the process is in state {state_of(child)}"
        time.sleep(0.01)


def test_a_question_is_answered(start):
    assert start("0.5").ask("run", rows=4)["seconds"] == [2.0, 2.0]


def test_fields_reach_the_contestant(start):
    assert start("1").ask("open", folder="here", num_threads=2)["heard"] == {
        "op": "open",
        "folder": "here",
        "num_threads": 2,
    }


def test_it_is_stopped_while_it_has_nothing_to_answer(start):
    child = start("1")
    wait_for_state(child, "T")
    child.ask("open")
    wait_for_state(child, "T")


@pytest.mark.parametrize(
    ("action", "text"), [("fail", "as scripted"), ("end", "has ended"), ("hang", "no answer within 1 s")]
)
def test_trouble_names_the_operation_and_the_log(start, tmp_path, action, text):
    child = start("1", "run", action)
    with pytest.raises(ContestantError, match=text) as caught:
        child.ask("run", rows=1, timeout_s=1.0)
    assert str(caught.value).startswith("run: ")
    assert str(tmp_path / "logs" / "log") in str(caught.value)


def test_a_process_that_has_ended_is_noticed_by_the_next_question(start):
    child = start("1", "run", "end")
    with pytest.raises(ContestantError):
        child.ask("run", rows=1)
    with pytest.raises(ContestantError, match="has ended"):
        child.ask("run", rows=1)


def test_memory_is_seen_from_outside(start):
    child = start("1")
    with child.sampled_memory() as peak:
        child.ask("open")
    assert peak.pss_bytes > peak.anonymous_bytes > 0


def test_a_contestant_does_not_outlive_a_conductor_that_is_killed(tmp_path):
    program = f"""
import os, signal, sys
from pathlib import Path
from engine.bench.child import Child
command = [sys.executable, "-m", "engine.bench.contestants", "onnxruntime"]
child = Child("orphan", command, log=Path({str(tmp_path / "log")!r}))
child.ask("export", folder=".")
print(child._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, check=False)
    orphan = Path("/proc") / killed.stdout.decode().strip() / "cmdline"
    deadline = time.monotonic() + 20
    while orphan.exists() and b"contestants" in orphan.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_closing_ends_the_process(start):
    child = start("1")
    child.close()
    assert child._process.returncode == 0
