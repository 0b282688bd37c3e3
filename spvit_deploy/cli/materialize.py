"""``spvit-deploy materialize`` and ``import``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spvit_deploy.cli.options import Folder, force_option, output_option


@click.command()
@click.argument("search_folder", metavar="DIR", type=Folder)
@click.option(
    "--checkpoint",
    type=Folder,
    metavar="DENSE",
    help="Dense weights, file or folder, where DIR is gates.json or a folder with it alone.",
)
@click.option("--pretrained", is_flag=True, help="Take timm's pretrained weights for such gates.")
@click.option(
    "--align",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Round MLP widths to multiples of N, by gate probability; a search did so already.",
)
@output_option("Lean folder to write.")
@force_option
def materialize(search_folder: Path, **options: Any) -> None:
    """Turn a search folder into a lean model: real convolutions, trimmed MLPs, no gates.

    DIR may also be a gates.json, with dense weights by --checkpoint or --pretrained; the result
    is then to be fine-tuned.
    """
    from spvit_deploy.workflows import console as show
    from spvit_deploy.workflows import stages as api

    show.model(api.materialize(search_folder, **options), options["output"])


@click.command("import")
@click.option("--config", type=Folder, required=True, help="The authors' .json or .yaml.")
@click.option(
    "--gates", type=Folder, help="FFN indicators; those that the config names if left out."
)
@click.option("--checkpoint", type=Folder, help="Fine-tuned or optimized weights.")
@output_option("Lean folder to write; without a checkpoint, a folder with gates.json.")
@force_option
def import_(**options: Any) -> None:
    """Import models and gates that SPViT's authors publish.

    \b
    Example: spvit-deploy import --config spvit_deit_bs_l008_t60_ft.json \\
               --gates spvit_deit_bs_l008_t60_search_10epoch.pth --checkpoint ckpt.pth -o lean/
    """
    from spvit_deploy.workflows import console as show
    from spvit_deploy.workflows import stages as api

    show.imported(api.import_model(**options), options["output"])
