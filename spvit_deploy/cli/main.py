"""The command line. Every command parses, calls one function, and prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from spvit_deploy._version import __version__
from spvit_deploy.cli.benchmark import benchmark
from spvit_deploy.cli.compare import compare
from spvit_deploy.cli.options import (
    DATA_HELP,
    FORMATS,
    PRECISIONS,
    Folder,
    Main,
    Number,
    budget_options,
    data_source_options,
    device_option,
    distill_options,
    engine_options,
    force_option,
    json_option,
    model_options,
    output_option,
    run_options,
    runtime_device_option,
    take_adapters,
    take_data,
    take_engine_flags,
    take_layers,
    take_profile,
    take_run,
    take_token_keep,
    take_training,
    train_options,
    warn_if_idle,
)
from spvit_deploy.cli.predict import predict
from spvit_deploy.cli.recommend import recommend
from spvit_deploy.cli.serve import deploy, load, serve
from spvit_deploy.cli.sweep import sweep
from spvit_deploy.cli.triton_options import TRITON, take_triton, triton_options
from spvit_deploy.core.errors import InputError
from spvit_deploy.core.launcher import launched


@click.group(cls=Main, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="spvit-deploy")
@click.option("-v", "--verbose", is_flag=True, help="Say more about what is done.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def main(ctx: click.Context, verbose: bool, debug: bool) -> None:
    """Take a trained Vision Transformer to the fastest engine that still answers right.

    \b
    The way of a model:
      search → materialize → finetune → export → benchmark → report
    `spvit-deploy demo -o demo` walks it on a small model; `run` does so from one file.
    """
    import logging

    level = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(name)s: %(message)s")
    if launched() > 1 and ctx.invoked_subcommand not in ("search", "finetune"):
        raise InputError(
            f"{ctx.invoked_subcommand} is for one process; {launched()} were launched.",
            "Call it without a launcher.",
        )


@main.command()
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
                "token_keep"):  # fmt: skip
        training[key] = options.pop(key)
    idle = ("teacher", "distillation", "distill_temperature")
    warn_if_idle(training["distill_weight"] > 0, idle, "for a --distill-weight above 0")
    result = api.search_gates(data=data, settings=SearchSettings(**training), **options)
    show.search(result, options["output"], training["align"])


@main.command()
@click.argument("models", metavar="MODEL | FILE…", nargs=-1, required=True)
@model_options
@click.option(
    "--runtime",
    "runtimes",
    multiple=True,
    default=("onnxruntime",),
    show_default=True,
    help="onnxruntime, openvino, torch, torch-compile, executorch, tensorrt-rtx or tensorrt; "
    "repeat it for a table of each.",
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


@main.command()
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


@main.command("import")
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


@main.command()
@click.argument("model", metavar="LEAN_OR_MODEL")
@model_options
@train_options
@distill_options("Dense folder or timm name to distil from.", weight=0.5)
@click.option(
    "--adapters",
    metavar="lora:r=N",
    callback=take_adapters,
    help="Train changes of rank N to linear and 1×1 and 3×3 layers, the classifier and the norms: "
    "less memory for a large model. lora:r=8,alpha=16 scales them by alpha / r, 2 by default. They "
    "are merged in the end.",
)
@run_options
@device_option
@output_option("Model folder to write.")
@force_option
def finetune(**options: Any) -> None:
    """Train a lean folder, a dense folder, or a timm model by name; distil with --teacher.

    \b
    Example: spvit-deploy finetune lean/ --data folder/imagenet --teacher deit_small_patch16_224 \\
               --epochs 30 -o tuned/
    """
    from spvit_deploy.training.finetune import FinetuneSettings
    from spvit_deploy.workflows import console as show
    from spvit_deploy.workflows import stages as api

    data, training = take_data(options), take_training(options)
    options["run"] = take_run(options)
    training["adapters"] = options.pop("adapters")
    saved = api.finetune(data=data, settings=FinetuneSettings(**training), **options)
    show.model(saved, options["output"])


@main.command()
@click.argument("model", metavar="LEAN")
@model_options
@click.option("--format", type=click.Choice([*FORMATS, TRITON]), show_default="onnx")
@click.option("--precision", type=click.Choice(PRECISIONS), show_default="fp32")
@click.option(
    "--all",
    "every",
    is_flag=True,
    help="Every format that this machine can write, in every precision unless --precision chooses "
    "one; each in a folder of its own, timed.",
)
@click.option("--batch", default="dynamic", show_default=True, metavar="dynamic|N")
@click.option("--opset", type=click.IntRange(13, 25), help="ONNX operator set.")
@click.option(
    "--output",
    "outputs",
    type=click.Choice(["logits", "features", "all"]),
    help="Class scores, feature maps for dense prediction, or both; by default what the model's "
    "own forward returns.",
)
@click.option(
    "--feature-layers",
    callback=take_layers,
    metavar="N,N,…",
    help="Whose features, as timm counts layers; by default the last of every stage, or four "
    "evenly spaced blocks of a model without stages.",
)
@click.option(
    "--gpu",
    "gpus",
    multiple=True,
    metavar="SM",
    help="GPU that TensorRT for RTX builds for: sm86, sm120, … Repeat it; none has to be here.",
)
@click.option(
    "--profile",
    default="1,8,32",
    show_default=True,
    callback=take_profile,
    metavar="MIN,OPT,MAX",
    help="Batches of an engine with a dynamic batch.",
)
@engine_options
@triton_options
@click.option(
    "--calibration",
    type=click.IntRange(1),
    default=300,
    show_default=True,
    metavar="N",
    help="Training images that int8 is fitted on.",
)
@click.option(
    "--max-drop",
    type=Number(0),
    default=1.0,
    show_default=True,
    help="Points of top-1 that int8 may lose; the most harmful layers stay in fp32 until it holds.",
)
@click.option(
    "--validation",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    metavar="N",
    help="Validation images that a lower precision is judged on, spread over the split.",
)
@click.option(
    "--with-preprocessing",
    is_flag=True,
    help="Take uint8 images [batch, height, width, channels] of any size; resize, crop and "
    "normalize them inside (onnx, openvino).",
)
@click.option(
    "--data",
    metavar="SPEC",
    help="Real images, for the proof, int8, and the accuracy of fp16 and bf16. " + DATA_HELP,
)
@data_source_options
@click.option(
    "-o",
    "output",
    type=Folder,
    required=True,
    metavar="DIR",
    help="Folder to write: the artefact and export.json; with --format triton the repository.",
)
@force_option
def export(**options: Any) -> None:
    """Export a model and prove that the result answers as it does.

    LEAN is a lean, dense or search folder, or a timm model name. Where the answers differ,
    nothing is written and the exit code is 1.

    \b
    Examples: spvit-deploy export tuned/ --format onnx -o engine/
              spvit-deploy export tuned/ --output features -o backbone/
              spvit-deploy export tuned/ --all -o engines/
              spvit-deploy export tuned/ --format triton --backend python -o repo/
    """
    from spvit_deploy.workflows import console as show
    from spvit_deploy.workflows import stages as api

    triton = take_triton(options)
    named, options["data"] = bool(options["data"]), options["data"] or ""
    data, options["engine_flags"] = take_data(options), take_engine_flags(options)
    options["data"] = data if named else None
    if options.pop("every"):
        return _export_all(options)
    options["format"] = options["format"] or "onnx"
    options["precision"] = options["precision"] or "fp32"
    warn_if_idle(options["precision"] == "int8", ("calibration", "max_drop"), "for int8")
    if triton is not None:
        deploy(options, triton)
    else:
        show.export(api.export_model(**options), options["output"])


def _export_all(options: dict[str, Any]) -> None:
    from spvit_deploy.workflows import console as show
    from spvit_deploy.workflows.export_all import export_all, require_all

    if options.pop("format"):
        raise InputError("--all writes every format; --format chooses one.", "Leave one out.")
    rows = export_all(**options)
    show.exports(rows, options["output"])
    require_all(rows)


@main.command()
@click.argument("artefact", type=Folder)
@click.option("--data", required=True, metavar="SPEC", help=DATA_HELP)
@data_source_options
@click.option(
    "--runtime",
    help="onnxruntime, openvino, torch, torch-compile, executorch, tensorrt-rtx or tensorrt; the "
    "artefact's own by default.",
)
@runtime_device_option("auto")
@json_option
def evaluate(artefact: Path, runtime: str | None, device: str, as_json: bool, **data: Any) -> None:
    """Accuracy, MACs and parameters of a lean, dense or exported folder."""
    from spvit_deploy.workflows import console as show
    from spvit_deploy.workflows import stages as api

    show.evaluation(api.evaluate(artefact, take_data(data), runtime, device), as_json)


@main.command()
@click.argument("results", metavar="[results.json…]", type=Folder, nargs=-1)
@click.option("--plan", type=Folder, help="Lean folder or gates.json whose plan to draw.")
@click.option(
    "--search", type=Folder, help="Search folder: loss, cost against budget, gates over the steps."
)
@click.option("--png", is_flag=True, help="Write a picture too, with an installed Chromium.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["html", "md", "json"]),
    help="By the output's name if left out; html else.",
)
@output_option("report.html, .md or .json to write.")
@force_option
def report(results: tuple[Path, ...], form: str | None, output: Path, **options: Any) -> None:
    """Write one self-contained HTML page from results, a search, or both; or text of results."""
    from spvit_deploy.workflows.report import report_to_file

    kinds = {".md": "md", ".json": "json", ".html": "html", ".htm": "html", "": "html"}
    form = form or kinds.get(output.suffix.lower())
    if form is None:
        raise click.UsageError(f"-o {output}: write .html, .md or .json, or give --format.")
    if not results and (form != "html" or options["search"] is None):
        raise click.UsageError("Name results.json files, or for HTML a --search folder.")
    for path in report_to_file(results, output, form=form, **options):
        click.echo(f"wrote {path}")


@main.command()
@click.argument("path", metavar="PATH_OR_MODEL")
@model_options
@json_option
def inspect(path: str, as_json: bool, **model: Any) -> None:
    """Say what a file, a folder or a timm model is, and whether it can be searched."""
    from spvit_deploy.workflows import console as show
    from spvit_deploy.workflows import inspection

    show.facts(inspection.inspect_anything(path, model["model_args"]), as_json)


@main.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say which runtimes, devices and versions are here, and how to get what is missing."""
    from spvit_deploy.workflows import console as show
    from spvit_deploy.workflows import inspection

    show.facts(inspection.doctor(), as_json)


