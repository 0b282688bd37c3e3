"""Families from other packages: entry points of the group ``spvit_deploy.families``."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from spvit_deploy.core.errors import ModelError

ENTRY_POINTS = "spvit_deploy.families"


def load_plugins() -> list[Any]:
    """Import the family classes of installed plug-ins, which registers their models with timm.

    Raises:
        ModelError: a plug-in cannot be loaded.
    """
    return [_load(point) for point in entry_points(group=ENTRY_POINTS)]


def _load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:
        raise ModelError(
            f"The plug-in '{point.name}' ({point.value}) cannot be loaded: "
            f"{type(error).__name__}: {error}.",
            "Fix the package that it is in, or uninstall it.",
        ) from error
