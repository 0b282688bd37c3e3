"""Provenance of a result: command, commit and environment."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

# Variables that change what runtimes do; others are private.
_PREFIXES = (
    "OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "ORT_", "OV_", "OPENVINO_", "DNNL_", "ONEDNN_",
    "CUDA_", "NVIDIA_", "TORCH_", "PYTORCH_", "MALLOC_", "LD_PRELOAD",
)  # fmt: skip


def provenance() -> dict[str, Any]:
    """Return ``command``, ``git`` and ``environment`` of :class:`ResultsFile`."""
    program = Path(sys.argv[0]).name if sys.argv else ""
    command = "spvit-deploy" if program == "__main__.py" else program
    return {
        "command": shlex.join([command, *sys.argv[1:]]),
        "git": _git(),
        "environment": {
            name: os.environ[name] for name in sorted(os.environ) if name.startswith(_PREFIXES)
        },
    }


def _git() -> str | None:
    """Read the commit of the working folder, with a plus where something in it is changed."""
    try:
        commit = _run_git("rev-parse", "--short=12", "HEAD")
        changed = _run_git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")


def _run_git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
