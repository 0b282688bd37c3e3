"""Latency profiles: tables measured on a runtime, kept in a file, and given to a search."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import nn
from typing_extensions import Unpack

from spvit_deploy.benchmarks.host import read_host
from spvit_deploy.benchmarks.latency_tables.block_chain import (
    DEPTH,
    OFTEN,
    ROUNDS,
    Timing,
    time_files,
)
from spvit_deploy.benchmarks.latency_tables.probes import Probes
from spvit_deploy.benchmarks.latency_tables.table import (
    Anchors,
    LatencyFile,
    LatencyTable,
    Shape,
    load_latency,
    merge,
    warn_if_unsteady,
)
from spvit_deploy.core.devices import require_gpu
from spvit_deploy.core.errors import InputError, JobError
from spvit_deploy.core.output_folders import ensure_free
from spvit_deploy.core.plan import ModelSpec
from spvit_deploy.core.progress import Bar, progress_bar
from spvit_deploy.core.records import StrictModel, write_record
from spvit_deploy.export.export_model import write_unverified
from spvit_deploy.families.timm_models import input_size
from spvit_deploy.lean.model_folder import load_model
from spvit_deploy.runtimes.export_job import ExportSettings
from spvit_deploy.runtimes.registry import find_format, find_runtime, formats, open_session
from spvit_deploy.search.budget import Place
from spvit_deploy.workflows.keywords import ModelOptions, Pathish, replace_fields, request_of

# Batch that an engine takes at most; it is built for the one that is timed.
_LARGEST = 32


class ProfileSettings(StrictModel):
    """What is profiled, and where.

    Attributes:
        precision: That the plan will be exported in.
        threads: Of the runtime; None for its own choice.
        device: Where it computes; None for ``cpu``, or the first GPU for engines.
    """

    precision: str = "fp32"
    batch: int = Field(default=1, ge=1)
    threads: int | None = Field(default=None, ge=1)
    device: str | None = None


class ProfileOptions(ModelOptions, total=False):
    """Of the model to profile, and fields of :class:`ProfileSettings`."""

    precision: str
    batch: int
    threads: int | None
    device: str | None


def profile_latency(
    model: Pathish,
    output: Pathish,
    runtimes: Sequence[str] = ("onnxruntime",),
    force: bool = False,
    **options: Unpack[ProfileOptions],
) -> LatencyFile:
    """Measure what each choice of a search costs in a runtime, and write ``latency.json``.

    Args:
        model: A dense folder, or a timm name; weights do not matter.
        runtimes: Names, as ``benchmark`` takes them; there is a table for each.
        options: Fields of :class:`ProfileSettings`: ``precision="bf16"``, ``threads=4``.

    Raises:
        InputError: The model, runtime, precision or device is wrong, or the output exists.
        JobError: A block cannot be exported.
    """
    given: dict[str, Any] = {**options}
    request, target = request_of(model, given), Path(output)
    chosen = replace_fields(ProfileSettings(), given)
    ensure_free(target, force, folder=False, reads=(request.name, request.checkpoint))
    places = [Place(name, **dict(chosen)) for name in dict.fromkeys(runtimes)]
    for place in places:
        settings_of(place)
    saved, _ = load_model(request)
    if saved.kind != "dense":
        raise InputError(f"{model} is lean already.", "Profile the dense model.")
    tables: tuple[LatencyTable, ...] = ()
    for place in places:
        tables = (*tables, measure_table(saved.module, saved.spec, place))
        # What has been measured is not lost with the next.
        write_record(target, LatencyFile(tables=tables))
    return LatencyFile(tables=tables)


def merge_latencies(files: Sequence[Pathish], output: Pathish, force: bool = False) -> LatencyFile:
    """Put the tables of several files into one; of two of the same, the later one is kept.

    Raises:
        InputError: A file does not exist or is damaged, or the output exists.
    """
    target = Path(output)
    ensure_free(target, force, folder=False)
    merged = merge([load_latency(Path(file)) for file in files])
    write_record(target, merged)
    return merged


def settings_of(place: Place) -> ExportSettings:
    """Choose how a model is exported for a place.

    Raises:
        InputError: The runtime or precision is unknown, or not installed.
        JobError: An engine is requested, and there is no GPU.
    """
    runtime, batch = find_runtime(place.runtime), place.batch or 1
    form = next(name for name in runtime.kinds if name in formats())
    options: dict[str, Any] = {"profile": (1, batch, max(_LARGEST, batch))}
    if runtime.needs_gpu:
        why = "the latency of an engine is measured where it runs"
        gpu = require_gpu(why, "Profile the model there.", place.device or "cuda")
        options["gpus"] = (gpu.capability,)
    options = formats()[form].options_in(options)
    settings = ExportSettings(format=form, precision=place.precision or "fp32", options=options)
    return settings.checked()


def measure_table(module: nn.Module, spec: ModelSpec, place: Place) -> LatencyTable:
    """Measure a model's blocks, with each of their choices, as :func:`measure_beside` does."""
    return measure_beside(module, spec, place, {})[0]


