"""Measuring, evaluating and reporting as functions, in memory and in files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from typing_extensions import Unpack

from spvit_deploy.benchmarks.artifacts import describe
from spvit_deploy.benchmarks.evaluate import Evaluation, evaluate_artifact
from spvit_deploy.benchmarks.measure import run_benchmark
from spvit_deploy.benchmarks.mlperf.loadgen import STREAMS
from spvit_deploy.benchmarks.reporting.html_page import render_png
from spvit_deploy.benchmarks.reporting.report_forms import (
    content,
    markdown,
    read_results,
    write_report,
)
from spvit_deploy.benchmarks.results import (
    Boundary,
    DataRecord,
    ResultsFile,
    Scenario,
    Workload,
)
from spvit_deploy.core.errors import InputError
from spvit_deploy.core.files import write_bytes
from spvit_deploy.core.output_folders import ensure_free
from spvit_deploy.core.plan import load_plan
from spvit_deploy.core.records import write_record
from spvit_deploy.data.spec import DataSettings
from spvit_deploy.families.registry import find_sites
from spvit_deploy.families.timm_models import create_empty
from spvit_deploy.workflows.keywords import Pathish, replace_fields

_SECONDS, _LOADGEN_SECONDS = 2.0, 12.0
_BATCHES = {"multi-stream": STREAMS, "offline": 16}


class WorkloadOptions(TypedDict, total=False):
    """Fields of :class:`Workload`."""

    scenario: Scenario
    batch: int
    concurrency: int
    boundary: Boundary
    slo: float | None
    warmup: int
    duration: float
    threads: int | None
    pause: float
    seed: int


def evaluate(
    artifact: Pathish,
    data: DataSettings | str,
    runtime: str | None = None,
    device: str = "auto",
) -> Evaluation:
    """Evaluate a lean, dense or exported folder, or a file of one, on the validation split.

    Raises:
        InputError: The path is not an artifact, or the data do not fit it.
    """
    return evaluate_artifact(Path(artifact), DataSettings.of(data), runtime, device)


def benchmark(
    artifacts: Sequence[Pathish],
    runtimes: Sequence[str] | None = None,
    workloads: Sequence[Workload] | None = None,
    device: str = "cpu",
    **options: Unpack[WorkloadOptions],
) -> ResultsFile:
    """Measure every artifact on every runtime that opens it, interleaved.

    Args:
        artifacts: Dense, lean and exported folders, and files of the latter.
        runtimes: Names; None for all that fit.
        workloads: Measured one after another; None for the one that ``options`` describe.
        device: ``auto|cpu|cuda|cuda:N|mps``, or an execution provider of ONNX Runtime.
        options: Fields of :class:`Workload`, for all workloads: ``batch=8``, ``duration=5``.

    Raises:
        InputError: A runtime is not installed, or opens none of the artifacts; or an option is
            wrong.
    """
    if not artifacts:
        raise InputError("There are no artifacts to measure.")
    chosen = [replace_fields(workload, options) for workload in workloads or [Workload()]]
    return run_benchmark([Path(path) for path in artifacts], runtimes, chosen, device)


def bench_to_file(
    artifacts: Sequence[Path],
    output: Path,
    force: bool,
    data: DataSettings | None = None,
    *,
    runtimes: Sequence[str] = (),
    device: str = "cpu",
    quick: bool = False,
    **options: Any,
) -> ResultsFile:
    """Measure, evaluate on the validation split of ``data``, and write ``results.json``.

    Args:
        runtimes: Names; none for all that fit.
        quick: Measure only latencies: no start, layers, energy and peaks.
        options: Of :func:`_workloads`.
    """
    ensure_free(output, force, folder=False, reads=artifacts)
    chosen = _workloads(**options)
    results = run_benchmark(artifacts, runtimes or None, chosen, device, not quick)
    if data is not None:
        results = _evaluated(results, artifacts, data)
    write_record(output, results)
    return results


def _workloads(
    batches: Sequence[int] = (),
    duration: float | None = None,
    scenario: Scenario = "closed",
    latency_slo: float | None = None,
    **others: Any,
) -> list[Workload]:
    """Make a workload for each batch; without batches or a duration, as the scenario has them."""
    if latency_slo is not None and scenario != "server":
        raise InputError(
            f"--latency-slo is for --scenario server; {scenario} was requested.",
            "Leave it out, or choose server.",
        )
    seconds = duration or (_SECONDS if scenario == "closed" else _LOADGEN_SECONDS)
    return [
        Workload(scenario=scenario, batch=batch, slo=latency_slo, duration=seconds, **others)
        for batch in batches or (_BATCHES.get(scenario, 1),)
    ]


def _evaluated(results: ResultsFile, artifacts: Sequence[Path], data: DataSettings) -> ResultsFile:
    """Add accuracies, and the images that they were measured on."""
    found = {describe(path).digest: evaluate_artifact(path, data) for path in artifacts}
    rows = tuple(
        row.model_copy(update={"top1": found[row.model_hash].top1}) for row in results.results
    )
    hashes = {"x".join(map(str, one.input_size)): one.sha256 for one in found.values()}
    images = max(one.images for one in found.values())
    record = DataRecord(spec=data.spec, images=images, sha256=hashes)
    return results.model_copy(update={"results": rows, "data": record})


def report_to_file(
    results: Sequence[Path],
    output: Path,
    plan: Path | None = None,
    png: bool = False,
    force: bool = False,
    search: Path | None = None,
    form: str = "html",
) -> list[Path]:
    """Write a report, and with ``png`` an image of it if a Chromium is installed; return the files.

    Args:
        plan: Lean folder or ``gates.json`` whose plan is drawn; HTML only.
        search: Folder of a search to draw; HTML only.
        form: ``html``, ``md`` or ``json``.

    Raises:
        InputError: No results, or an option that the form does not have.
    """
    for name, given in (("--plan", plan), ("--png", png), ("--search", search)):
        if given and form != "html":
            raise InputError(f"{name} is for HTML, not for {form}.", "Leave it out.")
    image = output.with_suffix(".png")
    for path in (output, image) if png else (output,):
        ensure_free(path, force, folder=False, reads=(*results, plan, search))
    if form != "html":
        files = read_results(results)
        as_json = form == "json"
        text = json.dumps(content(files), indent=1) + "\n" if as_json else markdown(files)
        write_bytes(output, text.encode())
        return [output]
    loaded, widths = load_plan(plan) if plan else None, []
    if loaded is not None:
        sites = find_sites(create_empty(loaded.model), str(loaded.model))
        widths = [site.hidden for site in sites]
    write_report(results, output, loaded, widths, search)
    return [output, image] if png and render_png(output, image) else [output]
