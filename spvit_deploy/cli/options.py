"""Options that commands share, and their conversion to settings. Imports only click."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spvit_deploy.core.errors import InputError
from spvit_deploy.runtimes.info import distinct_options
from spvit_deploy.runtimes.registry import PRECISIONS, formats, shown_runtimes

if TYPE_CHECKING:
    from spvit_deploy.runtimes.info import ExportOption, FormatInfo
    from spvit_deploy.training.run import RunSettings

Decorator = Callable[[Any], Any]
Folder = click.Path(path_type=Path)
Positive = click.IntRange(1)


class Number(click.FloatRange):
    """A finite number in a range; NaN is in every range of click's."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r}: expected a finite number.", param, ctx)
        return number


def parsed(parse: Callable[[str], Any]) -> Callable[..., Any]:
    """Make a callback that parses an option's text; ``parse`` raises ValueError or InputError."""

    def read(ctx: click.Context, option: click.Parameter, text: str | None) -> Any:
        try:
            return None if text is None else parse(text)
        except (ValueError, InputError) as error:
            raise click.BadParameter(str(error), ctx, option) from None

    return read


def stack(*decorators: Decorator) -> Decorator:
    """Combine several options into one decorator, in order."""

    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def _parse_model_args(
    _: click.Context, __: click.Parameter, values: tuple[str, ...]
) -> dict[str, Any]:
    args: dict[str, Any] = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key.isidentifier():
            raise click.BadParameter(f"'{value}': expected KEY=VALUE, such as img_size=32.")
        try:
            found = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found = text
        if isinstance(found, tuple):
            found = list(found)
        if not isinstance(found, (str, int, float, bool, list, type(None))):
            raise click.BadParameter(
                f"'{value}': expected a number, text, True, False, None or (a, b)."
            )
        args[key] = found
    return args


model_options = stack(
    click.option(
        "--model-arg", "model_args", metavar="K=V", multiple=True, callback=_parse_model_args,
        help="Argument of timm.create_model: img_size=32, depth=6, … Repeat it for more.",
    ),
    click.option(
        "--checkpoint", type=Folder, metavar="FILE",
        help="Dense weights: .safetensors, .pth (never run as code), or a dense folder.",
    ),
    click.option("--pretrained", is_flag=True, help="Start from timm's pretrained weights."),
)  # fmt: skip


def data_options(required: bool = True, purpose: str = "") -> Decorator:
    """Make ``--data``, with ``purpose`` as the first sentence of its help, and how it is read."""
    spec = click.option(
        "--data", "spec", required=required, metavar="SPEC",
        help=f"{purpose} digits, folder/PATH, torch/fashion_mnist; wds/PATH: shards of "
        "WebDataset, a folder or train-{000..007}.tar; hfds/PATH or NAME: `datasets`, hfids/…: "
        "streamed.".strip(),
    )  # fmt: skip
    return stack(spec, *_SOURCE_OPTIONS)


_SOURCE_OPTIONS = (
    click.option("--data-dir", "root", metavar="ROOT", help="Folder that --data is relative to."),
    click.option("--val-split", default="validation", help="Split to evaluate on."),
    click.option("--batch-size", type=Positive, default=64),
    click.option("--workers", type=click.IntRange(0), default=2, help="Loading processes."),
    click.option("--data-download", "download", is_flag=True, help="Download missing data."),
)

images_options = stack(
    click.option("--train-split", default="train", help="Split to train on."),
    click.option(
        "--augment", type=click.Choice(["auto", "none", "shift", "timm"]), default="auto",
        help="shift: translations; timm: crops, flips, color.",
    ),
)  # fmt: skip

fitting_options = stack(
    click.option("--lr", type=Number(0, min_open=True), default=5e-4),
    click.option("--weight-decay", type=Number(0), default=0.05),
    click.option("--label-smoothing", type=Number(0, 1, max_open=True), default=0.0),
    click.option("--amp", is_flag=True, help="bfloat16 autocast, for devices that are fast in it."),
    click.option(
        "--grad-checkpointing", is_flag=True,
        help="Compute activations again in the backward pass: less memory, more time.",
    ),
    click.option("--compile", is_flag=True, help="torch.compile: for long trainings on GPUs."),
    click.option("--seed", type=int, default=0),
)  # fmt: skip


