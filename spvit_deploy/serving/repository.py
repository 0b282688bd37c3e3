"""Exports models into a Triton model repository."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spvit_deploy.core.errors import InputError, OutputExistsError
from spvit_deploy.core.files import write_bytes
from spvit_deploy.core.output_folders import ensure_free, move_into_place, staging_folder
from spvit_deploy.data.spec import DataSettings
from spvit_deploy.export.export_model import run_export
from spvit_deploy.export.record import ExportRecord
from spvit_deploy.lean.model_folder import ModelRequest
from spvit_deploy.runtimes.export_job import ExportSettings
from spvit_deploy.runtimes.info import parse_profile
from spvit_deploy.runtimes.registry import find_format
from spvit_deploy.serving.client import import_tritonclient
from spvit_deploy.serving.config import (
    BACKENDS,
    CONFIG_FILE,
    LABELS_FILE,
    Serving,
    check_model_name,
    config_text,
    default_model_name,
    describe_difference,
    existing_serving,
    list_versions,
    make_config,
    new_serving,
    read_config,
    read_models,
)
from spvit_deploy.workflows.export import open_export
from spvit_deploy.workflows.keywords import Pathish, request_of

NEXT = "next"


@dataclass(frozen=True)
class TritonExport:
    """A version that was written into a repository; its folder is an export like any other."""

    name: str
    version: int
    folder: Path
    serving: Serving
    record: ExportRecord


@dataclass(frozen=True)
class _Destination:
    """A model's folder, a version in it, and the configuration where the model exists."""

    model: Path
    version: int
    config: Any | None = None

    @property
    def folder(self) -> Path:
        return self.model / str(self.version)


def export_triton(
    model: Pathish | ModelRequest,
    output: Pathish,
    serving: Serving | None = None,
    name: str | None = None,
    version: int | str | None = None,
    force: bool = False,
    settings: ExportSettings | None = None,
    data: DataSettings | str | None = None,
) -> TritonExport:
    """Export a model into a Triton model repository, verified like any export.

    A model that exists gets a further version; its configuration, its labels and its other
    versions stay as they are. Everything is written beside the repository and renamed into it, so
    that a server which polls it sees only whole versions.

    Args:
        output: The repository; other models in it stay as they are.
        serving: How the model is served; what is not set in it is as by default, or as its other
            versions.
        name: The model's name in Triton; None for the timm model's.
        version: A number from 1 on, or ``next``; None for the first one of a new model.
        force: Replace the version if it exists.
        model, settings, data: As in :func:`spvit_deploy.export_model`; the backend decides the
            format.

    Raises:
        ParityError: The outputs differ; the repository is as it was.
        InputError: A name or number that is not valid in Triton, a version that exists, or one
            that does not fit the model's other versions.
        JobError: As :func:`spvit_deploy.export_model`.
    """
    repository, chosen = Path(output), serving or Serving()
    import_tritonclient("grpc.model_config_pb2")
    read_models(repository)
    request, exported = request_of(model), settings or ExportSettings()
    reads = (request.name, request.checkpoint)
    if name is not None:
        _find_destination(repository / check_model_name(name), version, force, reads)
    if "backend" in chosen.model_fields_set:
        replace(exported, format=BACKENDS[chosen.backend]).checked()
    job = open_export(request, data, exported)
    name = name or default_model_name(job.model.spec.name)
    place = _find_destination(repository / name, version, force, reads)
    served = _choose_serving(chosen, place, exported)
    job = replace(job, settings=replace(exported, format=BACKENDS[served.backend]).checked())
    # Nothing can be renamed into a mounted folder from beside it.
    mounted = os.path.ismount(repository)
    with staging_folder(place.model if mounted else repository) as staging:
        record = run_export(job, staging / name / str(place.version))
        _add_triton_files(staging / name, place, make_config(record, name, served), record)
        repository.mkdir(parents=True, exist_ok=True)
        if place.config is None:
            move_into_place(staging / name, place.model, False)
        else:
            move_into_place(staging / name / str(place.version), place.folder, force)
    return TritonExport(name, place.version, place.folder, served, record)


def _find_destination(
    model: Path, version: int | str | None, force: bool, reads: Sequence[Pathish | None]
) -> _Destination:
    if not model.exists():
        return _Destination(model, 1 if version in (None, NEXT) else int(version or 1))
    config, existing = read_config(model / CONFIG_FILE), list_versions(model)
    if version is None:
        raise OutputExistsError(
            f"{model} exists, with versions {', '.join(map(str, existing)) or 'none yet'}.",
            f"Add one with --model-version {NEXT}, or choose another --model-name.",
        )
    number = max(existing, default=0) + 1 if version == NEXT else int(version)
    place = _Destination(model, number, config)
    if place.folder.exists():
        if not force:
            raise OutputExistsError(
                f"{place.folder} exists.",
                f"Add a version with --model-version {NEXT}, or replace this one with --force.",
            )
        ensure_free(place.folder, force, reads=reads)
    return place


def _choose_serving(chosen: Serving, place: _Destination, settings: ExportSettings) -> Serving:
    backend = chosen.backend if place.config is None else place.config.backend
    form = find_format(BACKENDS[backend]) if backend in BACKENDS else None
    # Only where the backend runs the format's own runtime do the limits of its memory count.
    planned = form is not None and form.runtime == backend and form.options_in({"profile": None})
    profile = parse_profile(settings.options.get("profile")) if planned else None
    if place.config is None:
        return new_serving(chosen, settings.batch, profile)
    file = place.model / CONFIG_FILE
    return existing_serving(chosen, settings.batch, profile, place.config, file)


def _add_triton_files(model: Path, place: _Destination, config: Any, record: ExportRecord) -> None:
    """Write Triton's own files beside an artifact that fits the model, where one exists."""
    labels = "".join(f"{' '.join(name.split())}\n" for name in record.class_names)
    if config.backend == "python":
        # Copied, never imported: it imports a module that only Triton's Python backend has.
        source = Path(__file__).with_name("python_backend.py")
        shutil.copyfile(source, model / str(place.version) / "model.py")
        # Where a file has this name, Python keeps no bytecode. A server that polls would take it
        # for a change, and load the model a second time.
        (model / str(place.version) / "__pycache__").touch()
    if place.config is None:
        write_bytes(model / CONFIG_FILE, config_text(config).encode())
        if labels:
            write_bytes(model / LABELS_FILE, labels.encode())
        read_config(model / CONFIG_FILE)
        return
    difference = describe_difference(place.config, config)
    file = place.model / LABELS_FILE
    if not difference and file.is_file() and file.read_text(encoding="utf-8") != labels:
        difference = f"its classes are not those of {file}"
    if difference:
        raise InputError(
            f"This is not a version of the model in {place.model}: {difference}.",
            "Choose another --model-name.",
        )
