"""`./dev demo`: the whole product on this machine, on real input, told step by step."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from deploy.tour.api import RefusedError
from deploy.tour.stack import ROOT, Stack, StackError, server_port
from deploy.tour.story import CheckFailedError, Story
from deploy.tour.terminal import Terminal


def main() -> int:
    """Run the demo; 0 if every step did what it should."""
    arguments = _parser().parse_args()
    terminal = Terminal()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    with tempfile.TemporaryDirectory(prefix="socle-demo-") as temporary:
        directory = Path(temporary) if arguments.check else arguments.directory
        if arguments.fresh:
            shutil.rmtree(directory, ignore_errors=True)
        try:
            with closing(Stack(directory, server_port(directory, arguments.port))) as stack:
                return _run(stack, terminal, arguments)
        except (StackError, RefusedError, CheckFailedError) as error:
            terminal.fail(str(error))
            return 1


def _run(stack: Stack, terminal: Terminal, arguments: argparse.Namespace) -> int:
    """Tell the story and stop the stack; Ctrl-C ends it at any step."""
    try:
        with closing(Story(stack, terminal, [f"device-{i + 1}" for i in range(arguments.devices)])) as story:
            story.tell()
            if not arguments.check:
                story.show_where_to_look()
                while True:
                    signal.pause()
    except KeyboardInterrupt:
        terminal.say("Stopping.")
        return 0
    stack.close()
    sys.stdout.write(story.report_json() + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./dev demo", description=__doc__)
    parser.add_argument("--check", action="store_true", help="headless: run each step, stop, exit 0 or 1; ends in JSON")
    parser.add_argument("--devices", type=int, default=3, metavar="N", help="simulated devices (default 3)")
    parser.add_argument("--port", type=int, default=0, help="port of the web server (default: a free one, kept)")
    parser.add_argument("--directory", type=Path, default=ROOT / "var" / "demo", help="where its state lives")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs left in the directory")
    return parser


def _interrupt(_signal: int, _frame: object) -> None:
    """End the story once; pressing Ctrl-C again does not leave processes behind."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