def measure_beside(
    module: nn.Module,
    spec: ModelSpec,
    place: Place,
    others: Mapping[str, Path],
    rounds: int = ROUNDS,
) -> tuple[LatencyTable, dict[str, Timing]]:
    """Measure a table of a dense model on the CPU, and interleaved with it ``others`` by name.

    The place is by default fp32, one image, and the runtime's own threads. Errors are those of
    :func:`settings_of`, and a JobError where a block cannot be exported.
    """
    settings = settings_of(place)
    batch, gpu = place.batch or 1, find_runtime(place.runtime).needs_gpu
    device = place.device or ("cuda" if gpu else "cpu")
    with tempfile.TemporaryDirectory() as scratch, torch.random.fork_rng(devices=[]):
        # Random weights, the same each time; the caller's own draws stay as they are.
        torch.manual_seed(0)
        narrows = find_format(settings.format, settings.precision).from_onnx
        probes = Probes(module, spec, batch, narrows)
        count = len(probes.blocks) + len(probes.anchors)
        more = (OFTEN - 1) * len(probes.anchors)
        total = count * (rounds + 1) + (len(others) + more) * rounds
        with progress_bar(f"latency on {place.runtime}", total) as bar:
            files = _write(probes, input_size(module), settings, batch, Path(scratch), bar)
            times, session = time_files(
                {**files, **others},
                lambda path: open_session(path, place.runtime, device, place.threads),
                batch,
                rounds,
                probes.anchors,
                note=lambda _: bar.advance(note="measure"),
            )
    try:
        anchors = Anchors(dense=times["dense"], no_mlp=times["no MLP"], least=times["least"])
    except ValueError:
        raise JobError(
            f"In {place.runtime} the dense model took no longer than one without operations.",
            "It is too small to be timed, or the host is busy: measure again when it is not.",
        ) from None
    table = LatencyTable(
        model=spec, runtime=place.runtime, runtime_version=session.version, device=device,
        precision=settings.precision, batch=batch, threads=place.threads, host=read_host(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        anchors=anchors, shapes=tuple(_shapes(probes, times)),
    )  # fmt: skip
    warn_if_unsteady(table)
    return table, {name: times[name] for name in others}


def _write(
    probes: Probes,
    size: tuple[int, int, int],
    settings: ExportSettings,
    batch: int,
    scratch: Path,
    bar: Bar,
) -> dict[str, Path]:
    """Export an artifact for every block and anchor."""
    files = {}

    def write(
        key: str, module: nn.Module, shape: tuple[int, int, int], own: ExportSettings
    ) -> None:
        folder = scratch / key.replace(" ", "-")
        folder.mkdir()
        bar.advance(0, "export")
        files[key] = write_unverified(module, shape, own, folder)
        bar.advance()

    for key, probe in probes.blocks.items():
        own = settings if probe.call.free else replace(settings, batch=batch)
        write(key, probe.chain(), probe.call.size, own)
    for key, module in probes.anchors.items():
        write(key, module, size, settings)
    return files


def _shapes(probes: Probes, times: dict[str, Timing]) -> Iterator[Shape[Timing]]:
    """Group blocks that compute the same, and put times in the place of keys."""
    groups: dict[str, list[Shape[str]]] = {}
    for site in probes.sites:
        groups.setdefault(site.model_dump_json(exclude={"paths"}), []).append(site)
    block = {key: times[key].scaled(1 / DEPTH) for key in probes.blocks}
    for sites in groups.values():
        shape = _replaced(sites[0].model_dump(exclude={"paths"}), block)
        paths = tuple(path for site in sites for path in site.paths)
        yield Shape[Timing](paths=paths, **shape)


def _replaced(value: Any, times: Mapping[str, Timing]) -> Any:
    """Replace the keys anywhere in a value."""
    if isinstance(value, dict):
        return {name: _replaced(part, times) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replaced(part, times) for part in value]
    return times.get(value, value)
