"""Start Ray, or join a cluster, without output, telemetry or files left behind.

Imports Ray only when it is started.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spvit_deploy.core.errors import InputError, RuntimeMissingError, StorageError, first_line
from spvit_deploy.core.files import sha256_bytes
from spvit_deploy.core.log_filters import quiet

# Settings for which Ray has no arguments.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_THRESHOLD_S": "600",
}
# Bytes of Ray's object store: only settings pass through it.
_STORE = 100 << 20
# Seconds that Ray's processes may take to end.
_END_TIMEOUT = 10
# Seconds in which a cluster accepts a connection.
_CONNECT_TIMEOUT = 5


@dataclass(frozen=True)
class Capacity:
    """What a cluster has: hosts, processors of all and of the smallest host, GPUs of all."""

    nodes: int
    cpus: int
    least: int
    gpus: int


@dataclass(frozen=True)
class Portion:
    """How many trials run at a time, and the processors and GPUs of each."""

    concurrent: int
    cpus: int
    gpus: int


def portion(capacity: Capacity, device: str, concurrent: int | None) -> Portion:
    """Divide a cluster among trials: a GPU for each, or equal numbers of processors.

    Args:
        concurrent: Trials at a time, at most one per GPU or processor; None for one per GPU, or
            one per host without GPUs.

    Raises:
        RuntimeMissingError: No GPU for ``cuda``.
    """
    on_gpu = device == "cuda" or (device == "auto" and capacity.gpus > 0)
    if on_gpu and not capacity.gpus:
        raise RuntimeMissingError(
            "Device 'cuda' was requested: no node has a GPU.", "Choose --device cpu."
        )
    most = capacity.gpus if on_gpu else capacity.cpus
    count = max(1, min(concurrent or (capacity.gpus if on_gpu else capacity.nodes), most))
    cpus = max(1, min(capacity.cpus // count, capacity.least))
    return Portion(count, cpus, int(on_gpu))


def require_ray() -> None:
    """Refuse to go on without Ray Tune.

    Raises:
        RuntimeMissingError: It is not installed.
    """
    for name in ("ray", "pandas", "pyarrow"):
        if not importlib.util.find_spec(name):
            raise RuntimeMissingError(
                f"A sweep needs Ray Tune: '{name}' is not installed.",
                "pip install 'spvit-deploy[sweep]'",
            )


def check_address(address: str) -> None:
    """Refuse an address that takes no connection; Ray would try it for minutes.

    Raises:
        InputError: Not an address, or no cluster there.
    """
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon or not port.isdigit() or int(port) > 65535:
        raise InputError(
            f"--address {address}: a sweep runs on a node of the cluster.",
            "Start it there, with --address auto or HOST:PORT.",
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT).close()
    except OSError as error:
        raise _no_cluster(address, error.strerror or str(error)) from None


def _no_cluster(address: str, reason: str) -> InputError:
    return InputError(
        f"No Ray cluster answers at '{address}': {reason}.",
        "Start one with `ray start --head`, or leave --address out.",
    )


@contextmanager
def ray_started(root: Path, address: str | None) -> Iterator[Capacity]:
    """Start Ray on this host, with its files in a temporary folder; or join a cluster.

    Raises:
        InputError: No cluster answers at ``address``.
        StorageError: Ray does not start.
    """
    place = _place(root)
    with _environment(local=address is None):
        import ray

        try:
            # The sweep reports failures itself.
            with quiet("ray", level=logging.CRITICAL):
                _start(ray, address, place)
                yield _capacity(ray)
        finally:
            ray.shutdown()
            if address is None:
                _remove(place)


def _place(root: Path) -> Path:
    """Return the temporary folder of a sweep, the same each time so that leftovers are removed.

    The paths of Ray's sockets, which are in it, may have about a hundred characters at most.
    """
    temp = Path("/tmp") if os.name == "posix" else Path(tempfile.gettempdir())
    owner = os.getuid() if hasattr(os, "getuid") else 0
    return temp / f"spvit-ray-{sha256_bytes(f'{owner} {root.absolute()}'.encode())[:8]}"


def _remove(place: Path) -> None:
    """Remove Ray's folder, into which its last processes may still write for a moment."""
    end = time.monotonic() + _END_TIMEOUT
    while place.exists() and time.monotonic() < end:
        shutil.rmtree(place, ignore_errors=True)
        time.sleep(0.1)


def _start(ray: Any, address: str | None, place: Path) -> None:
    options: dict[str, Any] = {"address": address, "configure_logging": False,
                               "log_to_driver": False}  # fmt: skip
    if address is None:
        shutil.rmtree(place, ignore_errors=True)
        try:
            place.mkdir(mode=0o700)
        except OSError as error:
            raise StorageError(
                f"{place}: {error.strerror}; Ray's files go there.", "Remove it."
            ) from error
        affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        options |= {
            "address": "local", "include_dashboard": False, "object_store_memory": _STORE,
            # One level down, since Ray opens its own folder to everyone.
            "_temp_dir": str(place / "r"),
            "num_cpus": affinity or os.cpu_count() or 1,
        }  # fmt: skip
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        if address is None:
            raise StorageError(f"Ray does not start: {first_line(error)}.") from error
        raise _no_cluster(address, first_line(error)) from error


def _capacity(ray: Any) -> Capacity:
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [int(resources["CPU"]) for resources in alive if resources.get("CPU")]
    gpus = sum(int(resources.get("GPU", 0)) for resources in alive)
    return Capacity(max(1, len(cpus)), max(1, sum(cpus)), min(cpus, default=1), gpus)


@contextmanager
def _environment(local: bool) -> Iterator[None]:
    """Set Ray's environment variables where the user has not set them."""
    wanted = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    if local and not any(n in os.environ for n in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")):
        # Keeps other users out of the trials' processes; Ray's own would be written to the home.
        wanted |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name in wanted:
            os.environ.pop(name, None)
