"""Cold start: load time, first inference and memory of an artifact, in a process of its own.

A process that has measured others cannot tell what one of them takes. Nothing heavy is imported
here: what the measuring process loads counts as the artifact's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import psutil

from spvit_deploy.core.errors import JobError
from spvit_deploy.core.records import StrictModel
from spvit_deploy.runtimes.registry import find_runtime, open_session
from spvit_deploy.runtimes.timing import sample

_STATUS = Path("/proc/self/status")
# Seconds after which a process that hangs is given up.
_LIMIT = 600


class Start(StrictModel):
    """What a cold start took, in a process of its own.

    Attributes:
        load: seconds from a file to a session, libraries imported before.
        first: seconds of the first inference.
        idle_bytes: of memory, before the artifact was opened.
        peak_bytes: the most of it up to the end of some inferences.
        device_bytes: peak of the GPU's memory, where it is known.
    """

    load: float
    first: float
    idle_bytes: int
    peak_bytes: int
    device_bytes: int | None = None


def measure_cold_start(
    path: Path, runtime: str, device: str, threads: int | None, batch: int
) -> Start:
    """Open an artifact in a new process, as :func:`open_session`, and run it a few times.

    Raises:
        JobError: the process failed, or took more than ten minutes.
    """
    request = json.dumps([str(path), runtime, device, threads, batch])
    command = [sys.executable, "-m", "spvit_deploy.benchmarks.cold_start", request]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT, check=True)
        return Start.model_validate_json(done.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        raise JobError(f"{path} cannot be opened in a process of its own: {reason}.") from error
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        raise JobError(
            f"{path} gave no output in a process of its own.", "Leave the cold start out: --quick."
        ) from error


def _measure(path: Path, runtime: str, device: str, threads: int | None, batch: int) -> Start:
    resolve_name(find_runtime(runtime).session)
    idle = psutil.Process().memory_info().rss
    begin = time.perf_counter_ns()
    session = open_session(path, runtime, device, threads)
    loaded = time.perf_counter_ns()
    call = session.prepare(np.zeros((batch, *session.input.size), np.float32))
    call()
    first = time.perf_counter_ns()
    sample(call, 0)
    return Start(
        load=(loaded - begin) / 1e9,
        first=(first - loaded) / 1e9,
        idle_bytes=idle,
        peak_bytes=max(peak_bytes(), idle),
        device_bytes=_device_peak_bytes(session.device),
    )


def peak_bytes() -> int:
    """Return the most memory that this process held."""
    # `ru_maxrss` would do, had a new program not inherited it from what started it.
    if _STATUS.is_file():
        line = next(x for x in _STATUS.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _device_peak_bytes(device: str) -> int | None:
    """Read the most memory of the GPU that PyTorch held; None where it held none."""
    torch: Any = sys.modules.get("torch")
    if not device.startswith("cuda") or torch is None or not torch.cuda.is_available():
        return None
    return int(torch.cuda.max_memory_reserved()) or None


if __name__ == "__main__":
    path, *arguments = json.loads(sys.argv[1])
    print(_measure(Path(path), *arguments).model_dump_json())
