"""ExecuTorch, on a CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spvit_deploy.core.arrays import Array
from spvit_deploy.core.errors import CorruptFileError, InputError, RuntimeMissingError, raised_as
from spvit_deploy.core.log_filters import silenced, without_lines
from spvit_deploy.runtimes.base import Session, read_input, read_outputs

# A method of the program that returns the metadata.
METADATA_METHOD = "spvit_deploy"
# As ExecuTorch numbers types.
_FLOAT32 = 6


class ExecuTorchSession(Session):
    """A ``.pte`` file; see :class:`Session`.

    The memory of a dynamic batch is planned for a largest one, and more images run in parts.
    """

    name = "executorch"

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        if device not in ("auto", "cpu"):
            raise RuntimeMissingError(
                f"Device '{device}' was requested; ExecuTorch computes on cpu here.",
                "Choose --device cpu.",
            )
        self.version, self.device = version("executorch"), "cpu"
        program, metadata = _open(path)
        if threads:
            # The one pool of the process; methods that are loaded already keep the old one.
            from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

            _unsafe_reset_threadpool(threads)
        with raised_as(CorruptFileError, f"{path}: ExecuTorch cannot run it", "Export it again."):
            # It prints where it looked for the kinds of this CPU's cores, and found nothing.
            with without_lines(b"[cpuinfo_utils.cpp:"):
                self._method = program.load_method("forward")
            facts = self._method.metadata
            taken = [facts.input_tensor_meta(index) for index in range(facts.num_inputs())]
            outputs = facts.num_outputs()
        shapes = [list(one.sizes()) for one in taken]
        only = len(taken) == 1 and taken[0].dtype() == _FLOAT32
        shape: list[int | None] = [*shapes[0]] if only else []
        self._largest = shapes[0][0] if only and shape else 0
        if shape and metadata.get("spvit_deploy.batch") == "dynamic":
            shape[0] = None
        self.input = read_input(shape, False, None, path, "; ".join(map(str, shapes)))
        self.outputs = read_outputs(metadata, outputs)

    def compute(self, ready: Array) -> list[Array]:
        """Infer [B, C, H, W] in parts of the largest batch, and return all outputs, [B, ...]."""
        parts = [self._method.execute([p]) for p in torch.from_numpy(ready).split(self._largest)]
        return [np.concatenate([part.numpy() for part in one]) for one in zip(*parts, strict=True)]

    def bind(self, ready: Array) -> Callable[[], object]:
        """Return an inference on images, [B, C, H, W].

        Raises:
            InputError: more than the file was exported for.
        """
        if len(ready) > self._largest:
            raise InputError(
                f"{len(ready)} images per inference; the file was exported for {self._largest} at "
                "most.",
                "Export it with a larger --profile.",
            )
        method, images = self._method, [torch.from_numpy(ready)]
        return lambda: method.execute(images)

    def close(self) -> None:
        """Release the program."""
        del self._method


def read_metadata(path: Path) -> dict[str, str]:
    """Read what the export recorded in a file; empty for a third-party file."""
    return _open(path)[1]


def _open(path: Path) -> tuple[Any, dict[str, str]]:
    with silenced():
        from executorch.runtime import Runtime, Verification
    what = f"{path}: damaged, or not a program of ExecuTorch"
    with raised_as(CorruptFileError, what, "Export it again."):
        check = Verification.InternalConsistency
        program = Runtime.get().load_program(path, verification=check)
        if METADATA_METHOD not in program.method_names:
            return program, {}
        text = program.load_method(METADATA_METHOD).execute([])[0]
        return program, {str(key): str(value) for key, value in json.loads(text).items()}
