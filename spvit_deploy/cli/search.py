"""``spvit-deploy search`` and ``profile``."""

from __future__ import annotations

from typing import Any

import click

from spvit_deploy.cli.options import (
    Number,
    budget_options,
    device_option,
    distill_options,
    force_option,
    model_options,
    output_option,
    run_options,
    runtime_names,
    take_data,
    take_run,
    take_token_keep,
    take_training,
    train_options,
    warn_if_idle,
)
from spvit_deploy.runtimes.registry import PRECISIONS


@click.command()
@click.option("--model", required=True, help="timm model name, or a dense folder.")
@model_options
@train_options
@budget_options
@click.option(
    "--budget-method",
    type=click.Choice(["lagrangian", "penalty"]),
    default="lagrangian",
    show_default=True,
    help="How the cost enters the loss: by a multiplier that is controlled so that the budget is "
    "met, or by the paper's penalty.",
)
@click.option(
    "--cost-weight",
    type=Number(0),
    default=20.0,
    show_default=True,
    help="With --budget-method penalty: λ of λ·(cost − target)², costs as shares of the dense "
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
    show_default=True,
    help="How sure draws of gates become: σ(κz) with κ rising from 1 to this; 1 as published.",
)
@click.option(
    "--probe",
    type=click.IntRange(1),
    default=None,
    show_default="4 on a CPU, else 1",
    help="One image in so many tells closed gates what opening them would change; 1 for all.",
)
@click.option(
    "--align",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="MLP widths in multiples of N, which runtimes multiply faster.",
)
@click.option(
    "--stop-when-settled",
    type=click.IntRange(1),
    metavar="N",
    help="End after N epochs in a row in which no block changed its operation, and hardly a hidden "
    "unit came or went.",
)
@click.option(
    "--head-map",
    type=click.Choice(["random", "matched"]),
    default="random",
    show_default=True,
    help="Which heads the kernels start from: random ones, or those that attend to the offset in "
    "the dense model, which a few batches tell.",
)
@click.option(
    "--dilated",
    is_flag=True,
    help="Let 3×3 convolutions over neighbours at a distance of two compete with plain ones.",
)
@click.option(
    "--head-gates",
    is_flag=True,
    help="Let attention lose whole heads, each by a gate of its own.",
)
@click.option(
    "--candidate",
    "candidates",
    multiple=True,
    metavar="NAME",
    help="Let an operation that an installed package adds compete as well; repeat it for several.",
)
@click.option(
    "--token-keep",
    metavar="SHARE@BLOCK,…",
    callback=take_token_keep,
    help="Merge the image tokens that are most alike after a block, down to a share of them: "
    "0.7@3 keeps 70% after blocks.3. Blocks behind have no convolution. Plain ViT and DeiT.",
)
@distill_options(
    "Dense or lean folder, or timm name, to distil from; by default the dense model as the search "
    "starts from it.",
    weight=0.0,
)
@run_options
@device_option
@output_option("Search folder to write.")
@force_option
def search(**options: Any) -> None:
    """Train a supernet and its gates; choose one operation a block and the MLP widths.

    A budget in milliseconds is about a runtime: what each choice costs there is measured first, or
    read from a file that `spvit-deploy profile` wrote, perhaps on another machine.

    \b
    Example: spvit-deploy search --model deit_small_patch16_224 --pretrained \\
               --data folder/imagenet --budget 50% -o search/
    Budgets: 50%  3.2G                          MACs of the lean model
             5M --budget-on params              parameters
             4ms@openvino  70%@onnxruntime      latency on a runtime, measured first
             2ms@tensorrt:latency.json          latency, by times from a file
             9ms@openvino,precision=bf16,batch=8,threads=4
    """
    from spvit_deploy.search.search import SearchSettings
    from spvit_deploy.workflows import console as show
    from spvit_deploy.workflows import stages as api

    data, training = take_data(options), take_training(options)
    options["run"] = take_run(options)
    for key in ("budget_on", "budget_method", "allow_host", "cost_weight", "gate_lr", "sharpness",
                "probe", "align", "stop_when_settled", "head_map", "dilated", "head_gates",
                "candidates", "token_keep"):  # fmt: skip
        training[key] = options.pop(key)
    idle = ("teacher", "distillation", "distill_temperature")
    warn_if_idle(training["distill_weight"] > 0, idle, "for a --distill-weight above 0")
    result = api.search_gates(data=data, settings=SearchSettings(**training), **options)
    show.search(result, options["output"], training["align"])


@click.command()
@click.argument("models", metavar="MODEL | FILE…", nargs=-1, required=True)
@model_options
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    default=("onnxruntime",),
    show_default=True,
    help=f"{runtime_names}; repeat it for a table of each.",
)
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option(
    "--batch", type=click.IntRange(1), default=1, show_default=True, help="Images a call."
)
@click.option("--threads", type=click.IntRange(1), help="Threads of the runtime.")
@click.option("--device", metavar="cpu|cuda|cuda:N", help="Where the runtime computes.")
@click.option("--merge", is_flag=True, help="Put the tables of FILEs into one file instead.")
@output_option("latency.json to write.")
@force_option
def profile(models: tuple[str, ...], merge: bool, force: bool, **options: Any) -> None:
    """Measure what each choice of a search costs in time, for budgets such as 4ms@openvino.

    Every operation of every kind of block and MLPs of several widths are exported as small models
    and timed in turns on the runtime itself. The file goes with the search to another machine.

    \b
    Examples: spvit-deploy profile deit_small_patch16_224 --runtime openvino -o latency.json
              spvit-deploy search … --budget 4ms@openvino:latency.json --allow-host
              spvit-deploy profile --merge here.json there.json -o latency.json
    """
    from spvit_deploy.workflows import console as show
    from spvit_deploy.workflows import stages as api

    output = options.pop("output")
    warn_if_idle(not merge, tuple(options), "for measuring")
    if merge:
        file = api.merge_latencies(models, output, force)
    elif len(models) > 1:
        raise click.UsageError("Name one model; with --merge, files to put together.")
    else:
        file = api.profile_latency(models[0], output, force=force, **options)
    show.latency(file, output)
