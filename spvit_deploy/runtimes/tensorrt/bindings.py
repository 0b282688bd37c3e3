"""Inputs and outputs of a TensorRT engine, from its record: names, shapes and order."""

from __future__ import annotations

import math
from dataclasses import dataclass

from spvit_deploy.core.errors import InputError
from spvit_deploy.runtimes.tensorrt.engine_record import EngineRecord

# Input and outputs are float32 in every precision.
_BYTES = 4


@dataclass(frozen=True)
class Binding:
    """One input or output at one batch size.

    Attributes:
        name: Name of the tensor in the engine.
        shape: Shape with the batch.
        is_input: Whether the engine reads it.
    """

    name: str
    shape: tuple[int, ...]
    is_input: bool

    @property
    def nbytes(self) -> int:
        """Size of its buffer in bytes, on the host and on the device."""
        return _BYTES * math.prod(self.shape)


def bindings(record: EngineRecord, batch: int) -> tuple[Binding, ...]:
    """List the inputs, then the outputs, each in the order of the record.

    Raises:
        InputError: The engine does not take this batch.
    """
    if not record.smallest <= batch <= record.largest:
        takes = str(record.smallest)
        if record.largest != record.smallest:
            takes += f" to {record.largest}"
        raise InputError(
            f"Batch {batch} was requested; the engine takes {takes}.",
            "Export it with another --profile or --batch.",
        )
    sides = ((record.inputs, True), (record.outputs, False))
    return tuple(
        Binding(name, tuple(batch if size == "batch" else int(size) for size in shape), is_input)
        for tensors, is_input in sides
        for name, shape in tensors.items()
    )


def image_size(record: EngineRecord) -> tuple[int, int, int]:
    """Return (channels, height, width) of the images that the engine reads."""
    channels, height, width = (int(size) for size in next(iter(record.inputs.values()))[1:])
    return channels, height, width
