"""Finds an installed Triton server, and runs it on a model repository."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from spvit_deploy.core.errors import InputError, JobError, RuntimeMissingError
from spvit_deploy.serving.client import import_tritonclient
from spvit_deploy.serving.config import read_models

# Release whose server nvidia-pytriton 0.7 ships.
_IMAGE = "nvcr.io/nvidia/tritonserver:24.10-py3"
# Seconds that a server may take to finish outstanding requests.
_SHUTDOWN = 10


@dataclass(frozen=True)
class Installation:
    """An installed server: ``tritonserver``, or the one that nvidia-pytriton installs.

    Attributes:
        environment: Python environment with nvidia-pytriton that it is part of.
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
    """Find the server at a path (``tritonserver``, or the folder of a Python environment with
    nvidia-pytriton), by default on PATH.

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


@dataclass(frozen=True)
class ServerSettings:
    """Address of a server, and how it finds new versions.

    Attributes:
        metrics: Port for Prometheus, or None.
        poll: Seconds between checks of the repository; with 0 it loads what clients request.
    """

    host: str = "127.0.0.1"
    http: int = 8000
    grpc: int = 8001
    metrics: int | None = None
    poll: int = 2

    @property
    def ports(self) -> dict[str, int]:
        """Ports by service."""
        found = {"http": self.http, "grpc": self.grpc}
        return found if self.metrics is None else {**found, "metrics": self.metrics}

    def arguments(self) -> list[str]:
        """Return the arguments of ``tritonserver``."""
        found = [f"--exit-timeout-secs={_SHUTDOWN}"]
        if self.metrics is None:
            found.append("--allow-metrics=false")
        for service, port in self.ports.items():
            found += [f"--{service}-address={self.host}", f"--{service}-port={port}"]
        if self.poll:
            return [*found, "--model-control-mode=poll", f"--repository-poll-secs={self.poll}"]
        return [*found, "--model-control-mode=explicit", "--load-model=*"]

    def check(self) -> None:
        """Check that the ports are free.

        Raises:
            InputError: One is in use, or given twice.
        """
        if len(set(self.ports.values())) < len(self.ports):
            raise InputError(
                f"Two ports are the same: {sorted(self.ports.values())}.", "Choose different ones."
            )
        for service, port in self.ports.items():
            with closing(socket.socket()) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    tried.bind((self.host, port))
                except OSError as error:
                    raise InputError(
                        f"Port {port} of {self.host} cannot be used: {error.strerror or error}.",
                        f"Choose another with --{service}-port.",
                    ) from None


class RunningServer:
    """A server process that was started; ``http`` and ``grpc`` are its URLs."""

    def __init__(
        self, process: subprocess.Popen[bytes], log: Path, settings: ServerSettings
    ) -> None:
        host = "127.0.0.1" if settings.host == "0.0.0.0" else settings.host
        self.http = f"http://{host}:{settings.http}"
        self.grpc = f"grpc://{host}:{settings.grpc}"
        self.process = process
        self._log = log

    def wait_ready(self, seconds: float) -> dict[str, list[int]]:
        """Wait until all models are loaded; return their versions by name.

        Raises:
            JobError: The server ended, or is not ready in time.
        """
        http, until = import_tritonclient("http"), time.monotonic() + seconds
        with closing(http.InferenceServerClient(self.http.partition("://")[2])) as client:
            while True:
                with suppress(OSError):  # it does not listen yet
                    if client.is_server_ready():
                        break
                if self.process.poll() is not None:
                    raise JobError(f"Triton ended during its start: {self.last_error()}")
                if time.monotonic() > until:
                    raise JobError(
                        f"Triton is not ready after {seconds:.0f} s: {self.last_error()}",
                        "Allow more with --wait.",
                    )
                time.sleep(0.05)
            found: dict[str, list[int]] = {}
            for row in client.get_model_repository_index():
                if row.get("state") == "READY":
                    found.setdefault(row["name"], []).append(int(row["version"]))
        return {name: sorted(versions) for name, versions in sorted(found.items())}

    def wait(self) -> None:
        """Wait until the server ends.

        Raises:
            JobError: It failed.
        """
        code = self.process.wait()
        if code < 0:
            raise JobError(f"Triton was killed by signal {-code}, {signal.Signals(-code).name}.")
        if code:
            raise JobError(f"Triton ended with code {code}: {self.last_error()}")

    def stop(self) -> None:
        """Stop the server; it answers outstanding requests first."""
        self.process.terminate()
        try:
            self.process.wait(_SHUTDOWN + 5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def last_error(self) -> str:
        """Return the last error in the server's log, or its last line."""
        lines = self._log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("E") and "CudaDriverHelper" not in line]
        found = [line.strip() for line in errors or lines if line.strip()]
        return found[-1].rpartition('] "')[2].rstrip('"') if found else "its log is empty."


@contextmanager
def run_server(
    repository: Path, installation: Installation, settings: ServerSettings, log: Path | None = None
) -> Iterator[RunningServer]:
    """Start a server, and stop it at the end of the block.

    Raises:
        InputError: There are no models, a backend is missing, or a port is in use.
    """
    _check(repository, installation)
    settings.check()
    with tempfile.TemporaryDirectory(prefix="spvit-triton-") as scratch:
        file = log or Path(scratch) / "log"
        command = [str(installation.binary), f"--model-repository={repository.absolute()}"]
        command += [*_backend_argument(installation, Path(scratch)), *settings.arguments()]
        with file.open("wb") as stream:
            try:
                process = subprocess.Popen(
                    command, env=installation.variables(), stdin=subprocess.DEVNULL,
                    stdout=stream, stderr=subprocess.STDOUT,
                )  # fmt: skip
            except OSError as error:
                raise InputError(
                    f"--server {installation.binary} does not start: {error.strerror or error}.",
                    "Name another.",
                ) from None
        server = RunningServer(process, file, settings)
        try:
            yield server
        finally:
            server.stop()


def _check(repository: Path, installation: Installation) -> None:
    models = read_models(repository)
    if not models:
        raise InputError(
            f"{repository}: no models there.", "Export one with `export --format triton`."
        )
    for name, config in models.items():
        if installation.stub is not None and config.backend != "python":
            raise InputError(
                f"{name} needs the backend '{config.backend}': nvidia-pytriton has only 'python'.",
                f"Export it with --backend python, or: {docker_command(repository)}",
            )


def _backend_argument(installation: Installation, scratch: Path) -> list[str]:
    """Link the Python backend with its program for this Python, which nvidia-pytriton separates."""
    if installation.stub is None:
        return []
    folder = scratch / "backends" / "python"
    folder.mkdir(parents=True)
    backend = installation.binary.parents[1] / "backends" / "python"
    for file in (*backend.iterdir(), installation.stub):
        (folder / file.name).symlink_to(file)
    return [f"--backend-directory={folder.parent}"]
