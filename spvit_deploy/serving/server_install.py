"""The Triton server to run: ``tritonserver``, or the one that nvidia-pytriton installs."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from spvit_deploy.core.errors import InputError, RuntimeMissingError

# Release whose server nvidia-pytriton 0.7 ships.
_IMAGE = "nvcr.io/nvidia/tritonserver:24.10-py3"


@dataclass(frozen=True)
class Installation:
    """An installed server.

    Attributes:
        binary: The program ``tritonserver``.
        environment: Python environment with nvidia-pytriton that it is part of, or None.
        stub: nvidia-pytriton's program for the Python backend in this environment.
    """

    binary: Path
    environment: Path | None = None
    stub: Path | None = None

    def variables(self) -> dict[str, str]:
        """Return the environment variables of the server's process."""
        found = dict(os.environ)
        if self.environment is not None:
            for name in ("PYTHONPATH", "PYTHONHOME"):  # those are for another Python
                found.pop(name, None)
            programs = self.environment.absolute() / "bin"
            found["PATH"] = f"{programs}{os.pathsep}{found.get('PATH', '')}"
            base = (programs / "python").resolve().parents[1]  # its lib may hold libpython
            packages = self.binary.parents[3]
            folders = [found.get("LD_LIBRARY_PATH", ""), packages / "nvidia_pytriton.libs"]
            found["LD_LIBRARY_PATH"] = os.pathsep.join(
                str(folder) for folder in (*folders, base / "lib") if folder
            )
        return found


def find_server(path: str | None, repository: Path) -> Installation:
    """Find the server at a path, by default on PATH.

    Args:
        path: ``tritonserver``, or the folder of a Python environment with nvidia-pytriton.
        repository: For the command of a container, where there is no server.

    Raises:
        InputError: There is no server at the path.
        RuntimeMissingError: There is none on PATH.
    """
    server = path or shutil.which("tritonserver")
    if server is None:
        raise RuntimeMissingError("tritonserver is not on PATH.", docker_command(repository))
    if Path(server).is_dir():
        return _in_environment(Path(server))
    if not os.access(server, os.X_OK):
        raise InputError(
            f"--server {server}: not a program.", "Name tritonserver, or a Python environment."
        )
    return Installation(Path(server).absolute())


def docker_command(repository: Path) -> str:
    """Return a hint that runs NVIDIA's container on a repository."""
    return (
        f"docker run --rm -p 8000:8000 -p 8001:8001 -v {repository.absolute()}:/models {_IMAGE} "
        "tritonserver --model-repository=/models; or name with --server an environment that has "
        "nvidia-pytriton."
    )


def _in_environment(folder: Path) -> Installation:
    servers = [*folder.absolute().glob("lib/python3*/site-packages/pytriton/tritonserver")]
    if not servers:
        raise InputError(
            f"--server {folder}: not a Python environment with nvidia-pytriton.",
            f"{folder}/bin/python -m pip install nvidia-pytriton onnxruntime",
        )
    version = servers[0].parents[2].name.removeprefix("python")
    stubs = servers[0] / "python_backend_stubs"
    stub = stubs / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise InputError(
            f"--server {folder}: nvidia-pytriton has no Python backend for Python {version}.",
            f"Use one of {', '.join(sorted(each.name for each in stubs.iterdir()))}.",
        )
    return Installation(servers[0] / "bin" / "tritonserver", folder, stub)
