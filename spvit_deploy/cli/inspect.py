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
    """Say what a file, a folder or a timm model is, and whether it can be searched."""
    from spvit_deploy.workflows import console as show
    from spvit_deploy.workflows import inspection

    show.facts(inspection.inspect_anything(path, model["model_args"]), as_json)


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say which runtimes, devices and versions are here, and how to get what is missing."""
    from spvit_deploy.workflows import console as show
    from spvit_deploy.workflows.doctor import doctor as examine

    show.facts(examine(), as_json)
