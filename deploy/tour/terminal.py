"""What the demo prints: headings, shown commands, exchanges, progress bars. Plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table


class Terminal:
    """A thin face over rich; the last JSON line of `--check` is not its business."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)

    def heading(self, text: str) -> None:
        """A step begins."""
        self.console.print(f"\n[bold cyan]{escape(text)}[/]")

    def say(self, text: str) -> None:
        """A plain line."""
        self.console.print(escape(text))

    def command(self, line: str) -> None:
        """A command that the reader could type."""
        self.console.print(f"[dim]$ {escape(line)}[/]", soft_wrap=True)

    def fail(self, text: str) -> None:
        """Why it ends here."""
        self.console.print(f"[bold red]✗[/] {escape(text)}")

    def done(self, text: str) -> None:
        """A result that was seen."""
        self.console.print(f"[green]✓[/] {escape(text)}")

    def table(self, columns: list[str], rows: list[list[str]]) -> None:
        """A small table."""
        table = Table(*columns, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*map(escape, row))
        self.console.print(table)

    @contextmanager
    def progress(self, what: str) -> Iterator[Callable[[str, float], None]]:
        """A progress bar; call what it yields with a word and a share of 1. Without a terminal: one closing line."""
        started = time.monotonic()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bars:
            task = bars.add_task(escape(what), total=1.0)
            yield lambda step, share: bars.update(task, description=escape(f"{what}: {step}"), completed=share)
        self.done(f"{what} ({time.monotonic() - started:.1f} s)")
