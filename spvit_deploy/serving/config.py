"""Triton's model repositories: folders of models, each with versions and a ``config.pbtxt``.

Imports no torch, so that `serve` starts at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spvit_deploy.core.errors import CorruptFileError, InputError, first_line
from spvit_deploy.core.records import StrictModel
from spvit_deploy.export.record import ExportRecord, TensorInfo
from spvit_deploy.runtimes.info import BatchProfile
from spvit_deploy.runtimes.registry import find_format, runtimes, triton_backends
from spvit_deploy.serving.client import import_tritonclient

CONFIG_FILE = "config.pbtxt"
LABELS_FILE = "labels.txt"
_HEADER = "# Written by spvit-deploy. You may edit it; later versions leave it as it is.\n"
# Files in folders that other commands write.
_RECORDS = ("export.json", "config.json", "search.json", "gates.json", "exports.json")
# Export format that each backend of Triton opens, and where it computes.
_RUNTIMES = triton_backends(runtimes())
BACKENDS = {backend: info.formats[0].name for backend, info in _RUNTIMES.items()}
_KINDS = {backend: info.triton_kind for backend, info in _RUNTIMES.items()} | {"python": "KIND_CPU"}
_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint8": "TYPE_UINT8"}


class Serving(StrictModel):
    """How Triton serves a model. Fields that are not given are the user's to leave open.

    Attributes:
        max_batch: Images that Triton batches at most; 0 where it does not batch.
        queue_delay: Microseconds that an image may wait for others.
        instances: Copies of the model that compute at the same time.
        live_versions: How many of the newest versions are served.
    """

    backend: str = "onnxruntime"
    max_batch: int = 8
    queue_delay: int = 0
    instances: int = 1
    live_versions: int = 1


def check_model_name(name: str) -> str:
    """Return a name if it can be that of a folder, in a URL and of a metric.

    Raises:
        InputError: It cannot.
    """
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", name):
        return name
    raise InputError(
        f"'{name}' cannot be a model's name in Triton.",
        "Use at most 128 letters, digits, '_', '.' and '-', a letter or digit first.",
    )


def default_model_name(model: str) -> str:
    """Convert a timm model's name to a valid one in Triton: ``hf-hub:a/b`` → ``b``."""
    short = re.sub(r"[^A-Za-z0-9_.-]", "_", model.rpartition("/")[2] or model)
    return check_model_name(short.lstrip("_.-")[:128] or "model")


def _check_batch(max_batch: int, fixed: int | None, profile: BatchProfile | None) -> None:
    """Require that an artifact accepts a ``max_batch_size``."""
    if fixed is not None and max_batch:
        raise InputError(
            f"Triton cannot batch requests for a model of the fixed batch {fixed}.",
            "Omit --batch; or --max-batch, and choose a model that has this batch.",
        )
    if fixed is None and not max_batch:
        raise InputError("The other versions have a fixed batch.", "Give it with --batch.")
    if profile is not None and fixed is None and max_batch > profile[2]:
        raise InputError(
            f"Batches of {max_batch} exceed the engine's largest, {profile[2]}.",
            f"Give --profile {profile[0]},{profile[1]},{max_batch}, or --max-batch.",
        )


def new_serving(chosen: Serving, fixed: int | None, profile: BatchProfile | None) -> Serving:
    """Complete how a new model is served, by the fixed batch or the profile of its artifact.

    Raises:
        InputError: The artifact does not accept the batches.
    """
    batch = {"max_batch": 0} if fixed is not None else {}
    serving = Serving(**batch | chosen.model_dump(exclude_unset=True))
    _check_batch(serving.max_batch, fixed, profile)
    return serving


def existing_serving(
    chosen: Serving, fixed: int | None, profile: BatchProfile | None, config: Any, file: Path
) -> Serving:
    """Return how the model of a configuration is served, for a new version of it.

    Raises:
        InputError: What was chosen differs from it, or the artifact does not accept its batches.
    """
    serving = read_serving(config)
    if serving.backend not in BACKENDS:
        raise InputError(
            f"{file} has the backend '{serving.backend}', which is not one of "
            f"{', '.join(BACKENDS)}.",
            "Choose another --model-name.",
        )
    for name, value in chosen.model_dump(exclude_unset=True).items():
        current, option = getattr(serving, name), f"--{name.replace('_', '-')}"
        if value != current:
            raise InputError(
                f"{option} {value}: {file} has {current}.",
                f"Omit {option}, edit {file.name}, or choose another --model-name.",
            )
    _check_batch(serving.max_batch, fixed, profile)
    return serving


def read_serving(config: Any) -> Serving:
    """Read the settings of a configuration; a missing one has its default."""
    return Serving(
        backend=config.backend,
        max_batch=config.max_batch_size,
        queue_delay=config.dynamic_batching.max_queue_delay_microseconds,
        instances=sum(group.count for group in config.instance_group) or 1,
        live_versions=config.version_policy.latest.num_versions or 1,
    )


