"""How errors end the program: one line, an exit code, a traceback only with ``--debug``."""

from __future__ import annotations

import errno
import os
import sys
import time
from typing import Any

import click

from spvit_deploy.core.errors import JobError, SpvitError, first_line
from spvit_deploy.core.launcher import is_first_process, rank

# Seconds that the first of several processes may take to report what is wrong.
_TO_SPEAK = 10


# Packages of the core installation.
_NEEDED = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy", "PIL", "sklearn")


class Main(click.Group):
    """The group of all commands, which turns errors into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException):
            raise
        except KeyboardInterrupt:
            _fail(ctx, JobError("Interrupted; outputs that were there before are as they were."))
        except SpvitError as error:
            _fail(ctx, error)
        except OSError as error:
            if error.errno == errno.EPIPE:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                ctx.exit(0)
            report = JobError(f"{error.filename or 'A file'}: {error.strerror or error}.")
            _fail(ctx, report, alone=True)
        except MemoryError:
            _fail(ctx, JobError("Out of memory.", "Try a smaller --batch-size."), alone=True)
        except Exception as error:
            _fail(ctx, _unexpected(error), alone=True)


def _unexpected(error: Exception) -> JobError:
    if isinstance(error, ModuleNotFoundError) and error.name in _NEEDED:
        return JobError(f"{error.name} is not installed.", "pip install spvit-deploy")
    return JobError(
        f"Unexpected {type(error).__name__}: {first_line(error)}.",
        "Run it with --debug, and report it.",
    )


def _fail(ctx: click.Context, error: SpvitError, alone: bool = False) -> None:
    if ctx.params.get("debug"):
        raise error
    line = " ".join(f"{error.message} {error.hint}".split())
    if is_first_process():
        click.echo(f"Error: {line}", err=True)
    elif alone or error.alone:
        click.echo(f"Error in process {rank()}: {line}", err=True)
    else:  # a launcher ends the others when one ends: let the first one report it
        time.sleep(_TO_SPEAK)
        if error.late:
            click.echo(f"Error in process {rank()}: {line}", err=True)
    ctx.exit(error.exit_code)
