"""ExecuTorch, on a CPU."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spvit_deploy.core.errors import CorruptFileError, InputError, RuntimeMissingError
from spvit_deploy.core.log_filters import silenced, without_lines
from spvit_deploy.core.records import check_files, read_record
from spvit_deploy.runtimes.registry import Array, check_images

_FILE = "model.pte"
_METADATA = "spvit_deploy"
# As ExecuTorch numbers types.
_FLOAT32 = 6


class ExecuTorchSession:
    """A ``.pte`` file, or a folder with one; see :class:`Session`.

    The memory of a free batch is planned for a largest one, and more images run in parts.
    """

    name = "executorch"

    def __init__(self, path: Path, device: str, threads: int | None) -> None:
        if device not in ("auto", "cpu"):
            raise RuntimeMissingError(
                f"Device '{device}' was asked for; ExecuTorch computes on cpu here.",
                "Choose --device cpu.",
            )
        self.version, self.device = version("executorch"), "cpu"
        if path.is_dir():
            check_files(path, read_record(path / "export.json", kind="exported").get("files", {}))
            path = path / _FILE
        program, metadata = _open(path)
        if threads:
            _set_threads(threads)
        try:
            # It says where it looked for the kinds of this CPU's cores, and found nothing.
            with without_lines(b"[cpuinfo_utils.cpp:"):
                self._method = program.load_method("forward")
            facts = self._method.metadata
            taken = [facts.input_tensor_meta(index) for index in range(facts.num_inputs())]
            answers = facts.num_outputs()
        except (RuntimeError, ValueError) as error:
            raise CorruptFileError(
                f"{path}: ExecuTorch cannot run it ({error}).", "Export it again."
            ) from error
        if [(len(one.sizes()), one.dtype()) for one in taken] != [(4, _FLOAT32)]:
            raise InputError(
                f"{path} takes {'; '.join(str(list(one.sizes())) for one in taken)}.",
                "What is measured takes float32 images [batch, channels, height, width].",
            )
        self._largest, channels, height, width = taken[0].sizes()
        self.input_size = (channels, height, width)
        dynamic = metadata.get("spvit_deploy.batch") == "dynamic"
        self.batch: int | None = None if dynamic else self._largest
        names = json.loads(metadata.get("spvit_deploy.outputs", "[]"))
        self.outputs = tuple(names) or tuple(f"output_{index}" for index in range(answers))

    def run(self, images: Array) -> Array:
        """[B, C, H, W] → [B, classes]."""
        return self.run_all(images)[0]

    def run_all(self, images: Array) -> list[Array]:
        """[B, C, H, W] → every output."""
        ready = torch.from_numpy(check_images(images, self.input_size, self.batch))
        parts = [self._method.execute([part]) for part in ready.split(self._largest)]
        return [
            np.concatenate([answer.numpy() for answer in one]) for one in zip(*parts, strict=True)
        ]

    def prepare(self, images: Array) -> Callable[[], float]:
        """A call on these images.

        Raises:
            InputError: more than the file was exported for.
        """
        ready = torch.from_numpy(check_images(images, self.input_size, self.batch))
        if len(ready) > self._largest:
            raise InputError(
                f"{len(ready)} images a call; the file was exported for {self._largest} at most.",
                "Export it with a larger --profile.",
            )
        method = self._method

        def call() -> float:
            start = time.perf_counter_ns()
            method.execute([ready])
            return (time.perf_counter_ns() - start) / 1e9

        return call

    def close(self) -> None:
        """Drop the program."""
        del self._method


def read_metadata(path: Path) -> dict[str, str]:
    """What our export wrote into a file; nothing for one that is not ours.

    Raises:
        CorruptFileError: damaged, or no such file.
    """
    return _open(path)[1]


def _open(path: Path) -> tuple[Any, dict[str, str]]:
    with silenced():
        from executorch.runtime import Runtime, Verification
    try:
        check = Verification.InternalConsistency
        program = Runtime.get().load_program(path, verification=check)
        if _METADATA not in program.method_names:
            return program, {}
        text = program.load_method(_METADATA).execute([])[0]
        return program, {str(key): str(value) for key, value in json.loads(text).items()}
    except (OSError, RuntimeError, ValueError) as error:
        raise CorruptFileError(
            f"{path}: damaged, or no program of ExecuTorch.", "Export it again."
        ) from error


def _set_threads(threads: int) -> None:
    """Size the one pool of the process; methods that are loaded already keep the old one."""
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

    _unsafe_reset_threadpool(threads)
