"""``spvit-deploy materialize`` and ``import``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spvit_deploy.cli.options import Folder, Positive, output_options


@click.command()
@click.argument("search_folder", metavar="DIR", type=Folder)
@click.option(
    "--checkpoint",
    type=Folder,
    metavar="DENSE",
    help="Dense weights, file or folder, where DIR is gates.json or a folder with only that.",
)
@click.option("--pretrained", is_flag=True, help="Take timm's pretrained weights for such gates.")
@click.option(
    "--align",
    type=Positive,
    default=1,
    help="Round MLP widths to multiples of N, by gate probability; a search did so already.",
)
@output_options("Lean folder to write.")
def materialize(search_folder: Path, output: Path, **options: Any) -> None:
    """Turn a search folder into a lean model: real convolutions, trimmed MLPs, no gates.

    DIR may also be a gates.json, with dense weights by --checkpoint or --pretrained; fine-tune
    the result then.
    """
    from spvit_deploy.workflows.console import print_model
    from spvit_deploy.workflows.materialize import materialize

    print_model(materialize(search_folder, output, **options), output)


@click.command("import")
@click.option("--config", type=Folder, required=True, help="The authors' .json or .yaml.")
@click.option(
    "--gates", type=Folder, help="FFN indicators; by default those that the config names."
)
@click.option("--checkpoint", type=Folder, help="Fine-tuned or optimized weights.")
@output_options("Lean folder to write; without a checkpoint, a folder with gates.json.")
def import_(output: Path, **options: Any) -> None:
    """Import models and gates that SPViT's authors publish.

    \b
    Example: spvit-deploy import --config spvit_deit_bs_l008_t60_ft.json \\
               --gates spvit_deit_bs_l008_t60_search_10epoch.pth --checkpoint ckpt.pth -o lean/
    """
    from spvit_deploy.workflows.console import print_imported
    from spvit_deploy.workflows.materialize import import_model

    print_imported(import_model(output=output, **options), output)
