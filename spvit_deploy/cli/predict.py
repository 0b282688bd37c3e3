"""``spvit-deploy predict``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from spvit_deploy.cli.options import Folder, json_option, runtime_device_option
from spvit_deploy.core.errors import JobError

if TYPE_CHECKING:
    from spvit_deploy.workflows.predict import Prediction


@click.command()
@click.argument("artefact", type=Folder)
@click.argument("images", metavar="IMAGE…", nargs=-1, required=True)
@click.option(
    "--top", type=click.IntRange(1), default=5, show_default=True, help="Classes an image."
)
@click.option(
    "--batch", type=click.IntRange(1), default=16, show_default=True, help="Images a call."
)
@click.option("--runtime", help="As `evaluate` takes it; the artefact's own by default.")
@runtime_device_option("auto")
@json_option
def predict(
    artefact: Path,
    images: tuple[str, ...],
    top: int,
    batch: int,
    runtime: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Classes of images, and how sure the model is of each.

    ARTEFACT is a lean, dense or exported folder, or a file from one. IMAGE is a file; a folder,
    with all images below it; or -: one image from standard input, or names of images, one a line.
    --json prints a line for each image. Images that cannot be read are said, and make the exit
    code 1.

    \b
    Examples: spvit-deploy predict engine/ cat.jpg photos/
              find . -name '*.png' | spvit-deploy predict engine/ - --json --top 1
    """
    from spvit_deploy.workflows.predict import predict_images

    pipe = sys.stdin.buffer
    failed = count = 0
    for found in predict_images(artefact, images, top, batch, runtime, device, pipe):
        count += 1
        failed += found.error is not None
        if as_json:
            click.echo(json_line(found))
        else:
            click.echo(text_line(found), err=found.error is not None)
    if failed:
        raise JobError(f"{failed} of {count} images could not be read.", "Mend or remove them.")


def text_line(found: Prediction) -> str:
    """For people."""
    if found.error is not None:
        return found.error
    named = (f"{g.label or f'class {g.index}'} {100 * g.score:.1f}%" for g in found.guesses)
    return f"{found.image}: {', '.join(named)}"


def json_line(found: Prediction) -> str:
    """For programs."""
    if found.error is not None:
        return json.dumps({"image": found.image, "error": found.error})
    guesses = [asdict(guess) for guess in found.guesses]
    return json.dumps({"image": found.image, "classes": guesses})
