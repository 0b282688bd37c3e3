"""What other packages add, as entry points of a group."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from spvit_deploy.core.errors import InputError


def load_plugins(group: str) -> list[Any]:
    """Load the objects that installed packages register for a group.

    Raises:
        InputError: A plug-in cannot be loaded.
    """
    found = []
    for point in entry_points(group=group):
        try:
            found.append(point.load())
        except Exception as error:
            raise InputError(
                f"The plug-in '{point.name}' ({point.value}) cannot be loaded: "
                f"{type(error).__name__}: {error}.",
                "Fix the package that it is in, or uninstall it.",
            ) from error
    return found
