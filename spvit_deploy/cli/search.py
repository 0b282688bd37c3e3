"""From dense to lean: ``search``, ``profile``, ``materialize``, ``import`` and ``finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spvit_deploy.cli.options import (
    Folder,
    Number,
    Positive,
    distill_options,
    model_options,
    output_options,
    precision_option,
    run_options,
    take_data,
    take_run,
    train_options,
    warn_if_idle,
)
from spvit_deploy.runtimes.registry import shown_runtimes


@click.command()
@click.option("--model", required=True, help="timm model name, or a dense folder.")
@model_options
@train_options
@click.option(
    "--budget",
    required=True,
    help="What the lean model may cost: MACs, parameters, or latency on a runtime; see below.",
)
@click.option(
    "--budget-on",
    type=click.Choice(["macs", "params"]),
    default="macs",
    help="What a budget without a runtime limits.",
)
@click.option("--allow-host", is_flag=True, help="Accept latencies from a file of another host.")
@click.option(
    "--budget-method",
    type=click.Choice(["lagrangian", "penalty"]),
    default="lagrangian",
    help="How the cost enters the loss: by a multiplier that is controlled so that the budget is "
    "met, or by the paper's penalty.",
)
@click.option(
    "--cost-weight",
    type=Number(0),
    default=20.0,
    help="With --budget-method penalty: λ of λ·(cost − target)², costs as fractions of the dense "
    "model's.",
)
@click.option(
    "--gate-lr",
    type=Number(0, min_open=True),
    help="Learning rate of the gates; chosen from the number of steps by default.",
)
@click.option(
    "--sharpness",
    type=Number(1),
    default=8.0,
    help="Inverse temperature of the gates' samples at the end: σ(κz) with κ rising from 1 to "
    "this; 1 as published.",
)
@click.option(
    "--probe",
    type=Positive,
    show_default="4 on a CPU, else 1",
    help="One image in so many measures what opening the closed gates would change; 1 for all.",
)
@click.option(
    "--align",
    type=Positive,
    default=8,
    help="Make MLP widths multiples of N, which runtimes multiply faster.",
)
@click.option(
    "--stop-when-settled",
    type=Positive,
    metavar="N",
    help="End after N epochs in which the plan converged: no block changed its operation, and "
    "hardly a hidden unit was added or removed.",
)
@click.option(
    "--head-map",
    type=click.Choice(["random", "matched"]),
    default="random",
    help="Heads that the kernels start from: random ones, or those that attend to the offset in "
    "the dense model, measured on a few batches.",
)
@click.option(
    "--dilated",
    is_flag=True,
    help="Let 3×3 convolutions over neighbors at a distance of two compete with plain ones.",
)
@click.option(
    "--head-gates", is_flag=True, help="Prune whole heads of attention, with a gate for each."
)
@click.option(
    "--candidate",
    "candidates",
    multiple=True,
    metavar="NAME",
    help="Candidate operation of an installed package to add; repeat it for several.",
)
@click.option(
    "--token-keep",
    metavar="FRACTION@BLOCK,…",
    help="Merge the most similar image tokens after a block, down to a fraction of them: 0.7@3 "
    "keeps 70% after blocks.3. Blocks behind have no convolution. Plain ViT and DeiT.",
)
@distill_options(
    "Dense or lean folder, or timm name, to distil from; by default the dense model as the search "
    "starts from it.",
    weight=0.0,
)
@run_options
@output_options("Search folder to write.")
def search(model: str, output: Path, **options: Any) -> None:
    """Train a supernet and its gates; choose the operation of each block and the MLP widths.

    For a budget in milliseconds on a runtime, the latency of each choice there is measured first,
    or read from a file that `spvit-deploy profile` wrote, perhaps on another host.

    \b
    Example: spvit-deploy search --model deit_small_patch16_224 --pretrained \\
               --data folder/imagenet --budget 50% -o search/
    Budgets: 50%  3.2G                          MACs of the lean model
             5M --budget-on params              parameters
             4ms@openvino  70%@onnxruntime      latency on a runtime, measured first
             2ms@tensorrt:latency.json          latency, from a file
             9ms@openvino,precision=bf16,batch=8,threads=4
    """
    from spvit_deploy.workflows.console import print_search
    from spvit_deploy.workflows.training import search_gates

    data, run = take_data(options), take_run(options)
    idle = ("teacher", "distillation", "distill_temperature")
    warn_if_idle(options["distill_weight"] > 0, idle, "for a --distill-weight above 0")
    print_search(search_gates(model, data, output, run=run, **options), output, options["align"])


@click.command()
@click.argument("models", metavar="MODEL | FILE…", nargs=-1, required=True)
@model_options
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    default=("onnxruntime",),
    help=f"{', '.join(shown_runtimes())}; repeat it for a table of each.",
)
@precision_option()
@click.option("--batch", type=Positive, default=1, help="Images per inference.")
@click.option("--threads", type=Positive, help="Threads of the runtime.")
@click.option("--device", metavar="cpu|cuda|cuda:N", help="Where the runtime computes.")
@click.option("--merge", is_flag=True, help="Put the tables of FILEs into one file instead.")
@output_options("latency.json to write.")
def profile(
    models: tuple[str, ...], merge: bool, output: Path, force: bool, **options: Any
) -> None:
    """Measure the latency of each choice of a search, for budgets such as 4ms@openvino.

    Every operation of every kind of block and MLPs of several widths are exported as small models
    and timed on the runtime itself, interleaved. The file can be taken to another host.

    \b
    Examples: spvit-deploy profile deit_small_patch16_224 --runtime openvino -o latency.json
              spvit-deploy search … --budget 4ms@openvino:latency.json --allow-host
              spvit-deploy profile --merge here.json there.json -o latency.json
    """
    from spvit_deploy.workflows.console import print_latency
    from spvit_deploy.workflows.latency_profile import merge_latencies, profile_latency

    warn_if_idle(not merge, tuple(options), "for measuring")
    if merge:
        file = merge_latencies(models, output, force)
    elif len(models) > 1:
        raise click.UsageError("Name one model; with --merge, files to put together.")
    else:
        file = profile_latency(models[0], output, force=force, **options)
    print_latency(file, output)


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


@click.command()
@click.argument("model", metavar="LEAN_OR_MODEL")
@model_options
@train_options
@distill_options("Dense folder or timm name to distil from.", weight=0.5)
@click.option(
    "--adapters",
    metavar="lora:r=N",
    help="Train changes of rank N to linear and 1×1 and 3×3 layers, the classifier and the norms: "
    "less memory for a large model. lora:r=8,alpha=16 scales them by alpha / r, 2 by default. They "
    "are merged at the end.",
)
@run_options
@output_options("Model folder to write.")
def finetune(model: str, output: Path, **options: Any) -> None:
    """Train a lean folder, a dense folder, or a timm model by name; distil with --teacher.

    \b
    Example: spvit-deploy finetune lean/ --data folder/imagenet --teacher deit_small_patch16_224 \\
               --epochs 30 -o tuned/
    """
    from spvit_deploy.workflows.console import print_model
    from spvit_deploy.workflows.training import finetune

    data, run = take_data(options), take_run(options)
    print_model(finetune(model, data, output, run=run, **options), output)
