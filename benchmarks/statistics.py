"""Percentiles, and how sure a ratio of medians is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def percentile(samples: Sequence[float], share: float) -> float:
    """Linear percentile of samples, ``share`` in percent; NaN without samples."""
    return float(np.percentile(samples, share)) if len(samples) else float("nan")


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians with its bootstrap interval of 95%."""

    value: float
    low: float
    high: float

    def said(self) -> tuple[Ratio, str]:
        """How many times faster, or slower, the second one is: a ratio from 1 on, and the word."""
        if self.value >= 1:
            return self, "faster"
        return Ratio(1 / self.value, 1 / self.high, 1 / self.low), "slower"


def median_ratio(
    slow: Sequence[float], fast: Sequence[float], draws: int = 1000, seed: int = 0
) -> Ratio:
    """Median of ``slow`` over median of ``fast``, resampled ``draws`` times."""
    rng = np.random.default_rng(seed)
    a, b = np.asarray(slow), np.asarray(fast)
    tops = np.median(rng.choice(a, (draws, len(a))), axis=1)
    bottoms = np.median(rng.choice(b, (draws, len(b))), axis=1)
    low, high = np.percentile(tops / bottoms, [2.5, 97.5])
    return Ratio(float(np.median(a) / np.median(b)), float(low), float(high))
