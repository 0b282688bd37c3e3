"""Options that commands share, and how errors leave the program. Loads click alone."""

from __future__ import annotations

import ast
import errno
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spvit_deploy.core.errors import JobError, SpvitError
from spvit_deploy.core.launcher import rank, speaks

if TYPE_CHECKING:
    from spvit_deploy.data.sources import DataSettings
    from spvit_deploy.export.formats import EngineFlags
    from spvit_deploy.training.run import RunSettings

Decorator = Callable[[Any], Any]
Folder = click.Path(path_type=Path)
# What `export` writes; kept here by name, so that --help loads none of it.
FORMATS = ("onnx", "openvino", "tensorrt-rtx", "tensorrt", "torch", "executorch")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")

# Seconds that the first of several processes may take to say what is wrong.
_TO_SPEAK = 10


class Number(click.FloatRange):
    """A number in a range; click's own takes nan for one, which is in every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Text → number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no number.", param, ctx)
        return number


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


def _interval(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"[1-9]\d*[smh]?|never", value):
        raise click.BadParameter(
            f"'{value}': write 500 (steps), 30s, 10m, 2h or never.", ctx, param
        )
    return value


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
    callback=_interval, help="Time (s, m, h) or steps between checkpoints.",
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

engine_options = stack(
    click.option(
        "--timing-cache", type=Folder, metavar="FILE",
        help="Kernel timings that builds of TensorRT share; read, added to and written.",
    ),
    click.option(
        "--version-compatible", is_flag=True,
        help="A TensorRT engine that newer versions of the same major one run too.",
    ),
    click.option(
        "--hardware-compatible", is_flag=True,
        help="A TensorRT engine that every GPU from Ampere (sm80) on runs.",
    ),
    click.option(
        "--refittable", is_flag=True, help="A TensorRT engine whose weights can be replaced."
    ),
)  # fmt: skip

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


def take_profile(ctx: click.Context, param: click.Parameter, value: str) -> list[int]:
    """``1,8,32`` as numbers."""
    parts = [part.strip() for part in value.split(",")]
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise click.BadParameter(
            f"'{value}': give the smallest, the usual and the largest batch: 1,8,32.", ctx, param
        )
    return [int(part) for part in parts]


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


def take_adapters(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """``lora:r=8`` with all that it leaves open."""
    if value is None:
        return None
    from spvit_deploy.training.lora import LowRank

    return str(LowRank.parse(value))


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
# Packages of the core installation.
_NEEDED = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "numpy", "PIL", "sklearn")


def take_data(options: dict[str, Any]) -> DataSettings:
    """Take the data options out of a command's options."""
    from spvit_deploy.data.sources import DataSettings

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


def take_engine_flags(options: dict[str, Any]) -> EngineFlags:
    """Take the options of :data:`engine_options` out of a command's options."""
    from spvit_deploy.export.formats import EngineFlags

    names = ("timing_cache", "version_compatible", "hardware_compatible", "refittable")
    return EngineFlags(**{name: options.pop(name) for name in names})


class Main(click.Group):
    """Turns errors into one line and an exit code; a traceback only with ``--debug``."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.ClickException):
            raise
        except KeyboardInterrupt:
            _fail(ctx, JobError("Interrupted; outputs that were there before are as they were."))
        except SpvitError as error:
            _fail(ctx, error)
        except OSError as error:
            if error.errno == errno.EPIPE:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                ctx.exit(0)
            said = JobError(f"{error.filename or 'A file'}: {error.strerror or error}.")
            _fail(ctx, said, alone=True)
        except MemoryError:
            _fail(ctx, JobError("Out of memory.", "Try a smaller --batch-size."), alone=True)
        except Exception as error:
            _fail(ctx, _unexpected(error), alone=True)


def _unexpected(error: Exception) -> JobError:
    if isinstance(error, ModuleNotFoundError) and error.name in _NEEDED:
        return JobError(f"{error.name} is not installed.", "pip install spvit-deploy")
    text = " ".join(str(error).split())[:300]
    return JobError(
        f"Unexpected {type(error).__name__}: {text}.", "Run it with --debug, and report it."
    )


def _fail(ctx: click.Context, error: SpvitError, alone: bool = False) -> None:
    if ctx.params.get("debug"):
        raise error
    line = " ".join(f"{error.message} {error.hint}".split())
    if speaks():
        click.echo(f"Error: {line}", err=True)
    elif alone or error.alone:
        click.echo(f"Error in process {rank()}: {line}", err=True)
    else:  # a launcher ends the others when one ends: let the first one say it
        time.sleep(_TO_SPEAK)
        if error.late:
            click.echo(f"Error in process {rank()}: {line}", err=True)
    ctx.exit(error.exit_code)
