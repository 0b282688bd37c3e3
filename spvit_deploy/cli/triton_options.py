"""Options of `export --format triton`. Imports only click."""

from __future__ import annotations

from typing import Any

import click

from spvit_deploy.cli.options import Positive, stack
from spvit_deploy.core.errors import InputError
from spvit_deploy.runtimes.registry import shown_runtimes, triton_backends

TRITON = "triton"
_SERVING = ("backend", "max_batch", "queue_delay", "instances", "live_versions")


def _version(ctx: click.Context, param: click.Parameter, value: str | None) -> int | str | None:
    """Parse ``next``, or a version number that is valid in Triton."""
    if value in (None, "next"):
        return value
    if not value.isdecimal() or value[0] == "0" or int(value) >= 2**63:
        raise click.BadParameter(f"'{value}': expected a number from 1 on, or next.", ctx, param)
    return int(value)


triton_options = stack(
    click.option(
        "--backend", type=click.Choice([*triton_backends(shown_runtimes())]),
        help="With --format triton: what computes in the server; python runs ONNX Runtime from "
        "a model.py.", show_default="onnxruntime",
    ),
    click.option(
        "--model-name", metavar="NAME", help="With --format triton: by default the timm model's."
    ),
    click.option(
        "--model-version", metavar="N|next", callback=_version,
        show_default="1", help="With --format triton: version to write, beside others.",
    ),
    click.option(
        "--max-batch", type=Positive, metavar="N",
        show_default="8", help="With --format triton: images that the server batches at most.",
    ),
    click.option(
        "--queue-delay", type=click.IntRange(0), metavar="µs",
        show_default="0", help="With --format triton: microseconds that an image waits for others.",
    ),
    click.option(
        "--instances", type=Positive, metavar="N",
        show_default="1", help="With --format triton: copies that compute at the same time.",
    ),
    click.option(
        "--live-versions", type=Positive, metavar="N",
        show_default="1", help="With --format triton: how many of the newest versions are served.",
    ),
)  # fmt: skip


def take_triton(options: dict[str, Any]) -> dict[str, Any] | None:
    """Take the options of :data:`triton_options` out of a command's, as arguments of
    :func:`~spvit_deploy.serving.repository.export_triton`, with ``serving`` as a dict; None without
    ``--format triton``.

    Raises:
        InputError: One is given without ``--format triton``.
    """
    names = (*_SERVING, "model_name", "model_version")
    given = {name: value for name in names if (value := options.pop(name)) is not None}
    if options["format"] == TRITON:
        serving = {name: given[name] for name in _SERVING if name in given}
        named = {name: given.get(f"model_{name}") for name in ("name", "version")}
        return {"serving": serving, **named}
    for name in given:
        option = f"--{name.replace('_', '-')}"
        raise InputError(f"{option} is for --format {TRITON}.", "Omit it.")
    return None
