"""``config.pbtxt``: how Triton serves a model, as Triton's own protobuf message."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from spvit_deploy.core.errors import InputError
from spvit_deploy.export.record import ExportRecord, TensorInfo
from spvit_deploy.runtimes.tensorrt.engine_record import SUFFIX
from spvit_deploy.serving.repository_layout import LABELS_FILE
from spvit_deploy.serving.tritonclient_import import triton_module

# What each backend of Triton opens, as formats of ours.
BACKENDS = {
    "onnxruntime": "onnx", "openvino": "openvino", "tensorrt": "tensorrt", "python": "onnx",
}  # fmt: skip
_KINDS = {"openvino": "KIND_CPU", "tensorrt": "KIND_GPU", "python": "KIND_CPU"}
_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8"}


@dataclass(frozen=True)
class Asked:
    """How a model is to be served, as far as the user says so.

    Attributes:
        backend: ``onnxruntime``, ``openvino``, ``tensorrt`` or ``python``.
        max_batch: images that Triton puts into one call at most.
        queue_delay: microseconds that an image may wait for others.
        instances: copies of the model that compute at a time.
        live_versions: how many of the newest versions are served.
    """

    backend: str | None = None
    max_batch: int | None = None
    queue_delay: int | None = None
    instances: int | None = None
    live_versions: int | None = None


@dataclass(frozen=True)
class Serving:
    """The same, settled; ``max_batch`` is 0 where Triton batches nothing."""

    backend: str = "onnxruntime"
    max_batch: int = 8
    queue_delay: int = 0
    instances: int = 1
    live_versions: int = 1


def check_name(name: str) -> str:
    """A name that is one of a folder, of a URL and of a metric.

    Raises:
        InputError: it is not.
    """
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", name):
        return name
    raise InputError(
        f"'{name}' cannot be a model's name in Triton.",
        "Take letters, digits, '_', '.' and '-', 128 at most, a letter or digit first.",
    )


def name_of(model: str) -> str:
    """A timm model's name as one in Triton: ``hf-hub:a/b`` → ``b``."""
    short = re.sub(r"[^A-Za-z0-9_.-]", "_", model.rpartition("/")[2] or model)
    return check_name(short.lstrip("_.-")[:128] or "model")


@dataclass(frozen=True)
class Batches:
    """What an artefact takes.

    Attributes:
        fixed: a fixed batch, or None.
        profile: smallest, usual and largest batch of a TensorRT engine with a dynamic one.
    """

    fixed: int | None = None
    profile: tuple[int, int, int] | None = None

    def check(self, largest: int) -> None:
        """Refuse a ``max_batch_size`` that the artefact cannot have.

        Raises:
            InputError: says why.
        """
        if self.fixed is not None and largest:
            raise InputError(
                f"Triton batches no requests for a model of the fixed batch {self.fixed}.",
                "Leave --batch out; or --max-batch, and a model that has it.",
            )
        if self.fixed is None and not largest:
            raise InputError("The other versions have a fixed batch.", "Give it with --batch.")
        if self.profile is not None and self.fixed is None and largest > self.profile[2]:
            raise InputError(
                f"Batches of {largest} are more than the engine takes, {self.profile[2]}.",
                f"Give --profile {self.profile[0]},{self.profile[1]},{largest}, or --max-batch.",
            )


def settle(asked: Asked, batches: Batches) -> Serving:
    """How a new model is served.

    Raises:
        InputError: in batches that the artefact does not take.
    """
    given = {name: value for name, value in vars(asked).items() if value is not None}
    if batches.fixed is not None:
        given.setdefault("max_batch", 0)
    served = Serving(**given)
    batches.check(served.max_batch)
    return served