def make_config(record: ExportRecord, name: str, serving: Serving) -> Any:
    """Make the ``ModelConfig`` of an artifact.

    Raises:
        InputError: The backend does not open such artifacts.
    """
    proto = import_tritonclient("grpc.model_config_pb2")
    if BACKENDS.get(serving.backend) != record.format:
        able = " or ".join(name for name, form in BACKENDS.items() if form == record.format)
        formats = ", ".join(dict.fromkeys(BACKENDS.values()))
        raise InputError(
            f"Triton's backend '{serving.backend}' does not open format '{record.format}'.",
            f"Choose --backend {able}." if able else f"It opens {formats}.",
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
    config.instance_group.add(count=serving.instances, kind=_KINDS[serving.backend])
    if batched:
        config.dynamic_batching.max_queue_delay_microseconds = serving.queue_delay
    for output in config.output:
        if output.name == "logits" and record.class_names:
            output.label_filename = LABELS_FILE
    config.model_warmup.extend(_warm_ups(proto, config))
    form = find_format(record.format)
    if "*" in form.file:
        config.default_model_filename = next(f for f in record.files if f.endswith(form.suffix))
    return config


def _tensor(kind: Any, info: TensorInfo, batched: bool) -> Any:
    shape = info.shape[1:] if batched else info.shape
    dims = [-1 if size is None else size for size in shape]
    return kind(name=info.name, data_type=_TYPES[info.dtype], dims=dims)


def _warm_ups(proto: Any, config: Any) -> Iterator[Any]:
    """Make the smallest and the largest batch, so that memory is allocated before users come."""
    for batch in sorted({min(config.max_batch_size, 1), config.max_batch_size}):
        warm = proto.ModelWarmup(name=f"batch of {batch}" if batch else "fixed", batch_size=batch)
        for tensor in config.input:
            zeros = warm.inputs[tensor.name]
            zeros.data_type, zeros.zero_data = tensor.data_type, True
            zeros.dims.extend(tensor.dims)
        yield warm


def describe_difference(old: Any, new: Any) -> str:
    """Describe how a version's configuration differs from its model's; empty where it does not."""
    if old.default_model_filename != new.default_model_filename:
        return f"its file is {new.default_model_filename or 'no engine'}"
    for kind in ("input", "output"):
        before, after = (
            [(t.name, t.data_type, tuple(t.dims)) for t in getattr(config, kind)]
            for config in (old, new)
        )
        if before != after:
            return f"its {kind}s are {_describe(after)}, not {_describe(before)}"
    return ""


def _describe(tensors: list[tuple[str, int, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {list(dims)}" for name, _, dims in tensors) or "none"


def read_models(repository: Path) -> dict[str, Any]:
    """Read the configurations of a repository's models, by name; none where it does not exist.

    Raises:
        InputError: The folder is not a repository.
        CorruptFileError: A configuration is not valid.
    """
    if not repository.exists():
        return {}
    if not repository.is_dir():
        raise InputError(f"{repository} is a file.", "Choose a folder for the repository.")
    if (repository / CONFIG_FILE).is_file():
        raise InputError(
            f"{repository} is a model in a repository.", f"Choose {repository.parent} instead."
        )
    folders = sorted(f for f in repository.iterdir() if f.is_dir() and f.name[0] != ".")
    strange = [folder.name for folder in folders if not (folder / CONFIG_FILE).is_file()]
    if strange or any((repository / record).is_file() for record in _RECORDS):
        inside = f": {strange[0]} has no {CONFIG_FILE}" if strange else ""
        raise InputError(
            f"{repository} is not a Triton repository{inside}.", "Choose another folder."
        )
    return {folder.name: read_config(folder / CONFIG_FILE) for folder in folders}


def list_versions(model: Path) -> list[int]:
    """List the versions in a model's folder, in order."""
    numbered = [f.name for f in model.iterdir() if f.is_dir() and f.name.isdecimal()]
    return sorted(int(name) for name in numbered if name[0] != "0")


def config_text(config: Any) -> str:
    """Return the text of a ``config.pbtxt``."""
    from google.protobuf import text_format

    return _HEADER + str(text_format.MessageToString(config, use_short_repeated_primitives=True))


def read_config(file: Path) -> Any:
    """Read a ``config.pbtxt`` as Triton's ``ModelConfig``.

    Raises:
        InputError: The file cannot be read.
        CorruptFileError: It is not a valid configuration.
    """
    from google.protobuf import text_format

    proto = import_tritonclient("grpc.model_config_pb2")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}.", "Check the path.") from None
    try:
        return text_format.Parse(text, proto.ModelConfig())
    except text_format.ParseError as error:
        raise CorruptFileError(
            f"{file} is not a valid Triton configuration: {first_line(error)}.", "Fix it."
        ) from None
