"""Pillow's resampling along one axis, as a weight matrix that an ONNX graph computes."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnx_ir import Value

from spvit_deploy.core.preprocessing import Preprocessing

FLOAT, DOUBLE, INTEGER = ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT64
# onnxscript's OpBuilder, whose methods are operators; numbers become constants of the other type.
Op = Any
# Pillow keeps 22 fractional bits of a weight.
_FIXED = 2.0**22


class Axis:
    """Pillow's resampling along one axis, from the image's pixels to those of the crop.

    Args:
        side, resized: Pixels of the image, and of the resized image.
        axis: 0 for rows, 1 for columns.

    Attributes:
        weights: float32, [1, 1, out, side] for rows, [1, 1, side, out] for columns.
        inside: bool [out], whether a pixel of the crop lies in the image.
    """

    def __init__(self, op: Op, prep: Preprocessing, side: Value, resized: Value, axis: int) -> None:
        out = prep.input_size[1 + axis]
        # Of the rank of images: with another, OpenVINO rewrites the product, see runtime_constant.
        new, old = ([0, 1, 3], [0, 1, 2]) if axis == 0 else ([0, 1, 2], [0, 1, 3])
        steps = op.Add(list(range(out)), _offset(op, resized, out))
        near = op.Max(op.Min(steps, op.Sub(resized, 1)), 0)
        self.inside = op.Equal(near, steps)
        pixels = op.Range(0, side, 1)
        if prep.interpolation == "nearest":
            index = op.Unsqueeze(_nearest(op, side, resized, near), new)
            self.weights = op.Cast(op.Equal(op.Unsqueeze(pixels, old), index), to=FLOAT)
            return
        # Centers of pixels as integers: 2 · (pixel + ½) · the others.
        here, there = (
            op.Mul(op.Add(op.Mul(part, 2), 1), others)
            for part, others in ((near, side), (pixels, resized))
        )
        apart = op.Sub(op.Unsqueeze(here, new), op.Unsqueeze(there, old))
        apart = _distances(op, side, resized, apart)
        raw = (_cubic if prep.interpolation == "bicubic" else _triangle)(op, apart)
        exact = _divide(op, raw, op.ReduceSum(raw, [new[2]]), side)
        # Rounded to Pillow's fractional bits.
        fixed = op.Mul(op.Floor(op.Add(op.Mul(exact, _FIXED), 0.5)), 1 / _FIXED)
        self.weights = op.Cast(fixed, to=FLOAT)


def _offset(op: Op, resized: Value, out: int) -> Value:
    """Compute the pixels before the crop (negative: padding), with halves rounded to even."""
    over = op.Max(op.Sub(resized, out), 0)
    under = op.Max(op.Sub(out, resized), 0)
    half = op.Div(over, 2)
    odd = op.Mul(op.Mod(over, 2), op.Mod(half, 2))
    return op.Sub(op.Add(half, odd), op.Div(under, 2))


def _distances(op: Op, side: Value, resized: Value, apart: Value) -> Value:
    """Scale distances of centers to the filter's support, float64 ≥ 0.

    The unit is a pixel of the resized image where the image shrinks, else one of the image.
    Integers until here: in float32, which is all that OpenVINO has, the position of a pixel would
    be off by up to 1e-5.
    """
    unit = op.Mul(op.Max(side, resized), 2)
    high, low = (op.Cast(part, to=DOUBLE) for part in (op.Abs(apart), unit))
    return _divide(op, high, low, side)


def _divide(op: Op, value: Value, by: Value, side: Value) -> Value:
    """Divide without Div, see :func:`runtime_constant`."""
    return op.Mul(value, op.Pow(by, runtime_constant(op, -1.0, side, DOUBLE)))


def runtime_constant(op: Op, constant: Value | float, side: Value, kind: ir.DataType) -> Value:
    """Make a constant that a runtime cannot fold before it gets images.

    OpenVINO rewrites quotients, powers and products of constants, and loses the mark that they
    are to stay in fp32 where the model is not.
    """
    return op.Mul(constant, op.Cast(op.Div(side, side), to=kind))


def _nearest(op: Op, side: Value, resized: Value, near: Value) -> Value:
    """Compute the source pixel of each output pixel, int64 [out]; sums float64 as Pillow does."""
    step = op.Div(*(op.Cast(part, to=DOUBLE) for part in (side, resized)))
    steps = op.Expand(step, op.Unsqueeze(resized, [0]))
    first = op.Where(op.Equal(op.Range(0, resized, 1), 0), op.Mul(step, 0.5), steps)
    return op.Cast(op.Floor(op.Gather(op.CumSum(first, 0), near)), to=INTEGER)


def _cubic(op: Op, apart: Value) -> Value:
    """Evaluate Keys' cubic filter, a = -1/2, at distances ≥ 0."""
    inner = _polynomial(op, apart, (1.5, -2.5, 0.0, 1.0))
    outer = _polynomial(op, apart, (-0.5, 2.5, -4.0, 2.0))
    outer = op.Where(op.Less(apart, 2.0), outer, 0.0)
    return op.Where(op.Less(apart, 1.0), inner, outer)


def _triangle(op: Op, apart: Value) -> Value:
    return op.Max(op.Sub(1.0, apart), 0.0)


def _polynomial(op: Op, value: Value, factors: tuple[float, ...]) -> Value:
    """Evaluate a polynomial by Horner's rule, the highest power first."""
    found = op.Mul(value, factors[0])
    for factor in factors[1:-1]:
        found = op.Mul(op.Add(found, factor) if factor else found, value)
    return op.Add(found, factors[-1])
