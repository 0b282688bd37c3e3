"""Options that commands share, and how errors leave the program. Loads click alone."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spvit_deploy.core.errors import InputError
from spvit_deploy.core.units import interval_text
from spvit_deploy.runtimes.info import distinct_options
from spvit_deploy.runtimes.registry import formats, shown_runtimes

if TYPE_CHECKING:
    from spvit_deploy.data.spec import DataSettings
    from spvit_deploy.lean.load_model import ModelRequest
    from spvit_deploy.runtimes.export_job import ExportSettings
    from spvit_deploy.runtimes.info import ExportOption, FormatInfo
    from spvit_deploy.training.lora import LoraSettings
    from spvit_deploy.training.run import RunSettings

Decorator = Callable[[Any], Any]
Folder = click.Path(path_type=Path)


class Number(click.FloatRange):
    """A number in a range; click's own takes nan for one, which is in every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Text → number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no number.", param, ctx)
        return number


def parsed(parse: Callable[[str], Any]) -> Callable[..., Any]:
    """A callback of click that parses an option's text; None stays None.

    Args:
        parse: raises ValueError or InputError, whose text says what is wrong.
    """

    def read(ctx: click.Context, option: click.Parameter, text: str | None) -> Any:
        try:
            return None if text is None else parse(text)
        except (ValueError, InputError) as error:
            raise click.BadParameter(str(error), ctx, option) from None

    return read


def stack(*decorators: Decorator) -> Decorator:
    """Several options as one decorator, in order."""

    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def _model_args(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    args: dict[str, Any] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key.isidentifier():
            raise click.BadParameter(f"'{value}': write KEY=VALUE, such as img_size=32.")
        try:
            parsed = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parsed = text
        if isinstance(parsed, tuple):
            parsed = list(parsed)
        if not isinstance(parsed, (str, int, float, bool, list, type(None))):
            raise click.BadParameter(f"'{value}': a number, text, True, False, None or (a, b).")
        args[key] = parsed
    return args


model_options = stack(
    click.option(
        "--model-arg", "model_args", metavar="K=V", multiple=True, callback=_model_args,
        help="Argument of timm.create_model: img_size=32, depth=6, … Repeat it for more.",
    ),
    click.option(
        "--checkpoint", type=Folder, metavar="FILE",
        help="Dense weights: .safetensors, .pth (never run as code), or a dense folder.",
    ),
    click.option("--pretrained", is_flag=True, help="Start from timm's pretrained weights."),
)  # fmt: skip

data_source_options = stack(
    click.option("--data-dir", metavar="ROOT", help="Folder that --data is looked up in."),
    click.option("--val-split", default="validation", show_default=True, help="Split to evaluate."),
    click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True),
    click.option(
        "--workers", type=click.IntRange(0), default=2, show_default=True,
        help="Loading processes.",
    ),
    click.option("--data-download", is_flag=True, help="Let timm fetch data that are missing."),
)  # fmt: skip

DATA_HELP = (
    "digits, folder/PATH, torch/fashion_mnist; wds/PATH: shards of WebDataset, a folder or "
    "train-{000..007}.tar; hfds/PATH or NAME: `datasets`, hfids/…: streamed."
)

images_options = stack(
    click.option("--train-split", default="train", show_default=True, help="Split to train on."),
    click.option(
        "--augment", type=click.Choice(["auto", "none", "shift", "timm"]), default="auto",
        show_default=True, help="shift: translations; timm: crops, flips, colour.",
    ),
)  # fmt: skip

fitting_options = stack(
    click.option("--lr", type=Number(0, min_open=True), default=5e-4, show_default=True),
    click.option("--weight-decay", type=Number(0), default=0.05, show_default=True),
    click.option(
        "--label-smoothing", type=Number(0, 1, max_open=True), default=0.0, show_default=True
    ),
    click.option("--amp", is_flag=True, help="bfloat16 autocast, for devices that are fast in it."),
    click.option(
        "--grad-checkpointing", is_flag=True,
        help="Compute activations again in the backward pass: less memory, more time.",
    ),
    click.option("--compile", is_flag=True, help="torch.compile: for long trainings on GPUs."),
    click.option("--seed", type=int, default=0, show_default=True),
)  # fmt: skip


