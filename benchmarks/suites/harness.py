"""What suites share: results with the host that they were taken on, and peaks of memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spvit_deploy.benchmarks.host import read_host
from spvit_deploy.benchmarks.statistics import median_ratio

RESULTS = Path(__file__).parent / "results"


def save(name: str, record: dict[str, Any]) -> None:
    """Write ``results/NAME.json`` with the host's record."""
    RESULTS.mkdir(exist_ok=True)
    content = {**record, "host": read_host().model_dump(mode="json")}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


def print_ratio(label: str, slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """Compute, print and return the ratio of two medians with its interval."""
    ratio = median_ratio(slow, fast)
    print(f"{label}: {ratio.value:.2f}× ({ratio.low:.2f}–{ratio.high:.2f})", flush=True)
    return ratio.__dict__


def peak_in_process(side: str) -> int:
    """Run this program again with ``--memory SIDE``, and return the bytes that it prints."""
    command = [sys.executable, *sys.argv, "--memory", side]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def peak_resident() -> int:
    """Return the most bytes that this process held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
