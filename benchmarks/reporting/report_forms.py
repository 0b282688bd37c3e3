"""The report of results: as an HTML page, with a plan and a search; as Markdown; and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spvit_deploy.benchmarks.host import Peak
from spvit_deploy.benchmarks.reporting import charts
from spvit_deploy.benchmarks.reporting.html_page import Figure, Page, render, write_page
from spvit_deploy.benchmarks.reporting.search_charts import read_search_log, search_figures
from spvit_deploy.benchmarks.reporting.tables import (
    gain_tables,
    host_facts,
    parity_table,
    results_table,
    start_table,
)
from spvit_deploy.benchmarks.results import BenchmarkResult, ResultsFile, load_results
from spvit_deploy.benchmarks.speedups import Pair, headline_of, pairs_of
from spvit_deploy.benchmarks.statistics import median_interval
from spvit_deploy.core.errors import InputError
from spvit_deploy.core.plan import PrunePlan

# Percentiles of the JSON form, where there are samples enough.
_TAILS = (90.0, 95.0, 99.0, 99.9)


def read_results(paths: Sequence[Path]) -> list[ResultsFile]:
    """Read result files that must not be empty.

    Raises:
        InputError: No such file, another kind of file, an empty one, or one of a newer schema.
        CorruptFileError: A file is damaged.
    """
    try:
        files = [load_results(path) for path in paths]
    except InputError as error:
        if error.hint:
            raise
        hint = "Give results.json files of `benchmark` or `sweep`: other records have no samples."
        raise InputError(error.message, hint) from None
    for path, file in zip(paths, files, strict=True):
        if not file.results:
            raise InputError(f"{path}: no results in it.", "Measure with `spvit-deploy benchmark`.")
    return files


def write_report(
    results: Sequence[Path],
    output: Path,
    plan: PrunePlan | None = None,
    hidden: Sequence[int] = (),
    search: Path | None = None,
) -> None:
    """Write the page; errors as :func:`read_results`.

    Args:
        plan: Of the lean model, to draw.
        hidden: MLP widths of the dense model, one per block, to draw behind the plan.
        search: Folder of a search to draw.
    """
    files = read_results(results)
    rows = [row for file in files for row in file.results]
    figures = list(_result_figures(rows, pairs_of(rows)))
    if plan is not None:
        note = "Bars: hidden units that each MLP keeps. Color: the operation in place of attention."
        figures.append(Figure("The plan", note, charts.plan_bars(plan, hidden)))
    if search is not None:
        figures += search_figures(read_search_log(search))
    write_page(replace(_page(files, plan), figures=figures), output)


def markdown(files: Sequence[ResultsFile]) -> str:
    """Return the page without its figures as Markdown."""
    return render(_page(files), "page.md.j2")


def _page(files: Sequence[ResultsFile], plan: PrunePlan | None = None) -> Page:
    rows = [row for file in files for row in file.results]
    pairs = pairs_of(rows)
    return Page(
        "spvit-deploy report",
        subtitle=_subtitle(files, plan),
        headline=headline_of(rows),
        cards=_cards(pairs),
        tables=[results_table(files), start_table(rows)],
        details=[*gain_tables(pairs), parity_table(rows)],
        files=files,
    )


def _result_figures(rows: Sequence[BenchmarkResult], pairs: Sequence[Pair]) -> Iterator[Figure]:
    timed = [row for row in rows if row.workload.scenario != "offline"]
    if any(row.top1 is not None for row in timed):
        note = "The line joins the artifacts that no other beats in both."
        yield Figure("Accuracy against latency", note, charts.accuracy_latency(timed))
    if timed:
        note = "Median of an inference; the whisker ends at the 90th percentile."
        yield Figure("Latency", note, charts.latency_bars(timed))
        note = "Boxes contain the middle half of the samples."
        yield Figure("All samples", note, charts.sample_boxes(timed))
    for pair in pairs:
        if pair.gains:
            note = "Time of each block's branches, by the runtime's profiler."
            yield Figure(f"Block by block: {pair.lean.place}", note, charts.block_bars(pair))


def _subtitle(files: Sequence[ResultsFile], plan: PrunePlan | None) -> str:
    dates = ", ".join(sorted({file.created[:10] for file in files}))
    cpus = ", ".join(sorted({f"{f.host.cpu}, {f.host.threads} threads" for f in files}))
    return " · ".join(part for part in (plan.model.name if plan else "", cpus, dates) if part)


def _cards(pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    cards = [_pair_card(pair) for pair in pairs]
    if not pairs:
        return cards
    dense, lean = pairs[0].dense, pairs[0].lean
    if dense.macs:
        cards.append((f"{100 * lean.macs / dense.macs:.1f}%", "of the dense MACs"))
        cards.append((f"{100 * lean.params / dense.params:.1f}%", "of the parameters"))
    if lean.top1 is not None and dense.top1 is not None:
        cards.append((f"{lean.top1:.2f}%", f"top-1; dense has {dense.top1:.2f}%"))
    return cards


def _pair_card(pair: Pair) -> tuple[str, str]:
    ratio, word = pair.ratio.in_words()
    unsteady = ", unsteady" if pair.dense.flagged or pair.lean.flagged else ""
    where = f"{pair.lean.place} (95%: {ratio.low:.2f}–{ratio.high:.2f}{unsteady})"
    if pair.promised:
        where += f"; {pair.promised:.2f}× by its MACs"
    if not ratio.differs:
        return "≈ 1×", f"no difference seen: {where}"
    return f"{ratio.value:.2f}×", f"{word} than dense: {where}"


def content(files: Sequence[ResultsFile]) -> dict[str, Any]:
    """Return the report for programs: seconds, bytes and fractions; None for what is unknown."""
    rows = [row for file in files for row in file.results]
    headline = headline_of(rows)
    return {
        "answer": str(headline) if headline else None,
        "results": [_row(row, file.peaks) for file in files for row in file.results],
        "pairs": [_pair(pair) for pair in pairs_of(rows)],
        "measured": [dict(host_facts(file)) for file in files],
        "commands": [file.command for file in files],
    }


def _row(row: BenchmarkResult, peaks: Sequence[Peak]) -> dict[str, Any]:
    low, high = median_interval(row.samples)
    names = {"title", "kind", "runtime", "device", "precision", "macs", "params", "size_bytes"}
    return {
        **row.model_dump(include={*names, "top1", "start"}),
        **row.workload.model_dump(include={"scenario", "batch", "threads"}),
        "p50": row.p50, "p50_low": low, "p50_high": high,
        **{f"p{percent:g}": row.tail(percent) for percent in _TAILS},
        "throughput": row.throughput, "of_peak": row.fraction_of_peak(peaks),
        "joules": row.joules or None, "remarks": row.remarks(),
    }  # fmt: skip


def _pair(pair: Pair) -> dict[str, Any]:
    names = ("kind", "count", "dense", "lean", "promised", "achieved")
    return {
        "label": pair.lean.place, "dense": pair.dense.title, "lean": pair.lean.title,
        "ratio": pair.ratio.value, "low": pair.ratio.low, "high": pair.ratio.high,
        "differs": pair.ratio.differs, "promised": pair.promised,
        "parts": [{name: getattr(gain, name) for name in names} for gain in pair.gains],
    }  # fmt: skip