def distill_options(teacher: str, weight: float) -> Decorator:
    """``--teacher`` and how it enters the loss: what the teacher is, and its share by default."""
    return stack(
        click.option("--teacher", metavar="MODEL", help=teacher),
        click.option(
            "--distillation", type=click.Choice(["soft", "hard"]), default="soft",
            show_default=True,
        ),
        click.option(
            "--distill-weight", type=Number(0, 1), default=weight, show_default=True,
            help="Share of the teacher in the loss" + ("." if weight else "; 0 for none."),
        ),
        click.option(
            "--distill-temperature", type=Number(0, min_open=True), default=2.0, show_default=True
        ),
    )  # fmt: skip


budget_options = stack(
    click.option(
        "--budget", required=True,
        help="What the lean model may cost: MACs, parameters, or time on a runtime; see below.",
    ),
    click.option(
        "--budget-on", type=click.Choice(["macs", "params"]), default="macs", show_default=True,
        help="What a budget without a runtime is about.",
    ),
    click.option(
        "--allow-host", is_flag=True,
        help="Take the times of a budget's file though they are another host's.",
    ),
)  # fmt: skip


def epochs_option(name: str = "--epochs", default: int = 10, what: str | None = None) -> Decorator:
    """Epochs of a training."""
    return click.option(name, type=click.IntRange(0), default=default, show_default=True, help=what)


train_options = stack(
    click.option("--data", required=True, metavar="SPEC", help=DATA_HELP),
    data_source_options, images_options, epochs_option(), fitting_options,
)  # fmt: skip

checkpoint_option = click.option(
    "--checkpoint-every", default="10m", show_default=True, metavar="10m|500|never",
    callback=parsed(interval_text), help="Time (s, m, h) or steps between checkpoints.",
)  # fmt: skip

run_options = stack(
    checkpoint_option,
    click.option(
        "--resume", is_flag=True,
        help="Go on from the last checkpoint of a run with this -o that was cut short.",
    ),
    click.option(
        "--tensorboard", type=Folder, metavar="DIR",
        help="Log for TensorBoard too, beside the log.jsonl of the output.",
    ),
)  # fmt: skip


def format_options(command: Any) -> Any:
    """Add the options of ``export`` that only some formats have, as the runtimes declare them."""
    for option in reversed(distinct_options(_formats().values()).values()):
        command = _format_option(option)(command)
    return command


def _format_option(option: ExportOption) -> Decorator:
    having = [name for name, form in _formats().items() if form.options_in({option.name: None})]
    kind: dict[str, dict[str, Any]] = {
        "flag": {"is_flag": True},
        "file": {"type": Folder},
        "texts": {"multiple": True},
    }
    return click.option(
        option.option,
        option.name,
        metavar=option.metavar,
        help=f"{option.help} ({', '.join(having)})",
        callback=None if option.parse is None else parsed(option.parse),
        show_default=option.default or False,
        **kind.get(option.kind, {}),
    )


def _formats() -> Mapping[str, FormatInfo]:
    return formats(shown_runtimes())


runtime_names = ", ".join(shown_runtimes())


device_option = click.option(
    "--device", default="auto", show_default=True, metavar="auto|cpu|cuda|cuda:N|mps"
)


def runtime_device_option(default: str) -> Decorator:
    """``--device`` of commands that run artefacts."""
    return click.option(
        "--device", default=default, show_default=True,
        metavar="auto|cpu|cuda|cuda:N|mps|tensorrt|openvino",
        help="Where it computes; tensorrt and openvino are execution providers of ONNX Runtime.",
    )  # fmt: skip


