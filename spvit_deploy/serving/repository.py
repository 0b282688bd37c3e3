"""Export into a Triton model repository."""

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
from spvit_deploy.export.settings import check_settings
from spvit_deploy.lean.load_model import ModelRequest
from spvit_deploy.runtimes.batch_profile import profile_of
from spvit_deploy.runtimes.export_job import ExportSettings
from spvit_deploy.runtimes.registry import find_format
from spvit_deploy.serving.config import (
    BACKENDS,
    Asked,
    Batches,
    Serving,
    check_name,
    differs,
    make_config,
    name_of,
    settle,
    settle_as,
)
from spvit_deploy.serving.repository_layout import (
    CONFIG_FILE,
    LABELS_FILE,
    models_of,
    read_config,
    to_text,
    versions_of,
)
from spvit_deploy.serving.tritonclient_import import triton_module
from spvit_deploy.workflows.export import Pathish
from spvit_deploy.workflows.export_inputs import open_export

MODEL_FILE = "model.py"
COMPILED = "__pycache__"
NEXT = "next"


@dataclass(frozen=True)
class Deployed:
    """What was put into a repository.

    Attributes:
        name: of the model.
        version: of it.
        folder: of the version, an export like any other.
        serving: how Triton serves it.
        record: of the export.
    """

    name: str
    version: int
    folder: Path
    serving: Serving
    record: ExportRecord


@dataclass(frozen=True)
class _Place:
    """Where a version goes: a model's folder, and the configuration if the model is there."""

    folder: Path
    version: int
    config: Any | None

    @property
    def target(self) -> Path:
        """Of the version."""
        return self.folder / str(self.version)


def export_triton(
    model: str,
    output: Pathish,
    asked: Asked | None = None,
    name: str | None = None,
    version: int | str | None = None,
    force: bool = False,
    *,
    settings: ExportSettings | None = None,
    data: DataSettings | str | None = None,
    source: ModelRequest | None = None,
) -> Deployed:
    """Export a model, proven as ever, into a Triton model repository.

    A model that is there already gets a further version; its configuration, its labels and its
    other versions stay as they are. Everything is made beside the repository and renamed into it,
    so that a server which polls it sees whole versions alone.

    Args:
        model: as in :func:`spvit_deploy.export_model`.
        output: the repository; other models in it stay as they are.
        asked: how it is served.
        name: of the model in Triton; None for the timm model's.
        version: a number from 1 on, or ``next``; None for the first one of a new model.
        force: replace the version if it is there.
        settings, data, source: as in :func:`spvit_deploy.export_model`; the backend decides the
            format.

    Raises:
        ParityError: the answers differ; the repository is as it was.
        InputError: a name or number that Triton does not take, a version that is there, or one
            that does not fit the model that is there.
        JobError: as :func:`spvit_deploy.export_model`.
    """
    repository, asked = Path(output), asked or Asked()
    triton_module("grpc.model_config_pb2")
    models_of(repository)
    request, chosen = source or ModelRequest(str(model)), settings or ExportSettings()
    reads = (request.name, request.checkpoint)
    if name is not None:
        _find_place(repository, check_name(name), version, force, reads)
    if asked.backend is not None:
        check_settings(_for_backend(chosen, asked.backend))
    job, earlier = open_export(request, data, chosen)
    assert job.saved is not None
    named = name or name_of(job.saved.spec.name)
    place = _find_place(repository, named, version, force, reads)
    serving = _settled(asked, place, chosen)
    job = replace(job, settings=check_settings(_for_backend(chosen, serving.backend)))
    # Nothing can be renamed into a mounted folder from beside it.
    mounted = os.path.ismount(repository)
    with staging_folder(place.folder if mounted else repository) as staging:
        record = run_export(job, staging / named / str(place.version), earlier=earlier)
        _dress(staging / named, place, make_config(record, named, serving), record)
        _install(staging / named, place, force)
    return Deployed(named, place.version, place.target, serving, record)


def _find_place(
    repository: Path,
    name: str,
    version: int | str | None,
    force: bool,
    reads: Sequence[Pathish | None],
) -> _Place:
    folder = repository / name
    if not folder.exists():
        number = 1 if version is None or version == NEXT else int(version)
        return _Place(folder, number, None)
    config, there = read_config(folder / CONFIG_FILE), versions_of(folder)
    if version is None:
        held = ", ".join(map(str, there)) or "none yet"
        raise OutputExistsError(
            f"{folder} is there, with versions {held}.",
            f"Add one with --model-version {NEXT}, or choose another --model-name.",
        )
    number = max(there, default=0) + 1 if version == NEXT else int(version)
    place = _Place(folder, number, config)
    if place.target.exists():
        if not force:
            raise OutputExistsError(
                f"{place.target} exists.",
                f"Add a version with --model-version {NEXT}, or replace this one with --force.",
            )
        ensure_free(place.target, force, reads=reads)
    return place


def _for_backend(settings: ExportSettings, backend: str) -> ExportSettings:
    return replace(settings, format=BACKENDS[backend])


def _settled(asked: Asked, place: _Place, settings: ExportSettings) -> Serving:
    backend = asked.backend if place.config is None else place.config.backend
    form = find_format(BACKENDS[backend]) if backend is not None else None
    ranged = form is not None and form.runtime == backend and form.options_in({"profile": None})
    batches = Batches(settings.batch, profile_of(settings.options) if ranged else None)
    if place.config is None:
        return settle(asked, batches)
    return settle_as(asked, batches, place.config, place.folder / CONFIG_FILE)


def _dress(model: Path, place: _Place, config: Any, record: ExportRecord) -> None:
    """What Triton wants beside the artefact; a model that is there must fit it.

    Raises:
        InputError: it does not.
    """
    labels = "".join(f"{' '.join(name.split())}\n" for name in record.class_names)
    if config.backend == "python":
        # Copied, never imported: it imports what Triton's Python backend alone has.
        source = Path(__file__).with_name("python_backend.py")
        shutil.copyfile(source, model / str(place.version) / MODEL_FILE)
        # Where a file has this name, Python keeps no bytecode. A server that polls would take it
        # for a change, and load the model a second time.
        (model / str(place.version) / COMPILED).touch()
    if place.config is None:
        write_bytes(model / CONFIG_FILE, to_text(config).encode())
        if labels:
            write_bytes(model / LABELS_FILE, labels.encode())
        read_config(model / CONFIG_FILE)
        return
    other = differs(place.config, config)
    file = place.folder / LABELS_FILE
    if not other and file.is_file() and file.read_text(encoding="utf-8") != labels:
        other = f"its classes are not those of {file}"
    if other:
        raise InputError(
            f"This is no version of the model in {place.folder}: {other}.",
            "Choose another --model-name.",
        )


def _install(model: Path, place: _Place, force: bool) -> None:
    """Rename a new model, or a version of one, into the repository.

    Raises:
        OutputExistsError: another run was faster.
    """
    place.folder.parent.mkdir(parents=True, exist_ok=True)
    if place.config is None:
        move_into_place(model, place.folder, False)
    else:
        move_into_place(model / str(place.version), place.target, force)
