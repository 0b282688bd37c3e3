"""The program: its options and commands, and how errors end it.

An error is one line and an exit code; there is a traceback only with ``--debug``.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import time
from typing import Any

import click

from spvit_deploy._version import __version__
from spvit_deploy.cli.benchmark import benchmark
from spvit_deploy.cli.compare import compare
from spvit_deploy.cli.evaluate import evaluate
from spvit_deploy.cli.export import export
from spvit_deploy.cli.finetune import finetune
from spvit_deploy.cli.inspect import doctor, inspect
from spvit_deploy.cli.materialize import import_, materialize
from spvit_deploy.cli.predict import predict
from spvit_deploy.cli.profile import profile
from spvit_deploy.cli.recommend import recommend
from spvit_deploy.cli.report import report
from spvit_deploy.cli.run import demo, run
from spvit_deploy.cli.search import search
from spvit_deploy.cli.serve import load, serve
from spvit_deploy.cli.sweep import sweep
from spvit_deploy.core.errors import InputError, JobError, SpvitError, first_line
from spvit_deploy.core.seeding import is_first_process, rank, world_size

# Seconds that the first of several processes may take to report what is wrong.
_TO_SPEAK = 10
# Packages of the core installation.
_NEEDED = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy", "PIL", "sklearn")
_CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True}


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


@click.group(cls=Main, context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="spvit-deploy")
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def main(ctx: click.Context, verbose: bool, debug: bool) -> None:
    """Take a trained Vision Transformer to the fastest engine whose outputs match.

    \b
    The pipeline:
      search → materialize → finetune → export → benchmark → report
    `spvit-deploy demo -o demo` runs it on a small model; `run` does so from one file.
    \f
    Raises:
        InputError: Several processes were launched for a command that takes one.
    """
    level = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(name)s: %(message)s")
    if world_size() > 1 and ctx.invoked_subcommand not in ("search", "finetune"):
        raise InputError(
            f"{ctx.invoked_subcommand} is for one process; {world_size()} were launched.",
            "Call it without a launcher.",
        )


for command in (
    search, profile, materialize, import_, finetune, export, evaluate, predict, benchmark, report,
    compare, recommend, sweep, serve, load, inspect, doctor, run, demo,
):  # fmt: skip
    main.add_command(command)