force_option = click.option("--force", is_flag=True, help="Replace the output if it exists.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def output_option(what: str) -> Decorator:
    """``-o``: the folder or file to write."""
    return click.option("-o", "--output", type=Folder, required=True, help=what)


def warn_if_idle(used: bool, names: Sequence[str], purpose: str) -> None:
    """Say of options that were given that this call has no use for them."""
    from spvit_deploy.core.progress import warn

    ctx = click.get_current_context()
    given = click.core.ParameterSource.COMMANDLINE
    for option in ctx.command.params:
        if not used and option.name in names and ctx.get_parameter_source(option.name) is given:
            warn(f"{option.opts[0]} is {purpose}, and changes nothing here.")


def take_layers(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    """``2,5,8,11`` as numbers."""
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdigit() for part in parts):
        raise click.BadParameter(f"'{value}' is no list of layers such as 2,5,8,11.", ctx, param)
    numbers = [int(part) for part in parts]
    if param.name == "feature_layers" and len(set(numbers)) < len(numbers):
        raise click.BadParameter(f"'{value}' names a layer twice.", ctx, param)
    return numbers


def take_adapters(_: click.Context, __: click.Parameter, value: str | None) -> LoraSettings | None:
    """Parse ``lora:r=8``."""
    from spvit_deploy.training.lora import LoraSettings

    return None if value is None else LoraSettings.parse(value)


def take_token_keep(_: click.Context, __: click.Parameter, value: str | None) -> Any:
    """Parse ``0.7@3,0.7@6``."""
    from spvit_deploy.token_merges import parse_token_keep

    return parse_token_keep(value)


_DATA_KEYS = {
    "data": "spec", "data_dir": "root", "train_split": "train_split", "val_split": "val_split",
    "batch_size": "batch_size", "workers": "workers", "augment": "augment",
    "data_download": "download",
}  # fmt: skip
_TRAIN_KEYS = (
    "epochs", "lr", "weight_decay", "label_smoothing", "amp", "grad_checkpointing", "compile",
    "seed", "distillation", "distill_weight", "distill_temperature",
)  # fmt: skip


def take_data(options: dict[str, Any]) -> DataSettings:
    """Take the data options out of a command's options."""
    from spvit_deploy.data.spec import DataSettings

    found = {field: options.pop(key) for key, field in _DATA_KEYS.items() if key in options}
    return DataSettings(**found)


def take_training(options: dict[str, Any]) -> dict[str, Any]:
    """Take the training options out of a command's options."""
    return {key: options.pop(key) for key in _TRAIN_KEYS if key in options}


def take_run(options: dict[str, Any]) -> RunSettings:
    """Take the options of :data:`run_options` out of a command's options."""
    from spvit_deploy.training.run import RunSettings

    names = ("checkpoint_every", "resume", "tensorboard")
    return RunSettings(**{name: options.pop(name) for name in names})


def take_model(name: str, options: dict[str, Any]) -> ModelRequest:
    """Take the options of :data:`model_options` out of a command's options."""
    from spvit_deploy.lean.load_model import ModelRequest

    args, checkpoint = options.pop("model_args"), options.pop("checkpoint")
    return ModelRequest.of(name, args, checkpoint, options.pop("pretrained"))


def take_export_settings(options: dict[str, Any]) -> ExportSettings:
    """Take what an export is to write out of a command's options.

    Raises:
        InputError: a batch that is neither ``dynamic`` nor a positive integer.
    """
    from spvit_deploy.runtimes.export_job import ExportSettings
    from spvit_deploy.workflows.export import with_options

    names = ("format", "precision", "batch", "opset", "outputs", "feature_layers",
             "with_preprocessing", "calibration", "max_drop", "validation",
             *distinct_options(_formats().values()))  # fmt: skip
    given = {name: options.pop(name) for name in names if name in options}
    return with_options(ExportSettings(), {k: v for k, v in given.items() if v is not None})
