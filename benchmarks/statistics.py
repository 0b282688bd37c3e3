"""Percentiles where there are enough samples, and intervals of medians and their ratios."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import binom, median_abs_deviation

# Of MLPerf Inference's early stopping.
CONFIDENCE = 0.99
_DRAWS = 1000
_INTERVAL = (2.5, 97.5)


def percentile(samples: Sequence[float], percent: float) -> float:
    """Compute the linear percentile of samples; NaN without samples."""
    return float(np.percentile(samples, percent)) if len(samples) else float("nan")


def tail(samples: Sequence[float], percent: float) -> float | None:
    """Compute the percentile; None for fewer samples than it takes."""
    return percentile(samples, percent) if len(samples) >= samples_needed(percent) else None


@lru_cache
def samples_needed(percent: float) -> int:
    """Count the samples that a percentile takes by MLPerf Inference's rules: 64 for the 90th, 662
    for the 99th.
    """
    count = 2
    while _over(count, percent) < 1:
        count += 1
    return count


def _over(count: int, percent: float) -> int:
    """Count how many samples may lie beyond the percentile: where each does with the chance that
    it states, so few do with 1% at most; -1 where none may.
    """
    chance = 1 - percent / 100
    # ppf is the first with a chance of at least 1%.
    most = int(binom.ppf(1 - CONFIDENCE, count, chance))
    return most if binom.cdf(most, count, chance) <= 1 - CONFIDENCE else most - 1


def early_stopping(samples: Sequence[float], percent: float) -> float | None:
    """Bound a percentile from above with 99% confidence; None for too few samples.

    Source: MLPerf Inference rules, appendix "Early Stopping Criterion".
    """
    count = len(samples)
    over = _over(count, percent) if count else -1
    if over < 1:
        return None
    return float(np.partition(np.asarray(samples), count - over)[count - over])


def variation(samples: Sequence[float]) -> float:
    """Compute how far samples lie from their median, as a fraction of it: for a normal
    distribution its coefficient of variation, which outliers do not move.
    """
    return float(median_abs_deviation(samples, scale="normal") / np.median(samples))


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians with its bootstrap interval of 95%."""

    value: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Whether 1 is out of the interval."""
        return not self.low <= 1 <= self.high

    def in_words(self) -> tuple[Ratio, str]:
        """Put the ratio in words: how many times (from 1 on) the second one is faster or slower."""
        if self.value >= 1:
            return self, "faster"
        return Ratio(1 / self.value, 1 / self.high, 1 / self.low), "slower"


def median_ratio(slow: Sequence[float], fast: Sequence[float]) -> Ratio:
    """Compute the median of ``slow`` over the median of ``fast``, with its interval."""
    above, below = _medians(slow, fast)
    low, high = np.percentile(above / below, _INTERVAL)
    return Ratio(float(np.median(slow) / np.median(fast)), float(low), float(high))


def paired_ratio(slow: Sequence[float], fast: Sequence[float]) -> Ratio:
    """Compute the median of the ratios of interleaved rounds, from the medians of each round, with
    its interval over the rounds: what slows a whole round does not change the ratio.
    """
    ratios = np.asarray(slow) / np.asarray(fast)
    return Ratio(float(np.median(ratios)), *median_interval(ratios))


def median_interval(samples: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Compute the bootstrap interval of 95% of a median."""
    low, high = np.percentile(_medians(samples), _INTERVAL)
    return float(low), float(high)


def _medians(*rows: Sequence[float] | np.ndarray) -> list[np.ndarray]:
    """Draw the medians of resampled samples of each row, the same ones each time."""
    rng = np.random.default_rng(0)
    return [np.median(rng.choice(row, (_DRAWS, len(row))), axis=1) for row in rows]
