"""Parity: whether the outputs of two forms of one model match."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel

from spvit_deploy.core.arrays import Array, OutputsRunner
from spvit_deploy.core.errors import ParityError
from spvit_deploy.core.records import StrictModel


class Tolerance(BaseModel):
    """How far outputs may differ: the largest difference of a score, as a fraction of the largest
    score (at least 1), and the smallest cosine of two score vectors.
    """

    absolute: float = 1e-4
    cosine: float = 0.9999


# bf16 keeps 8 bits of a number's 24: what its outputs differ by is its own rounding, grown over
# the depth of a model; the limit is there to catch a graph that is wrong.
# int8 is judged by its accuracy; parity says how far it is off.
TOLERANCES = {
    "fp32": Tolerance(),
    "fp16": Tolerance(absolute=1e-2, cosine=0.9999),
    "bf16": Tolerance(absolute=5e-2, cosine=0.999),
    "int8": Tolerance(absolute=0.5, cosine=0.95),
}


class ParityReport(StrictModel):
    """How two forms of one model compare.

    Attributes:
        max_abs: largest absolute difference of a score.
        max_rel: the same relative to the larger of the score and 1e-3 of the largest score.
        cosine: smallest cosine of two score vectors.
        top1: fraction of images with the same best class, those aside whose two best classes lie
            closer than the tolerance.
    """

    link: str
    samples: int
    batches: tuple[int, ...]
    max_abs: float
    max_rel: float
    cosine: float
    top1: float
    tolerance: Tolerance
    passed: bool

    def line(self) -> str:
        """One line for users."""
        verdict = "equal" if self.passed else "DIFFERENT"
        return (
            f"{self.link}: {verdict} on {self.samples} images, max abs {self.max_abs:.2e}, "
            f"max rel {self.max_rel:.2e}, cosine {self.cosine:.6f}, top-1 {100 * self.top1:.1f}%"
        )


def compare(
    link: str,
    reference: OutputsRunner,
    candidate: OutputsRunner,
    inputs: Sequence[Array],
    tolerance: Tolerance = TOLERANCES["fp32"],
    names: Sequence[str] = ("logits",),
) -> tuple[ParityReport, ...]:
    """Run both on the same batches, and report on each output, whether they agree or not.

    Args:
        link: what is compared with what, such as ``lean → onnx``.
        reference, candidate: [B, C, H, W] float32 → an output, [B, ...], for each of the names.
    """
    expected = [reference(batch) for batch in inputs]
    found = [candidate(batch) for batch in inputs]
    reports = []
    for index, name in enumerate(names):
        rows = [
            [np.asarray(outputs[index], dtype=np.float64) for outputs in batches]
            for batches in (expected, found)
        ]
        label = link if len(names) == 1 else f"{link}, {name}"
        reports.append(_report(label, rows[0], rows[1], tolerance))
    return tuple(reports)


def _report(
    link: str, expected: Sequence[Array], found: Sequence[Array], limits: Tolerance
) -> ParityReport:
    if not all(np.isfinite(a).all() for a in expected):
        raise ParityError(
            f"{link}: the model itself outputs NaN or infinity, so there is nothing to compare.",
            "Check its weights.",
        )
    same_shape = all(a.shape == b.shape for a, b in zip(expected, found, strict=True))
    batches = tuple(len(part) for part in expected)
    if not same_shape or not all(np.isfinite(b).all() for b in found):
        return ParityReport(
            link=link, samples=sum(batches), batches=batches, max_abs=float("inf"),
            max_rel=float("inf"), cosine=0, top1=0, tolerance=limits, passed=False,
        )  # fmt: skip
    a = np.concatenate([part.reshape(len(part), -1) for part in expected])
    b = np.concatenate([part.reshape(len(part), -1) for part in found])
    scale = max(1.0, float(np.abs(a).max()))
    gap = np.abs(a - b)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = float(((a * b).sum(1) / np.maximum(norms, 1e-30)).min()) if norms.all() else 1.0
    classes = expected[0].ndim == 2
    top1 = _agreement(a, b, limits.absolute * scale) if classes else 1.0
    return ParityReport(
        link=link,
        samples=len(a),
        batches=batches,
        max_abs=float(gap.max()),
        max_rel=float((gap / np.maximum(np.abs(a), 1e-3 * scale)).max()),
        cosine=min(cosine, 1.0),
        top1=top1,
        tolerance=limits,
        passed=bool(gap.max() <= limits.absolute * scale and cosine >= limits.cosine and top1 == 1),
    )


def _agreement(a: Array, b: Array, margin: float) -> float:
    if a.shape[1] < 2:
        return 1.0
    best = np.sort(a, axis=1)
    clear = best[:, -1] - best[:, -2] > 2 * margin
    same = a.argmax(1) == b.argmax(1)
    return float((same | ~clear).mean())


def require(
    reports: Sequence[ParityReport], hint: str = "Nothing was written; please report it."
) -> tuple[ParityReport, ...]:
    """Pass reports on, or refuse the first one whose outputs differ.

    Raises:
        ParityError: the outputs differ.
    """
    for report in reports:
        if not report.passed:
            raise ParityError(f"Parity failed at {report.line()}.", hint)
    return tuple(reports)


def random_inputs(size: tuple[int, int, int], batches: Sequence[int], seed: int = 0) -> list[Array]:
    """Normal noise of these batch sizes, [B, C, H, W] float32."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((batch, *size), dtype=np.float32) for batch in batches]
