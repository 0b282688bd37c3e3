"""Imports Triton's own Python client, an optional package, where it is needed."""

from __future__ import annotations

import importlib
from typing import Any

from spvit_deploy.core.errors import RuntimeMissingError


def import_tritonclient(module: str) -> Any:
    """Import a module of ``tritonclient``, such as ``grpc.aio``.

    Raises:
        RuntimeMissingError: It is not installed, or without what this module needs.
    """
    try:
        return importlib.import_module(f"tritonclient.{module}")
    except (ImportError, RuntimeError):  # the latter is its own, without gRPC or HTTP
        raise RuntimeMissingError(
            f"Triton needs tritonclient with {module.partition('.')[0]}, which is not installed.",
            "pip install 'spvit-deploy[triton]'",
        ) from None
