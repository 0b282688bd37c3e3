"""What a benchmark comes to, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from spvit_deploy.benchmarks.results import BenchmarkResult
from spvit_deploy.benchmarks.speedups import ratio_of
from spvit_deploy.benchmarks.statistics import Ratio

NAMES = {
    "torch": "PyTorch", "torch-compile": "torch.compile", "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO", "tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX",
    "executorch": "ExecuTorch",
}  # fmt: skip
# Points of accuracy that the best may lose.
_MAX_DROP = 1.0


@dataclass(frozen=True)
class Answer:
    """The fastest artefact, and what it is set against.

    Attributes:
        best: fastest of those that lose at most a point of accuracy, as far as it is known.
        base: the dense model in PyTorch where it was measured, else the slowest dense one, else
            the slowest; None where there is nothing else under the same terms.
        ratio: of the base's time over the best one's.
    """

    best: BenchmarkResult
    base: BenchmarkResult | None
    ratio: Ratio | None

    @property
    def drop(self) -> float | None:
        """Points of accuracy; negative for a loss; None where either is unknown."""
        if self.base is None or self.base.top1 is None or self.best.top1 is None:
            return None
        return self.best.top1 - self.base.top1

    def parts(self) -> tuple[str, str]:
        """What is best, and what of it."""
        size = f"{self.best.size_bytes / 1e6:,.0f} MB"
        if self.best.size_bytes < 10e6:
            size = f"{self.best.size_bytes / 1e6:.1f} MB"
        drop = "" if self.drop is None else f", {self.drop:+.1f} points".replace("-", "−")
        return named(self.best), f"{self._speed()}{drop}, {size}"

    def _speed(self) -> str:
        if self.base is None or self.ratio is None:
            return f"{1000 * self.best.p50:.2f} ms a call"
        if self.ratio.low != self.ratio.high and not self.ratio.differs:
            return f"no difference seen from {named(self.base)}"
        ratio, word = self.ratio.said()
        digits = 1 if ratio.value >= 10 else 2
        rows = (self.best, self.base)
        unsteady = " (unsteady)" if any(row.flagged for row in rows) else ""
        if any(2 * row.noisy > len(row.rounds) for row in rows):
            unsteady = " (most rounds noisy)"
        return f"{ratio.value:.{digits}f}× {word} than {named(self.base)}{unsteady}"

    def __str__(self) -> str:
        return ": ".join(self.parts())


def named(row: BenchmarkResult) -> str:
    """``tuned int8 in OpenVINO``."""
    runtime, _, provider = row.runtime.partition(":")
    low = row.precision if row.precision not in ("", "fp32") else ""
    precision = f" {low}" if low and low not in row.title else ""
    where = NAMES.get(runtime, runtime) + (f" with {provider}" if provider else "")
    return f"{row.title}{precision} in {where}"


def answer_of(rows: Sequence[BenchmarkResult]) -> Answer | None:
    """The answer for the first workload of the rows; None for no rows."""
    if not rows:
        return None
    alike = [row for row in rows if row.workload == rows[0].workload]
    base = _base(alike)
    fitting = [row for row in alike if _accurate(row, base)] or alike
    best = min(fitting, key=_slowness)
    if base is None or base is best or base.clock != best.clock:
        others = [row for row in alike if row is not best and row.clock == best.clock]
        base = max(others, key=_slowness, default=None)
    return Answer(best, base, None if base is None else ratio_of(base, best))


def _slowness(row: BenchmarkResult) -> float:
    if row.load is not None and row.load.rate is not None:
        return -row.load.rate
    return row.p50


def _accurate(row: BenchmarkResult, base: BenchmarkResult | None) -> bool:
    if base is None or base.top1 is None:
        return True
    return row.top1 is not None and row.top1 >= base.top1 - _MAX_DROP


def _base(rows: Sequence[BenchmarkResult]) -> BenchmarkResult | None:
    dense = [row for row in rows if row.kind == "dense"]
    torch = [row for row in dense if row.runtime == "torch"]
    return max(torch or dense, key=_slowness, default=None)
