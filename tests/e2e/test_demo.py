"""`./dev demo` as a user types it, twice in the same directory, each time ended by Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.tour.stack import ROOT

pytestmark = pytest.mark.timeout(300)


def run_until_it_stays_up(directory: Path, *options: str) -> str:
    """The output of one run that was interrupted when it had told everything."""
    command = [sys.executable, "-m", "deploy.tour", "--devices", "1", "--directory", str(directory), *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as demo:
        assert demo.stdout is not None
        lines = []
        for line in demo.stdout:
            lines.append(line)
            if "Ctrl-C stops everything" in line:
                demo.send_signal(signal.SIGINT)
        output = "".join(lines)
    assert demo.returncode == 0, output
    return output


def test_a_second_start_finds_everything_where_the_first_left_it(tmp_path):
    first = run_until_it_stays_up(tmp_path / "demo")
    assert "Roll out home@2.0.0" in first
    second = run_until_it_stays_up(tmp_path / "demo")
    assert "comes back with what it had" in second
    assert "light." in second  # home 2.0.0 answers at once
    assert "Roll out" not in second


def test_a_port_that_the_devices_do_not_know_is_refused(tmp_path):
    (tmp_path / "port").write_text("1234")
    command = [sys.executable, "-m", "deploy.tour", "--directory", str(tmp_path), "--port", "1235"]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "leave --port out, or add --fresh" in refused.stdout + refused.stderr
