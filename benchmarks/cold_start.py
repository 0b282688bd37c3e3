"""Load time, first answer and memory of an artefact, in a process of its own.

A process that has measured others cannot tell what one of them takes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from spvit_deploy.benchmarks.starting import Start
from spvit_deploy.core.errors import JobError
from spvit_deploy.runtimes.info import load_attribute
from spvit_deploy.runtimes.registry import find_runtime, open_session

_CALLS = 5
_STATUS = Path("/proc/self/status")
# Seconds after which a process that hangs is given up.
_LIMIT = 600


def start_afresh(path: Path, runtime: str, device: str, threads: int | None, batch: int) -> Start:
    """Open an artefact in a new process, and call it a few times.

    Args:
        path, runtime, device, threads: as :func:`open_session`.
        batch: images a call.

    Raises:
        JobError: the process failed, or took more than ten minutes.
    """
    asked = json.dumps([str(path), runtime, device, threads, batch])
    command = [sys.executable, "-m", "spvit_deploy.benchmarks.cold_start", asked]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT, check=True)
        return Start.model_validate_json(done.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        raise JobError(f"{path} cannot be opened in a fresh process: {said}.") from error
    except (subprocess.TimeoutExpired, IndexError, ValueError) as error:
        raise JobError(f"{path} gave no answer in a fresh process.", "Try --no-start.") from error


def _measure(path: Path, runtime: str, device: str, threads: int | None, batch: int) -> Start:
    load_attribute(find_runtime(runtime).session)
    idle = psutil.Process().memory_info().rss
    begin = time.perf_counter_ns()
    session = open_session(path, runtime, device, threads)
    loaded = time.perf_counter_ns()
    images = np.zeros((batch, *session.input_size), np.float32)
    call = session.prepare(images)
    call()
    first = time.perf_counter_ns()
    for _ in range(_CALLS):
        call()
    return Start(
        load=(loaded - begin) / 1e9,
        first=(first - loaded) / 1e9,
        idle_bytes=idle,
        peak_bytes=max(_peak(), idle),
        device_bytes=_device_peak(session.device),
    )


def _peak() -> int:
    """Most memory that this process held.

    ``ru_maxrss`` would do, had a new program not inherited it from what started it.
    """
    if _STATUS.is_file():
        line = next(x for x in _STATUS.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _device_peak(device: str) -> int | None:
    """Of the GPU's memory, where PyTorch holds it."""
    torch: Any = sys.modules.get("torch")
    if not device.startswith("cuda") or torch is None or not torch.cuda.is_available():
        return None
    return int(torch.cuda.max_memory_reserved()) or None


def main() -> None:
    """Measure what the one argument says, and print it."""
    path, runtime, device, threads, batch = json.loads(sys.argv[1])
    print(_measure(Path(path), runtime, device, threads, batch).model_dump_json())


if __name__ == "__main__":
    main()