def settle_as(asked: Asked, batches: Batches, config: Any, where: Path) -> Serving:
    """How a model that is there already is served.

    Raises:
        InputError: something else is asked for, or the artefact does not take its batches.
    """
    now = read_serving(config)
    if now.backend not in BACKENDS:
        raise InputError(
            f"{where} is for the backend '{now.backend}', which is none of {', '.join(BACKENDS)}.",
            "Choose another --model-name.",
        )
    for field in fields(asked):
        wanted, found = getattr(asked, field.name), getattr(now, field.name)
        if wanted is not None and wanted != found:
            option = f"--{field.name.replace('_', '-')}"
            raise InputError(
                f"{where} says {found} where {option} {wanted} is asked for.",
                f"Leave {option} out, edit {where.name}, or choose another --model-name.",
            )
    batches.check(now.max_batch)
    return now


def read_serving(config: Any) -> Serving:
    """What a configuration says; what we never write is read as its default."""
    latest = config.version_policy.latest.num_versions
    return Serving(
        backend=config.backend,
        max_batch=config.max_batch_size,
        queue_delay=config.dynamic_batching.max_queue_delay_microseconds,
        instances=sum(group.count for group in config.instance_group) or 1,
        live_versions=latest or 1,
    )


def make_config(record: ExportRecord, name: str, serving: Serving) -> Any:
    """Triton's ``ModelConfig`` of an artefact.

    Raises:
        InputError: the backend does not open such artefacts.
        RuntimeMissingError: no ``tritonclient``.
    """
    proto = triton_module("grpc.model_config_pb2")
    if BACKENDS.get(serving.backend) != record.format:
        raise InputError(
            f"Triton's backend '{serving.backend}' does not open format '{record.format}'.",
            f"Choose --backend {' or '.join(b for b, f in BACKENDS.items() if f == record.format)}."
            if record.format in BACKENDS.values()
            else f"It opens {', '.join(dict.fromkeys(BACKENDS.values()))}.",
        )
    batched = serving.max_batch > 0
    config = proto.ModelConfig(
        name=name,
        backend=serving.backend,
        max_batch_size=serving.max_batch,
        input=[_tensor(proto.ModelInput, info, batched) for info in record.inputs],
        output=[_tensor(proto.ModelOutput, info, batched) for info in record.outputs],
    )
    config.version_policy.latest.num_versions = serving.live_versions
    kind = _KINDS.get(serving.backend, "KIND_AUTO")
    config.instance_group.add(count=serving.instances, kind=kind)
    if batched:
        config.dynamic_batching.max_queue_delay_microseconds = serving.queue_delay
    for output in config.output:
        if output.name == "logits" and record.class_names:
            output.label_filename = LABELS_FILE
    config.model_warmup.extend(_warm_ups(proto, config))
    engines = [file for file in record.files if file.endswith(SUFFIX)]
    if engines:
        config.default_model_filename = engines[0]
    return config


def _tensor(kind: Any, info: TensorInfo, batched: bool) -> Any:
    shape = info.shape[1:] if batched else info.shape
    dims = [-1 if size is None else size for size in shape]
    return kind(name=info.name, data_type=_TYPES[info.dtype], dims=dims)


def _warm_ups(proto: Any, config: Any) -> Iterator[Any]:
    """The smallest and the largest call: what they make a runtime allocate is there before users
    are."""
    for batch in sorted({min(config.max_batch_size, 1), config.max_batch_size}):
        warm = proto.ModelWarmup(name=f"batch of {batch}" if batch else "fixed", batch_size=batch)
        for tensor in config.input:
            given = warm.inputs[tensor.name]
            given.data_type, given.zero_data = tensor.data_type, True
            given.dims.extend(tensor.dims)
        yield warm


def differs(old: Any, new: Any) -> str:
    """What a new version has other than the model that it is one of, or nothing."""
    if old.default_model_filename != new.default_model_filename:
        return f"{new.default_model_filename or 'no engine'} is its file"
    for kind in ("input", "output"):
        before, after = (
            [(t.name, t.data_type, tuple(t.dims)) for t in getattr(config, kind)]
            for config in (old, new)
        )
        if before != after:
            return f"its {kind}s are {_said(after)}, not {_said(before)}"
    return ""


def _said(tensors: list[tuple[str, int, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {list(dims)}" for name, _, dims in tensors) or "none"
