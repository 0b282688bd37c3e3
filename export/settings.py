"""Checks of export settings, once, before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from spvit_deploy.core.errors import InputError
from spvit_deploy.runtimes.export_job import ExportSettings
from spvit_deploy.runtimes.info import FormatInfo, distinct_options, load_attribute
from spvit_deploy.runtimes.registry import find_format, formats, load_exporter

DEFAULT_OPSET = 20


def check_settings(settings: ExportSettings) -> ExportSettings:
    """Check settings against their format.

    Returns:
        The settings with the format's options typed, and the ONNX operator set that is written.

    Raises:
        InputError: no such format or precision, or settings that the format does not have.
        RuntimeMissingError: the package of the format's runtime is not installed.
    """
    form = find_format(settings.format, settings.precision)
    check_options(form, settings.options)
    if settings.opset is not None and not form.from_onnx:
        raise InputError(f"Format '{form.name}' has no ONNX operator set.", "Leave --opset out.")
    if settings.with_preprocessing and not form.takes_preprocessing:
        able = [name for name, other in formats().items() if other.takes_preprocessing]
        raise InputError(
            f"Format '{form.name}' takes images of one size, so it has no --with-preprocessing.",
            f"Leave it out, or choose --format {' or '.join(able)}.",
        )
    options = settings.options
    if form.check_options:
        options = load_attribute(form.check_options)(options, settings.precision)
    load_exporter(form)
    return replace(settings, options=options, opset=_opset(settings, form))


def _opset(settings: ExportSettings, form: FormatInfo) -> int | None:
    if not form.from_onnx:
        return None
    return max(settings.opset or DEFAULT_OPSET, form.min_opsets.get(settings.precision, 0))


def check_options(form: FormatInfo, options: Mapping[str, Any]) -> None:
    """Check that a format has these options.

    Raises:
        InputError: an unknown option, or one of other formats.
    """
    known = distinct_options(formats().values())
    for name in options:
        if name not in known:
            raise InputError(f"Unknown option '{name}'.", f"Formats have {', '.join(known)}.")
        option = known[name].option
        having = [other.name for other in formats().values() if other.options_in({name: None})]
        if name in form.unsupported:
            raise InputError(
                f"Format '{form.name}' has no {option}: {form.unsupported[name]}.",
                f"Leave it out, or choose --format {' or '.join(having)}.",
            )
        if form.name not in having:
            raise InputError(
                f"{option} is for --format {' or '.join(having)}; '{form.name}' was requested.",
                f"Leave it out, or choose --format {having[0]}.",
            )
