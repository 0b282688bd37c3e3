"""Progress bars and warnings on standard error, from the first of several processes only."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from spvit_deploy.core.seeding import is_first_process

# Between the lines that stand for a bar where standard error is not a terminal.
_SECONDS = 30.0


def stderr_console() -> Console:
    """Return a console on standard error; silent in all but the first of several processes."""
    quiet = not is_first_process()
    return Console(stderr=True, markup=False, highlight=False, soft_wrap=True, quiet=quiet)


def warn(text: str) -> None:
    """Print a warning on standard error, in one line."""
    stderr_console().print(f"Warning: {text}")


class Bar:
    """The single task of a progress display."""

    def __init__(self, progress: Progress, total: float | None, label: str, done: int) -> None:
        self._progress = progress
        self._task = progress.add_task(label, total=total, completed=done, note="")
        self._printed = time.monotonic()

    def advance(self, steps: float = 1, note: str | None = None) -> None:
        """Advance by ``steps``; show ``note`` at the end of the line until there is another."""
        fields: dict[str, Any] = {} if note is None else {"note": note}
        self._progress.update(self._task, advance=steps, **fields)
        (task,) = self._progress.tasks
        drawn = self._progress.console.is_terminal
        if not (drawn or task.finished) and time.monotonic() > self._printed + _SECONDS:
            self._printed = time.monotonic()
            of = "" if task.total is None else f"/{task.total:g} ({task.percentage:.0f}%)"
            after = f", {task.fields['note']}" if task.fields["note"] else ""
            self.log(f"{task.description}: {task.completed:g}{of}{after}")

    def log(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(text)


@contextmanager
def progress_bar(label: str, total: float | None = None, done: int = 0) -> Iterator[Bar]:
    """Show a bar of ``total`` steps, ``done`` of them before; a spinner when ``total`` is None."""
    console = stderr_console()
    columns = [SpinnerColumn(), TextColumn("{task.description}")]
    if total is not None:
        columns += [BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True)]
    columns += [TimeElapsedColumn(), TextColumn("[dim]{task.fields[note]}")]
    if not console.is_terminal:
        console.print(f"{label} …")
    hidden = not console.is_terminal or not is_first_process()
    with Progress(*columns, console=console, disable=hidden) as progress:
        yield Bar(progress, total, label, done)
