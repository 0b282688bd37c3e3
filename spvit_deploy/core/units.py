"""Quantities as people write them: times, intervals, percentages."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(rf"\s*(\d+(?:\.\d+)?|\.\d+)\s*({'|'.join(_SECONDS)})\s*")


def parse_duration(text: str) -> float:
    """Return the seconds of ``250us``, ``4ms``, ``0.5 s``, ``10m`` or ``2h``.

    Raises:
        ValueError: It is none of these, or zero.
    """
    match = _DURATION.fullmatch(text)
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not seconds:
        raise ValueError(f"'{text}': expected a time such as 250us, 4ms, 0.5s, 10m or 2h.")
    return seconds


def parse_percent(text: str) -> float:
    """Return the percent of ``95`` or ``95.5%``.

    Raises:
        ValueError: It is neither, or above 100.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%?\s*", text)
    if not match or float(match[1]) > 100:
        raise ValueError(f"'{text}': expected 95 or 95.5%, up to 100.")
    return float(match[1])


@dataclass(frozen=True)
class Interval:
    """Training steps, or seconds, between two times that something is done; never without both."""

    steps: int | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        if self.steps is not None:
            return str(self.steps)
        return "never" if self.seconds is None else f"{self.seconds:g}s"

    @staticmethod
    def parse(text: str) -> Interval:
        """Read ``500`` (steps), ``30s``, ``10m``, ``2h`` or ``never``.

        Raises:
            ValueError: It is none of these.
        """
        plain = text.strip()
        if plain == "never":
            return Interval()
        if re.fullmatch(r"[1-9]\d*", plain):
            return Interval(steps=int(plain))
        try:
            return Interval(seconds=parse_duration(plain))
        except ValueError:
            raise ValueError(f"'{text}': expected 500 (steps), 30s, 10m, 2h or never.") from None
