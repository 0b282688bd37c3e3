"""Pillow's resampling along one axis, as a matrix of weights that an ONNX graph computes."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import TensorProto

from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.runtimes.onnx.builder import Calls

# Pillow keeps 22 bits of a weight behind the point.
_FIXED = 2.0**22


class Axis:
    """One axis of a picture: which of its pixels make up those of the crop.

    Args:
        calls: of the graph.
        prep: what to do.
        side: pixels there are.
        resized: pixels there are to be.
        out: pixels that are cut out of these.
        axis: 0 for rows, 1 for columns.

    Attributes:
        weights: float32, [1, 1, out, side] for rows, [1, 1, side, out] for columns.
        inside: [out] bool, which pixels of the crop are of the picture.
    """

    def __init__(
        self, calls: Calls, prep: Preprocessing, side: str, resized: str, out: int, axis: int
    ) -> None:
        # Of the rank of images: for another, OpenVINO would make another product, see late.
        new, old = ((0, 1, 3), (0, 1, 2)) if axis == 0 else ((0, 1, 2), (0, 1, 3))
        steps = calls("Add", calls.wholes(range(out)), _offset(calls, resized, out))
        last = calls("Sub", resized, calls.whole(1))
        near = calls("Max", calls("Min", steps, last), calls.whole(0))
        self.inside = calls("Equal", near, steps)
        if prep.interpolation == "nearest":
            index = spread(calls, _nearest(calls, side, resized, near), new)
            same = calls("Equal", spread(calls, calls.upto(side), old), index)
            self.weights = calls("Cast", same, to=TensorProto.FLOAT)
            return
        here, there = _middles(calls, near, side), _middles(calls, calls.upto(side), resized)
        apart = calls("Sub", spread(calls, here, new), spread(calls, there, old))
        apart = _distances(calls, side, resized, apart)
        raw = (_cubic if prep.interpolation == "bicubic" else _triangle)(calls, apart)
        exact = _over(calls, raw, calls("ReduceSum", raw, calls.wholes([new[2]])), side)
        self.weights = _fixed_point(calls, exact)


def _offset(calls: Calls, resized: str, out: int) -> str:
    """Pixels before the crop; below 0 where the picture is padded. Halves go to the even one."""
    two, none = calls.whole(2), calls.whole(0)
    over = calls("Max", calls("Sub", resized, calls.whole(out)), none)
    under = calls("Max", calls("Sub", calls.whole(out), resized), none)
    half = calls("Div", over, two)
    odd = calls("Mul", calls("Mod", over, two), calls("Mod", half, two))
    return calls("Sub", calls("Add", half, odd), calls("Div", under, two))


def spread(calls: Calls, values: str, axes: Sequence[int]) -> str:
    """The values with further axes."""
    return calls("Unsqueeze", values, calls.wholes(axes))


def _middles(calls: Calls, pixels: str, others: str) -> str:
    """Middles of pixels, in whole numbers: twice (pixel + ½) · others."""
    twice = calls("Add", calls("Mul", pixels, calls.whole(2)), calls.whole(1))
    return calls("Mul", twice, others)


def _distances(calls: Calls, side: str, resized: str, apart: str) -> str:
    """Distances ≥ 0 of middles, float64, in widths of the filter: of the picture's pixels where it
    shrinks, else of those that it is resized to. Whole numbers until the end: float32, all that
    OpenVINO has, would know no pixel's place to better than 1e-5.
    """
    unit = calls("Mul", calls("Max", side, resized), calls.whole(2))
    high, low = (calls("Cast", one, to=TensorProto.DOUBLE) for one in (calls("Abs", apart), unit))
    return _over(calls, high, low, side)


def _fixed_point(calls: Calls, weights: str) -> str:
    """Weights with the 22 bits behind the point that Pillow keeps, as float32."""
    up = calls("Add", calls("Mul", weights, calls.double(_FIXED)), calls.double(0.5))
    fixed = calls("Mul", calls("Floor", up), calls.double(1 / _FIXED))
    return calls("Cast", fixed, to=TensorProto.FLOAT)


def _over(calls: Calls, value: str, by: str, side: str) -> str:
    """A quotient; not by Div, see :func:`late`."""
    inverse = calls("Pow", by, late(calls, calls.double(-1), side, TensorProto.DOUBLE))
    return calls("Mul", value, inverse)


def late(calls: Calls, constant: str, side: str, kind: int) -> str:
    """A constant that no runtime knows before there are pictures.

    OpenVINO rewrites quotients, powers and products of constants, and forgets which of them were
    to stay in fp32 where the model is not.
    """
    return calls("Mul", constant, calls("Cast", calls("Div", side, side), to=kind))


def _nearest(calls: Calls, side: str, resized: str, near: str) -> str:
    """The pixel that each one is, [out]. Pillow adds up doubles, whose last digit counts."""
    old, new = (calls("Cast", one, to=TensorProto.DOUBLE) for one in (side, resized))
    step = calls("Div", old, new)
    steps = calls("Expand", step, calls("Unsqueeze", resized, calls.wholes([0])))
    halves = calls("Mul", step, calls.double(0.5))
    first = calls("Where", calls("Equal", calls.upto(resized), calls.whole(0)), halves, steps)
    found = calls("Gather", calls("CumSum", first, calls.whole(0)), near)
    return calls("Cast", calls("Floor", found), to=TensorProto.INT64)


def _cubic(calls: Calls, apart: str) -> str:
    """Keys' cubic filter with a = -1/2, of distances ≥ 0."""
    inner = _polynomial(calls, apart, (1.5, -2.5, 0.0, 1.0))
    outer = _polynomial(calls, apart, (-0.5, 2.5, -4.0, 2.0))
    beyond = calls("Less", apart, calls.double(2))
    outer = calls("Where", beyond, outer, calls.double(0))
    return calls("Where", calls("Less", apart, calls.double(1)), inner, outer)


def _triangle(calls: Calls, apart: str) -> str:
    return calls("Max", calls("Sub", calls.double(1), apart), calls.double(0))


def _polynomial(calls: Calls, value: str, factors: tuple[float, ...]) -> str:
    """By Horner's rule, the highest power first."""
    found = calls("Mul", value, calls.double(factors[0]))
    for factor in factors[1:-1]:
        found = calls("Add", found, calls.double(factor)) if factor else found
        found = calls("Mul", found, value)
    return calls("Add", found, calls.double(factors[-1]))
