"""The program: its options, and its commands."""

from __future__ import annotations

import logging

import click

from spvit_deploy._version import __version__
from spvit_deploy.cli.benchmark import benchmark
from spvit_deploy.cli.compare import compare
from spvit_deploy.cli.error_handling import Main
from spvit_deploy.cli.evaluate import evaluate
from spvit_deploy.cli.export import export
from spvit_deploy.cli.finetune import finetune
from spvit_deploy.cli.inspect import doctor, inspect
from spvit_deploy.cli.materialize import import_, materialize
from spvit_deploy.cli.predict import predict
from spvit_deploy.cli.recommend import recommend
from spvit_deploy.cli.report import report
from spvit_deploy.cli.run import demo, run
from spvit_deploy.cli.search import profile, search
from spvit_deploy.cli.serve import load, serve
from spvit_deploy.cli.sweep import sweep
from spvit_deploy.core.errors import InputError
from spvit_deploy.core.launcher import world_size

_CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True}


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