def distill_options(teacher: str, weight: float) -> Decorator:
    """Make ``--teacher`` and the options of how it enters the loss."""
    more = "." if weight else "; 0 for none."
    return stack(
        click.option("--teacher", metavar="MODEL", help=teacher),
        click.option("--distillation", type=click.Choice(["soft", "hard"]), default="soft"),
        click.option(
            "--distill-weight", type=Number(0, 1), default=weight,
            help=f"Fraction of the teacher's term in the loss{more}",
        ),
        click.option("--distill-temperature", type=Number(0, min_open=True), default=2.0),
    )  # fmt: skip


def epochs_option(name: str = "--epochs", default: int = 10, what: str | None = None) -> Decorator:
    """Make an option for the epochs of a training."""
    return click.option(name, type=click.IntRange(0), default=default, help=what)


train_options = stack(data_options(), images_options, epochs_option(), fitting_options)

device_option = click.option("--device", default="auto", metavar="auto|cpu|cuda|cuda:N|mps")

checkpoint_option = click.option(
    "--checkpoint-every", default="10m", metavar="10m|500|never",
    help="Time (s, m, h) or steps between checkpoints.",
)  # fmt: skip

run_options = stack(
    checkpoint_option,
    click.option(
        "--resume", is_flag=True,
        help="Resume from the last checkpoint of an interrupted run with this -o.",
    ),
    click.option(
        "--tensorboard", type=Folder, metavar="DIR",
        help="Log for TensorBoard too, beside the log.jsonl of the output.",
    ),
    device_option,
)  # fmt: skip


def format_options(command: Any) -> Any:
    """Add the options of ``export`` that only some formats have, as the runtimes declare them."""
    for option in reversed(distinct_options(known_formats().values()).values()):
        command = _format_option(option)(command)
    return command


def _format_option(option: ExportOption) -> Decorator:
    having = [n for n, form in known_formats().items() if form.options_in({option.name: None})]
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


def known_formats() -> Mapping[str, FormatInfo]:
    """Return the formats of all runtimes that can be listed."""
    return formats(shown_runtimes())


def precision_option(default: str | None = "fp32") -> Decorator:
    """Make ``--precision``; without a default, fp32 is only shown as one."""
    choice = click.Choice(PRECISIONS)
    shown: bool | str = True if default else "fp32"
    return click.option("--precision", type=choice, default=default, show_default=shown)


def runtime_option(default: str) -> Decorator:
    """Make ``--runtime``; ``default`` says which one is chosen without it."""
    return click.option("--runtime", help=f"{', '.join(shown_runtimes())}; by default {default}.")


def runtime_device_option(default: str) -> Decorator:
    """Make ``--device`` of commands that run artifacts."""
    own = {name: info for info in shown_runtimes().values() for name in info.devices}
    of = " and ".join(dict.fromkeys(info.title for info in own.values()))
    return click.option(
        "--device",
        default=default,
        metavar="|".join(["auto|cpu|cuda|cuda:N|mps", *own]),
        help=f"Where it computes; {' and '.join(own)} are execution providers of {of}.",
    )


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


def output_options(what: str, force: str = "Replace the output if it exists.") -> Decorator:
    """Make ``-o``, the folder or file to write, and ``--force``."""
    return stack(
        click.option("-o", "--output", type=Folder, required=True, help=what),
        click.option("--force", is_flag=True, help=force),
    )


def given_options(ctx: click.Context) -> list[click.Parameter]:
    """Return the options of a command that are on its command line."""
    source = click.core.ParameterSource.COMMANDLINE
    return [p for p in ctx.command.params if ctx.get_parameter_source(p.name or "") is source]


def warn_if_idle(used: bool, names: Sequence[str], purpose: str) -> None:
    """Warn of options that were given and have no effect in this call."""
    from spvit_deploy.core.progress import warn

    for option in () if used else given_options(click.get_current_context()):
        if option.name in names:
            warn(f"{option.opts[0]} is {purpose}, and changes nothing here.")


def take_data(options: dict[str, Any]) -> Any:
    """Take the data options out of a command's options: DataSettings; None without ``--data``."""
    from spvit_deploy.data.spec import DataSettings

    fields = DataSettings.model_fields
    found = {name: options.pop(name) for name in fields if name in options}
    return DataSettings(**found) if found["spec"] else None


def take_run(options: dict[str, Any]) -> RunSettings:
    """Take the options of :data:`run_options` out of a command's options."""
    from spvit_deploy.training.run import RunSettings
    from spvit_deploy.workflows.keywords import replace_fields

    given = {name: options.pop(name) for name in RunSettings.model_fields}
    return replace_fields(RunSettings(), given)
