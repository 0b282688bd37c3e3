"""Pillow's resampling along one axis, as a weight matrix that an ONNX graph computes."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import TensorProto

from spvit_deploy.core.preprocessing import Preprocessing
from spvit_deploy.runtimes.onnx.builder import GraphBuilder

# Pillow keeps 22 fractional bits of a weight.
_FIXED = 2.0**22


class Axis:
    """Resampling weights of one axis, from the image's pixels to those of the crop.

    Args:
        op: Builder of the graph.
        prep: Preprocessing to follow.
        side: Pixels of the image.
        resized: Pixels of the resized image.
        out: Pixels of the crop.
        axis: 0 for rows, 1 for columns.

    Attributes:
        weights: float32, [1, 1, out, side] for rows, [1, 1, side, out] for columns.
        inside: bool [out], whether a pixel of the crop lies in the image.
    """

    def __init__(
        self, op: GraphBuilder, prep: Preprocessing, side: str, resized: str, out: int, axis: int
    ) -> None:
        # Of the rank of images: with another, OpenVINO rewrites the product, see runtime_constant.
        new, old = ((0, 1, 3), (0, 1, 2)) if axis == 0 else ((0, 1, 2), (0, 1, 3))
        steps = op("Add", op.integers(range(out)), _offset(op, resized, out))
        last = op("Sub", resized, op.integer(1))
        near = op("Max", op("Min", steps, last), op.integer(0))
        self.inside = op("Equal", near, steps)
        if prep.interpolation == "nearest":
            index = unsqueeze(op, _nearest(op, side, resized, near), new)
            same = op("Equal", unsqueeze(op, op.arange(side), old), index)
            self.weights = op("Cast", same, to=TensorProto.FLOAT)
            return
        here, there = _centers(op, near, side), _centers(op, op.arange(side), resized)
        apart = op("Sub", unsqueeze(op, here, new), unsqueeze(op, there, old))
        apart = _distances(op, side, resized, apart)
        raw = (_cubic if prep.interpolation == "bicubic" else _triangle)(op, apart)
        exact = _divide(op, raw, op("ReduceSum", raw, op.integers([new[2]])), side)
        self.weights = _fixed_point(op, exact)


def _offset(op: GraphBuilder, resized: str, out: int) -> str:
    """Compute the pixels before the crop (negative: padding), with halves rounded to even."""
    two, none = op.integer(2), op.integer(0)
    over = op("Max", op("Sub", resized, op.integer(out)), none)
    under = op("Max", op("Sub", op.integer(out), resized), none)
    half = op("Div", over, two)
    odd = op("Mul", op("Mod", over, two), op("Mod", half, two))
    return op("Sub", op("Add", half, odd), op("Div", under, two))


def unsqueeze(op: GraphBuilder, values: str, axes: Sequence[int]) -> str:
    """Insert axes of length 1."""
    return op("Unsqueeze", values, op.integers(axes))


def _centers(op: GraphBuilder, pixels: str, others: str) -> str:
    """Compute the centers of pixels as integers: 2 · (pixel + ½) · others."""
    twice = op("Add", op("Mul", pixels, op.integer(2)), op.integer(1))
    return op("Mul", twice, others)


def _distances(op: GraphBuilder, side: str, resized: str, apart: str) -> str:
    """Scale distances of centers to the filter's support, float64 ≥ 0.

    The unit is a pixel of the resized image where the image shrinks, else one of the image.
    Integers until here: in float32, which is all that OpenVINO has, the position of a pixel would
    be off by up to 1e-5.
    """
    unit = op("Mul", op("Max", side, resized), op.integer(2))
    high, low = (op("Cast", one, to=TensorProto.DOUBLE) for one in (op("Abs", apart), unit))
    return _divide(op, high, low, side)


def _fixed_point(op: GraphBuilder, weights: str) -> str:
    """Round weights to Pillow's 22 fractional bits, as float32."""
    up = op("Add", op("Mul", weights, op.float64(_FIXED)), op.float64(0.5))
    fixed = op("Mul", op("Floor", up), op.float64(1 / _FIXED))
    return op("Cast", fixed, to=TensorProto.FLOAT)


def _divide(op: GraphBuilder, value: str, by: str, side: str) -> str:
    """Divide without Div, see :func:`runtime_constant`."""
    inverse = op("Pow", by, runtime_constant(op, op.float64(-1), side, TensorProto.DOUBLE))
    return op("Mul", value, inverse)


def runtime_constant(op: GraphBuilder, constant: str, side: str, kind: int) -> str:
    """Make a constant that a runtime cannot fold before it gets images.

    OpenVINO rewrites quotients, powers and products of constants, and loses the mark that they
    are to stay in fp32 where the model is not.
    """
    return op("Mul", constant, op("Cast", op("Div", side, side), to=kind))


def _nearest(op: GraphBuilder, side: str, resized: str, near: str) -> str:
    """Compute the source pixel of each output pixel, int64 [out]; sums float64 as Pillow does."""
    old, new = (op("Cast", one, to=TensorProto.DOUBLE) for one in (side, resized))
    step = op("Div", old, new)
    steps = op("Expand", step, op("Unsqueeze", resized, op.integers([0])))
    halves = op("Mul", step, op.float64(0.5))
    first = op("Where", op("Equal", op.arange(resized), op.integer(0)), halves, steps)
    found = op("Gather", op("CumSum", first, op.integer(0)), near)
    return op("Cast", op("Floor", found), to=TensorProto.INT64)


def _cubic(op: GraphBuilder, apart: str) -> str:
    """Evaluate Keys' cubic filter, a = -1/2, at distances ≥ 0."""
    inner = _polynomial(op, apart, (1.5, -2.5, 0.0, 1.0))
    outer = _polynomial(op, apart, (-0.5, 2.5, -4.0, 2.0))
    beyond = op("Less", apart, op.float64(2))
    outer = op("Where", beyond, outer, op.float64(0))
    return op("Where", op("Less", apart, op.float64(1)), inner, outer)


def _triangle(op: GraphBuilder, apart: str) -> str:
    return op("Max", op("Sub", op.float64(1), apart), op.float64(0))


def _polynomial(op: GraphBuilder, value: str, factors: tuple[float, ...]) -> str:
    """Evaluate a polynomial by Horner's rule, the highest power first."""
    found = op("Mul", value, op.float64(factors[0]))
    for factor in factors[1:-1]:
        found = op("Add", found, op.float64(factor)) if factor else found
        found = op("Mul", found, value)
    return op("Add", found, op.float64(factors[-1]))
