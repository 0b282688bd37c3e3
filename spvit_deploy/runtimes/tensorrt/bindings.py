"""What a TensorRT engine reads and writes: names, sizes and order, from its record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from spvit_deploy.core.errors import CorruptFileError, InputError
from spvit_deploy.runtimes.tensorrt.engine_record import Engine, EngineRecord

# Input and outputs are float32 in every precision.
_BYTES = 4


@dataclass(frozen=True)
class Binding:
    """One input or output at one batch.

    Attributes:
        name: of the tensor in the engine.
        shape: with the batch.
        is_input: whether the engine reads it.
    """

    name: str
    shape: tuple[int, ...]
    is_input: bool

    @property
    def nbytes(self) -> int:
        """Size of its buffer, on the host and on the device."""
        return _BYTES * math.prod(self.shape)


@dataclass(frozen=True)
class EngineTensor:
    """One input or output as the library reports it; -1 stands for a free size."""

    name: str
    shape: tuple[int, ...]
    is_input: bool
    dtype: str


def bindings(record: EngineRecord, batch: int) -> tuple[Binding, ...]:
    """Inputs, then outputs, each in the order of the record.

    Raises:
        InputError: a batch that the engine does not take.
    """
    if not record.smallest <= batch <= record.largest:
        takes = str(record.smallest)
        if record.largest != record.smallest:
            takes += f" to {record.largest}"
        raise InputError(
            f"A batch of {batch} was asked for; the engine takes {takes}.",
            "Export it with another --profile or --batch.",
        )
    sides = ((record.inputs, True), (record.outputs, False))
    return tuple(
        Binding(name, tuple(batch if size == "batch" else int(size) for size in shape), is_input)
        for tensors, is_input in sides
        for name, shape in tensors.items()
    )


def image_size(record: EngineRecord) -> tuple[int, int, int]:
    """(channels, height, width) of the images that it reads."""
    channels, height, width = (int(size) for size in next(iter(record.inputs.values()))[1:])
    return channels, height, width


def check_tensors(engine: Engine, found: Sequence[EngineTensor]) -> None:
    """Compare the record with what the loaded engine says of itself.

    Raises:
        CorruptFileError: a name, a side, a size or an element type differs.
    """
    wanted = {
        EngineTensor(one.name, _free(shape), one.is_input, "FLOAT")
        for one, shape in zip(
            bindings(engine.record, engine.record.smallest),
            [*engine.record.inputs.values(), *engine.record.outputs.values()],
            strict=True,
        )
    }
    odd = sorted({tensor.name for tensor in wanted ^ set(found)})
    if odd:
        raise CorruptFileError(
            f"{engine.file}: its record describes {', '.join(odd)} otherwise than the engine does.",
            "Export it again.",
        )


def _free(shape: tuple[int | str, ...]) -> tuple[int, ...]:
    return tuple(-1 if size == "batch" else int(size) for size in shape)
