"""Triton's own Python client, an extra, imported where it is needed."""

from __future__ import annotations

import importlib
from typing import Any

from spvit_deploy.core.errors import RuntimeMissingError


def triton_module(name: str) -> Any:
    """A module of ``tritonclient``, such as ``grpc.aio``.

    Raises:
        RuntimeMissingError: it is not installed, or without what this module needs.
    """
    try:
        return importlib.import_module(f"tritonclient.{name}")
    except (ImportError, RuntimeError):  # the latter is its own, where gRPC or HTTP are missing
        raise RuntimeMissingError(
            f"Triton needs tritonclient with {name.partition('.')[0]}, which is not installed.",
            "pip install 'spvit-deploy[triton]'",
        ) from None
