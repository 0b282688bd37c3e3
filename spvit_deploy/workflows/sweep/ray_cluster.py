"""Ray as a guest that says nothing, sends nothing and leaves nothing. Loads no Ray by itself."""

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

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_THRESHOLD_S": "600",
}
# Bytes of Ray's store of objects: settings alone pass through it.
_STORE = 100 << 20
# Seconds that Ray's processes may take to end.
_TO_END = 10
# Seconds in which a cluster takes a connection.
_TO_ANSWER = 5


@dataclass(frozen=True)
class Capacity:
    """What a cluster has.

    Attributes:
        nodes: hosts with processors.
        cpus: of all hosts.
        least: processors of the smallest host.
        gpus: of all hosts.
    """

    nodes: int
    cpus: int
    least: int
    gpus: int


@dataclass(frozen=True)
class Portion:
    """What each trial gets, and how many run at a time."""

    concurrent: int
    cpus: int
    gpus: int


def portion(capacity: Capacity, device: str, concurrent: int | None) -> Portion:
    """A GPU a trial where there are GPUs; else the processors in equal parts, one part a host.

    Args:
        capacity: of the cluster.
        device: ``auto|cpu|cuda|mps``.
        concurrent: trials at a time, as far as there are processors and GPUs for them; None for
            one a GPU, or one a host without.

    Raises:
        RuntimeMissingError: no GPU for ``cuda``.
    """
    on_gpu = device == "cuda" or (device == "auto" and capacity.gpus > 0)
    if on_gpu and not capacity.gpus:
        raise RuntimeMissingError(
            "Device 'cuda' was asked for; no node has a GPU.", "Choose --device cpu."
        )
    most = capacity.gpus if on_gpu else capacity.cpus
    count = max(1, min(concurrent or (capacity.gpus if on_gpu else capacity.nodes), most))
    cpus = max(1, min(capacity.cpus // count, capacity.least))
    return Portion(count, cpus, int(on_gpu))


def require_ray() -> None:
    """Raises RuntimeMissingError where Ray Tune is not installed."""
    missing = [name for name in ("ray", "pandas", "pyarrow") if not importlib.util.find_spec(name)]
    if missing:
        raise RuntimeMissingError(
            f"A sweep runs on Ray Tune; '{missing[0]}' is not here.",
            "pip install 'spvit-deploy[sweep]'",
        )


def check_address(address: str) -> None:
    """Refuse an address at which nobody answers, which Ray itself would try for minutes.

    Raises:
        InputError: so, or no address.
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
        with socket.create_connection((host.strip("[]"), int(port)), _TO_ANSWER):
            pass
    except OSError as error:
        raise _no_cluster(address, error.strerror or str(error)) from None


def _no_cluster(address: str, why: str) -> InputError:
    return InputError(
        f"No Ray cluster answers at '{address}': {why}.",
        "Start one with `ray start --head`, or leave --address out.",
    )


@contextmanager
def ray_started(root: Path, address: str | None) -> Iterator[Capacity]:
    """Ray on this host, with its files in a folder of its own that goes with it; or a cluster.

    Args:
        root: the sweep's folder, of which the name of that folder follows.
        address: of a cluster that runs; None for this host.

    Raises:
        InputError: no cluster answers.
    """
    with _environment(local=address is None):
        import ray

        try:
            with _scratch(root, address) as place:
                _start(ray, address, place)
                with _silent():
                    yield _capacity(ray)
        finally:
            ray.shutdown()
            if address is None:
                _remove(_place(root))


def _remove(place: Path) -> None:
    """Remove Ray's folder, into which its last processes may write for a moment more."""
    end = time.monotonic() + _TO_END
    while place.exists():
        shutil.rmtree(place, ignore_errors=True)
        if time.monotonic() > end:
            return
        time.sleep(0.1)


def _start(ray: Any, address: str | None, place: Path | None) -> None:
    options: dict[str, Any] = {"configure_logging": False, "log_to_driver": False}
    if address is None:
        options |= {
            "address": "local", "include_dashboard": False,
            # One level down, since Ray opens its own folder to everyone.
            "_temp_dir": str(place / "r") if place else None,
            "num_cpus": _processors(), "object_store_memory": _STORE,
        }  # fmt: skip
    else:
        options["address"] = address
    with _silent():
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


def _processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _scratch(root: Path, address: str | None) -> Iterator[Path | None]:
    if address is not None:
        yield None
        return
    place = _place(root)
    shutil.rmtree(place, ignore_errors=True)
    try:
        place.mkdir(mode=0o700)
    except OSError as error:
        raise StorageError(
            f"{place}: {error.strerror}; Ray's files go there.", "Remove it."
        ) from error
    yield place


def _place(root: Path) -> Path:
    """The same for each sweep, so that it clears away what was left when it was killed.

    The paths of Ray's sockets, which are in it, may be of about a hundred letters at most.
    """
    temp = Path("/tmp") if os.name == "posix" else Path(tempfile.gettempdir())
    owner = os.getuid() if hasattr(os, "getuid") else 0
    return temp / f"spvit-ray-{sha256_bytes(f'{owner} {root.absolute()}'.encode())[:8]}"


@contextmanager
def _environment(local: bool) -> Iterator[None]:
    """Ray is told by variables what it has no arguments for."""
    wanted = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    if local and not any(n in os.environ for n in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")):
        # Without one Ray writes it to the home; it keeps other users out of the trials' processes.
        wanted |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name in wanted:
            os.environ.pop(name, None)


@contextmanager
def _silent() -> Iterator[None]:
    """Failures are told by the sweep itself; with ``--debug`` Ray is_first_process too."""
    logger = logging.getLogger("ray")
    before = logger.level
    if logging.root.level > logging.DEBUG:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
