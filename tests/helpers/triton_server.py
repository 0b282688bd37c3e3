"""Small models for Triton, and the server that tests run them in."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spvit_deploy.families.timm_models import create_model
from spvit_deploy.lean.model_folder import dense_saved, save_model
from tests.conftest import tiny_spec
from tests.helpers.paths import ROOT

NAME = "digits"
# Made by `make serve-env`, and by `make test` where the server can be installed.
SERVER = ROOT / ".venv-triton"
needs_server = pytest.mark.skipif(
    not SERVER.exists(), reason=f"{SERVER.name} is missing: run `make serve-env`"
)


def save_dense(folder: Path, seed: int, classes: int = 10) -> Path:
    """Save a dense folder with random weights and class names."""
    spec = tiny_spec(num_classes=classes)
    torch.manual_seed(seed)
    saved = dense_saved(create_model(spec), spec)
    names = tuple(f"digit {index}" for index in range(classes))
    save_model(replace(saved, class_names=names), folder)
    return folder


def free_ports(count: int) -> list[int]:
    """Find free ports of this host."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def contents(folder: Path) -> dict[str, bytes]:
    """Read every file below a folder."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}