@main.command()
@click.argument("recipe", type=Folder, required=False)
@click.option("--init", is_flag=True, help="Write a commented recipe (recipe.yaml by default).")
@click.option("--force", is_flag=True, help="Do every stage again.")
def run(recipe: Path | None, init: bool, force: bool) -> None:
    """Walk the whole way from one file; stages whose inputs are unchanged are skipped."""
    from spvit_deploy.workflows.pipeline import run_file
    from spvit_deploy.workflows.recipe import write_template

    if init:
        click.echo(f"wrote {write_template(recipe or Path('recipe.yaml'), force)}")
    else:
        run_file(recipe, force)


@main.command()
@output_option("Folder to write.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--budget", default="50%", show_default=True, help="As `search` takes it: 70%@onnxruntime, …"
)
@click.option(
    "--png/--no-png", default=True, help="Picture of the report, where Chromium is installed."
)
@force_option
def demo(output: Path, seed: int, budget: str, png: bool, force: bool) -> None:
    """Walk the whole way with a small model on real images, in about two minutes."""
    from spvit_deploy.workflows.demo import run_demo

    run_demo(output, seed, png, force, budget)


main.add_command(benchmark)
main.add_command(recommend)
main.add_command(sweep)
main.add_command(predict)
main.add_command(compare)
main.add_command(serve)
main.add_command(load)


if __name__ == "__main__":
    main()
