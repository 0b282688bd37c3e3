"""``spvit-deploy inspect`` and ``doctor``."""

from __future__ import annotations

from typing import Any

import click

from spvit_deploy.cli.options import json_option, model_options


@click.command()
@click.argument("path", metavar="PATH_OR_MODEL")
@model_options
@json_option
def inspect(path: str, as_json: bool, **model: Any) -> None:
    """Show what a file, a folder or a timm model is, and whether it can be searched."""
    from spvit_deploy.workflows.console import print_facts
    from spvit_deploy.workflows.inspection import inspect_anything

    print_facts(inspect_anything(path, model["model_args"]), as_json)


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """List the runtimes, devices and versions of this host, and how to install what is missing."""
    from spvit_deploy.workflows.console import print_facts
    from spvit_deploy.workflows.inspection import doctor

    print_facts(doctor(), as_json)
