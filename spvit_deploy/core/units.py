"""Times as people write them."""

from __future__ import annotations

import re

_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


def parse_latency(text: str) -> float:
    """Seconds of ``4ms``, ``0.8 ms``, ``250us`` or ``1s``.

    Raises:
        ValueError: none of these.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(us|µs|ms|s)\s*", text)
    seconds = float(match.group(1)) * _SECONDS[match.group(2)] if match else 0.0
    if not seconds:
        raise ValueError(f"'{text}': write 4ms, 250us or 0.5s.")
    return seconds
