"""Runs Triton's server on a repository, from where it is installed here."""

from __future__ import annotations

import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from spvit_deploy.core.errors import InputError, JobError
from spvit_deploy.serving.repository_layout import models_of
from spvit_deploy.serving.server_install import Installation, docker_command
from spvit_deploy.serving.tritonclient_import import triton_module

# Seconds that a server may take to end what it is at.
_ENDING = 10


@dataclass(frozen=True)
class Listening:
    """Where a server is to be reached, and how it looks for new versions.

    Attributes:
        host: address to listen at.
        http, grpc: ports.
        metrics: port for Prometheus, or None.
        poll: seconds between looks at the repository; 0 for none: clients say what to load.
    """

    host: str = "127.0.0.1"
    http: int = 8000
    grpc: int = 8001
    metrics: int | None = None
    poll: int = 2

    @property
    def ports(self) -> dict[str, int]:
        """Ports by the option that chooses each."""
        found = {"--http-port": self.http, "--grpc-port": self.grpc}
        return found if self.metrics is None else {**found, "--metrics-port": self.metrics}

    def check(self) -> None:
        """Refuse ports that are taken.

        Raises:
            InputError: says which.
        """
        if len(set(self.ports.values())) < len(self.ports):
            raise InputError("Two of the ports are the same.", "Give each its own.")
        for option, port in self.ports.items():
            with closing(socket.socket()) as tried:
                tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    tried.bind((self.host, port))
                except OSError as error:
                    raise InputError(
                        f"Port {port} of {self.host} cannot be had: {error.strerror or error}.",
                        f"Choose another {option}.",
                    ) from None


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class RunningServer:
    """A server that has been started.

    Attributes:
        http, grpc: URLs, as :class:`~spvit_deploy.serving.client.TritonTarget` takes them.
        process: the server's.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path, listening: Listening) -> None:
        host = "127.0.0.1" if listening.host == "0.0.0.0" else listening.host
        self.http = f"http://{host}:{listening.http}"
        self.grpc = f"grpc://{host}:{listening.grpc}"
        self.process = process
        self._log = log

    def wait_healthy(self, seconds: float) -> dict[str, list[int]]:
        """Wait until all models answer; returns their versions by name.

        Raises:
            JobError: the server ended, or is not ready in time; says its own last error.
        """
        http, until = triton_module("http"), time.monotonic() + seconds
        with closing(http.InferenceServerClient(self.http.partition("://")[2])) as client:
            while not self._ready(client):
                if self.process.poll() is not None:
                    raise JobError(f"Triton ended while it started: {self.last_error()}")
                if time.monotonic() > until:
                    raise JobError(
                        f"Triton is not ready after {seconds:.0f} s: {self.last_error()}",
                        "Give it more with --wait.",
                    )
                time.sleep(0.05)
            found: dict[str, list[int]] = {}
            for one in client.get_model_repository_index():
                if one.get("state") == "READY":
                    found.setdefault(one["name"], []).append(int(one["version"]))
        return {name: sorted(versions) for name, versions in sorted(found.items())}

    @staticmethod
    def _ready(client: Any) -> bool:
        try:
            return bool(client.is_server_ready())
        except OSError:  # nobody listens yet
            return False

    def wait(self) -> None:
        """Until the server ends.

        Raises:
            JobError: it failed.
        """
        code = self.process.wait()
        if code < 0:
            raise JobError(f"Triton was killed by signal {-code}, {signal.Signals(-code).name}.")
        if code:
            raise JobError(f"Triton ended with code {code}: {self.last_error()}")

    def stop(self) -> None:
        """End it; requests that it is at are answered first."""
        self.process.terminate()
        try:
            self.process.wait(_ENDING + 5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def last_error(self) -> str:
        """The last error in its log, or the last line."""
        lines = self._log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("E") and "CudaDriverHelper" not in line]
        said = [line.strip() for line in errors or lines if line.strip()]
        return said[-1].rpartition('] "')[2].rstrip('"') if said else "it said nothing."


@contextmanager
def run_server(
    repository: Path, installation: Installation, listening: Listening, log: Path | None = None
) -> Iterator[RunningServer]:
    """Start a server, and end it with the block.

    Args:
        repository: with the models.
        installation: of the server.
        listening: where it is reached.
        log: file for what it says; None for one that is thrown away.

    Raises:
        InputError: no models, a backend that it does not have, or a port in use.
    """
    _check(repository, installation)
    listening.check()
    with tempfile.TemporaryDirectory(prefix="spvit-triton-") as scratch:
        file = log or Path(scratch) / "log"
        backends = _backends(installation, Path(scratch))
        with file.open("wb") as stream:
            process = _start(repository, installation, listening, backends, stream)
        server = RunningServer(process, file, listening)
        try:
            yield server
        finally:
            server.stop()


def _check(repository: Path, installation: Installation) -> None:
    if not repository.is_dir():
        raise InputError(f"{repository}: no such folder.", "Make it by export --format triton.")
    models = models_of(repository)
    if not models:
        raise InputError(f"{repository} holds no models.", "Add one by export --format triton.")
    for name, config in models.items():
        if installation.backends is not None and config.backend not in installation.backends:
            raise InputError(
                f"{name} is for the backend '{config.backend}'; the server of nvidia-pytriton has "
                f"{', '.join(installation.backends)} alone.",
                f"Export it with --backend python, or: {docker_command(repository)}",
            )


def _backends(installation: Installation, scratch: Path) -> Path | None:
    """nvidia-pytriton keeps the backend and its programs for each Python apart."""
    if installation.stub is None:
        return None
    folder = scratch / "backends" / "python"
    folder.mkdir(parents=True)
    for file in (installation.binary.parents[1] / "backends" / "python").iterdir():
        (folder / file.name).symlink_to(file)
    (folder / installation.stub.name).symlink_to(installation.stub)
    return folder.parent


def _start(
    repository: Path,
    installation: Installation,
    listening: Listening,
    backends: Path | None,
    log: IO[bytes],
) -> subprocess.Popen[bytes]:
    command = [str(installation.binary), f"--model-repository={repository.absolute()}"]
    if backends is not None:
        command.append(f"--backend-directory={backends}")
    try:
        return subprocess.Popen(
            [*command, *_arguments(listening)],
            env=installation.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:
        raise InputError(
            f"{installation.binary} does not start: {error.strerror or error}.", "Name another."
        ) from None


def _arguments(listening: Listening) -> list[str]:
    found = [
        f"--http-address={listening.host}",
        f"--http-port={listening.http}",
        f"--grpc-address={listening.host}",
        f"--grpc-port={listening.grpc}",
        f"--exit-timeout-secs={_ENDING}",
    ]
    if listening.metrics is None:
        found.append("--allow-metrics=false")
    else:
        found += [f"--metrics-address={listening.host}", f"--metrics-port={listening.metrics}"]
    if listening.poll:
        return [*found, "--model-control-mode=poll", f"--repository-poll-secs={listening.poll}"]
    return [*found, "--model-control-mode=explicit", "--load-model=*"]
