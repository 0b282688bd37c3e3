"""Progress bars on standard error, silent where nobody looks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from spvit_deploy.core.launcher import speaks

# Between the lines of a bar where there is no terminal to draw it.
_SECONDS = 30.0


def stderr_console() -> Console:
    """A console on standard error; silent in all but the first of several processes."""
    return Console(stderr=True, markup=False, soft_wrap=True, quiet=not speaks())


def warn(text: str) -> None:
    """One line on standard error for what went on, but should not go unseen."""
    stderr_console().print(f"Warning: {text}", highlight=False)


class Bar:
    """One running task of a progress display."""

    def __init__(self, progress: Progress, total: float | None, label: str, done: int) -> None:
        self._progress = progress
        self._task = progress.add_task(label, total=total, completed=done, note="")
        self._said = time.monotonic()

    def advance(self, steps: float = 1, note: str | None = None) -> None:
        """Move on by ``steps``; ``note`` is shown at the end of the line."""
        if note is None:
            self._progress.update(self._task, advance=steps)
        else:
            self._progress.update(self._task, advance=steps, note=note)
        (task,) = self._progress.tasks
        drawn = self._progress.console.is_terminal
        if not (drawn or task.finished) and time.monotonic() > self._said + _SECONDS:
            self._said = time.monotonic()
            self.log(_line(task))

    def log(self, text: str) -> None:
        """A line above the bar."""
        self._progress.console.print(text, highlight=False)


def _line(task: Task) -> str:
    """For a log, in which nothing can be drawn."""
    of = "" if task.total is None else f"/{task.total:g} ({task.completed / task.total:.0%})"
    note = task.fields["note"]
    return f"{task.description}: {task.completed:g}{of}{note and f', {note}'}"


@contextmanager
def progress_bar(label: str, total: float | None = None, done: int = 0) -> Iterator[Bar]:
    """A bar of ``total`` steps, ``done`` of them before; or a spinner when ``total`` is None."""
    console = stderr_console()
    columns = [SpinnerColumn(), TextColumn("{task.description}")]
    if total is not None:
        columns += [BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True)]
    columns += [TimeElapsedColumn(), TextColumn("[dim]{task.fields[note]}")]
    if not console.is_terminal:
        console.print(f"{label} …", highlight=False)
    with Progress(
        *columns, console=console, disable=not console.is_terminal or not speaks()
    ) as progress:
        yield Bar(progress, total, label, done)
