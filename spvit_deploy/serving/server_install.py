"""Where Triton's server is installed on this host."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from spvit_deploy.core.errors import InputError, RuntimeMissingError

# Names a server where no option does.
VARIABLE = "SPVIT_TRITON_SERVER"
# Release whose server is the one that nvidia-pytriton 0.7 ships.
_IMAGE = "nvcr.io/nvidia/tritonserver:24.10-py3"
_LOOK = (
    "import importlib.util as u, json, sys, sysconfig as s\n"
    "found = u.find_spec('pytriton')\n"
    "print(json.dumps([found and found.origin, '%d.%d' % sys.version_info[:2],"
    " s.get_config_var('LIBDIR') or '']))"
)


@dataclass(frozen=True)
class Installation:
    """A server.

    Attributes:
        binary: of it.
        python: folder with the interpreter whose packages the Python backend uses; None for the
            one on PATH.
        stub: of nvidia-pytriton: the Python backend's own program for that interpreter.
        libraries: folders that its shared libraries are looked up in.
    """

    binary: Path
    python: Path | None = None
    stub: Path | None = None
    libraries: tuple[Path, ...] = ()

    @property
    def backends(self) -> tuple[str, ...] | None:
        """Backends that it has; None where that is not known."""
        return None if self.stub is None else ("python",)

    def environment(self) -> dict[str, str]:
        """Variables that its process needs."""
        found = dict(os.environ)
        if self.python is not None:
            for name in ("PYTHONPATH", "PYTHONHOME"):  # those are of another Python
                found.pop(name, None)
            found["PATH"] = f"{self.python}{os.pathsep}{found.get('PATH', '')}"
        if self.libraries:
            before = [found["LD_LIBRARY_PATH"]] if found.get("LD_LIBRARY_PATH") else []
            found["LD_LIBRARY_PATH"] = os.pathsep.join([*before, *map(str, self.libraries)])
        return found


def find_server(named: str | None, repository: Path) -> Installation:
    """A server: the one that is named, or that ``SPVIT_TRITON_SERVER`` names, or on PATH.

    Args:
        named: the program; or a Python environment that has nvidia-pytriton, its folder or its
            interpreter.
        repository: for the command of a container, where there is none.

    Raises:
        InputError: what is named is none.
        RuntimeMissingError: there is none.
    """
    named = named or os.environ.get(VARIABLE)
    if not named:
        found = shutil.which("tritonserver")
        if found is None:
            raise RuntimeMissingError("No tritonserver is on PATH.", docker_command(repository))
        return Installation(Path(found))
    path = Path(named)
    if path.is_dir() or path.name.startswith("python"):
        return _of_environment(path)
    if not os.access(path, os.X_OK):
        raise InputError(f"{path} is no program.", "Name tritonserver, or an environment.")
    return Installation(path.absolute())


def docker_command(repository: Path) -> str:
    return (
        f"docker run --rm -p 8000:8000 -p 8001:8001 -v {repository.absolute()}:/models {_IMAGE} "
        "tritonserver --model-repository=/models; or name with --server an environment that has "
        "nvidia-pytriton."
    )


def _of_environment(path: Path) -> Installation:
    """The server that nvidia-pytriton brought into an environment.

    Raises:
        InputError: it did not, or not for this Python.
    """
    python = path / "bin" / "python" if path.is_dir() else path
    try:
        said = subprocess.run([python, "-c", _LOOK], capture_output=True, text=True, check=True)
        origin, version, libraries = json.loads(said.stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        raise InputError(f"{path} is no Python environment.", "Name its folder.") from None
    if not origin:
        raise InputError(
            f"{path} has no nvidia-pytriton.",
            f"{python} -m pip install nvidia-pytriton onnxruntime",
        )
    home = Path(origin).parent
    stub = home / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise InputError(
            f"nvidia-pytriton in {path} has no Python backend for Python {version}.",
            f"It has one for {', '.join(sorted(p.name for p in stub.parents[1].iterdir()))}.",
        )
    return Installation(
        home / "tritonserver" / "bin" / "tritonserver",
        python.absolute().parent,
        stub,
        (home.parent / "nvidia_pytriton.libs", Path(libraries)),
    )
