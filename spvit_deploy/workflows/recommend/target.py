"""The target that a deployment has to meet."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from spvit_deploy.core.units import parse_duration

_LATENCY = re.compile(r"(p50|p90|p95|p99|p99\.9|latency)\s*<=?(.*)")
_RATE = re.compile(r"(?:throughput|images/s)\s*>=?\s*(\d*\.?\d+)\s*(?:/s)?")


@dataclass(frozen=True)
class Target:
    """A limit on one figure; without a limit, as good as it gets.

    Attributes:
        metric: ``latency`` of one image at a time, or ``throughput``.
        percent: percentile of the latency.
        limit: seconds, or images a second; None for none.
    """

    metric: Literal["latency", "throughput"] = "latency"
    percent: float = 50.0
    limit: float | None = None

    @property
    def name(self) -> str:
        """``p99`` or ``images/s``."""
        return f"p{self.percent:g}" if self.metric == "latency" else "images/s"

    def __str__(self) -> str:
        if self.limit is None:
            return f"best {self.name}"
        if self.metric == "latency":
            return f"{self.name} < {1000 * self.limit:g} ms"
        return f"{self.name} > {self.limit:g}"

    def holds(self, value: float) -> bool:
        """Tell whether a figure (seconds, or images a second) meets the limit."""
        if self.limit is None:
            return True
        return value < self.limit if self.metric == "latency" else value > self.limit


def parse_target(text: str) -> Target:
    """Parse ``p99<10ms``, ``latency<4ms`` (the median) or ``throughput>200/s``.

    Raises:
        ValueError: none of these.
    """
    plain = text.strip()
    latency, rate = _LATENCY.fullmatch(plain), _RATE.fullmatch(plain)
    if latency:
        percent = 50.0 if latency[1] == "latency" else float(latency[1][1:])
        return Target("latency", percent, parse_duration(latency[2]))
    if rate and float(rate[1]) > 0:
        return Target("throughput", 50.0, float(rate[1]))
    raise ValueError(f"'{text}': write p99<10ms, latency<4ms or throughput>200/s.")
