"""Objects that other packages add through entry points."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from spvit_deploy.core.errors import ModelError

FAMILIES = "spvit_deploy.families"


def load_plugins(group: str = FAMILIES) -> list[Any]:
    """Load the entry points of a group; families register their models with timm.

    Raises:
        ModelError: A plug-in cannot be loaded.
    """
    return [_load(point) for point in entry_points(group=group)]


def _load(point: EntryPoint) -> Any:
    try:
        return point.load()
    except Exception as error:
        raise ModelError(
            f"The plug-in '{point.name}' ({point.value}) cannot be loaded: "
            f"{type(error).__name__}: {error}.",
            "Fix the package that it is in, or uninstall it.",
        ) from error
