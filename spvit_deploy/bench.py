"""Benchmarks and reports as files, for commands and recipes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spvit_deploy.benchmarks.artefacts import describe
from spvit_deploy.benchmarks.evaluate import evaluate_artefact
from spvit_deploy.benchmarks.measure import run_benchmark
from spvit_deploy.benchmarks.report import render_png, speedups, write_report
from spvit_deploy.benchmarks.results import ResultsFile, Workload, load_results, save_results
from spvit_deploy.benchmarks.statistics import median_ratio
from spvit_deploy.families import find_sites
from spvit_deploy.models import create_empty
from spvit_deploy.plan import PrunePlan, load_plan
from spvit_deploy.progress import stderr_console
from spvit_deploy.sources import DataSettings
from spvit_deploy.store import ensure_free


def bench_to_file(
    artefacts: Sequence[Path],
    runtimes: Sequence[str],
    batches: Sequence[int],
    duration: float,
    threads: int | None,
    device: str,
    output: Path,
    force: bool,
    data: DataSettings | None = None,
) -> ResultsFile:
    """Measure, evaluate where ``data`` are given, and write ``results.json``.

    Raises:
        OutputExistsError, StorageError: as :func:`ensure_free`.
        InputError: as :func:`run_benchmark`.
    """
    ensure_free(output, force, folder=False, reads=artefacts)
    workloads = [Workload(batch=b, duration=duration, threads=threads) for b in batches]
    results = run_benchmark(artefacts, list(runtimes) or None, workloads, device)
    if data is not None:
        top1 = {describe(p).digest: evaluate_artefact(p, data).top1 for p in artefacts}
        rows = tuple(r.model_copy(update={"top1": top1.get(r.model_hash)}) for r in results.results)
        results = results.model_copy(update={"results": rows})
    save_results(results, output)
    return results


def report_to_file(
    results: Sequence[Path],
    output: Path,
    plan: Path | None,
    png: bool,
    force: bool,
    search: Path | None = None,
) -> list[Path]:
    """Write the page, and its picture with ``png`` where a Chromium is installed.

    Returns:
        Files written.
    """
    picture = output.with_suffix(".png")
    for path in (output, picture) if png else (output,):
        ensure_free(path, force, folder=False, reads=(*results, plan, search))
    loaded = load_plan(plan) if plan else None
    write_report(results, output, loaded, _hidden(loaded), search)
    if not png:
        return [output]
    if render_png(output, picture):
        return [output, picture]
    stderr_console().print(
        "no picture of the report: that takes an installed Chromium or Chrome", highlight=False
    )
    return [output]


def _hidden(plan: PrunePlan | None) -> list[int]:
    if plan is None:
        return []
    return [site.hidden for site in find_sites(create_empty(plan.model), str(plan.model))]


def print_summary(results: Path) -> None:
    """Every artefact, and how much faster the lean ones are."""
    from spvit_deploy import show

    file = load_results(results)
    show.summary(file)
    for label, dense, lean in speedups(file.results):
        ratio, word = median_ratio(dense.samples, lean.samples).said()
        show.console().print(
            f"{label}: lean is {ratio.value:.2f}× {word} than dense "
            f"(95% interval {ratio.low:.2f} to {ratio.high:.2f})"
        )
