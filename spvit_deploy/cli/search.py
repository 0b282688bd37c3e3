"""``spvit-deploy search``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spvit_deploy.cli.options import (
    Number,
    Positive,
    distill_options,
    model_options,
    output_options,
    run_options,
    take_data,
    take_run,
    train_options,
    warn_if_idle,
)


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
