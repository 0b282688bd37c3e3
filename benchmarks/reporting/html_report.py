"""One self-contained HTML page from results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from spvit_deploy.benchmarks.headline import answer_of
from spvit_deploy.benchmarks.reporting import block_charts, charts
from spvit_deploy.benchmarks.reporting.html_page import (
    card,
    figure_section,
    section,
    table,
    write_page,
)
from spvit_deploy.benchmarks.reporting.search_charts import read_search_log, search_figures
from spvit_deploy.benchmarks.reporting.tables import (
    GAIN_HEADS,
    HEADS,
    PROOF_HEADS,
    START_HEADS,
    cells_of,
    gain_cells,
    host_facts,
    proof_rows,
    remark_lines,
    start_cells,
)
from spvit_deploy.benchmarks.results import BenchmarkResult, ResultsFile, load_results
from spvit_deploy.benchmarks.speedups import Pair, pairs_of
from spvit_deploy.core.errors import InputError
from spvit_deploy.core.plan import PrunePlan


def write_report(
    results: Sequence[Path],
    output: Path,
    plan: PrunePlan | None = None,
    hidden: Sequence[int] = (),
    search: Path | None = None,
    title: str = "spvit-deploy report",
) -> None:
    """Write the page.

    Args:
        results: ``results.json`` files; none where a search alone is to be shown.
        output: page to write.
        plan: the lean model's, to draw.
        hidden: MLP widths of the dense model, to draw the plan against.
        search: folder of a search, to draw how it went.
        title: heading.

    Raises:
        InputError: no results, or empty or damaged ones.
        StorageError: no space, or not writable.
    """
    files = read_results(results)
    rows = [result for file in files for result in file.results]
    pairs = pairs_of(rows)
    figures = list(_figures(rows, pairs, plan, hidden))
    if search is not None:
        figures += search_figures(read_search_log(search))
    body = [f"<h1>{escape(title)}</h1>", _headline(rows)]
    body.append(f"<p class=sub>{escape(_subtitle(files, plan))}</p>")
    if rows:
        body.append(f"<div class=cards>{''.join(_cards(pairs))}</div>")
        body.append(section("Results", _results(files)))
        body += _starts(rows)
    body += [figure_section(index, *entry) for index, entry in enumerate(figures)]
    body += [*_gains(pairs), *_proofs(rows)]
    if files:
        body.append(method_section(files))
    write_page(output, title, body)


def read_results(paths: Sequence[Path]) -> list[ResultsFile]:
    """Result files that hold something.

    Raises:
        InputError: no such file, an empty one, or one of a newer schema.
        CorruptFileError: damaged.
    """
    files = [load_results(path) for path in paths]
    for path, file in zip(paths, files, strict=True):
        if not file.results:
            raise InputError(f"{path} holds no results.", "Measure something.")
    return files


def _headline(rows: Sequence[BenchmarkResult]) -> str:
    found = answer_of(rows)
    if found is None:
        return ""
    best, what = found.parts()
    return f"<p class=answer>{escape(best)}: <b>{escape(what)}</b></p>"


def _figures(
    rows: Sequence[BenchmarkResult],
    pairs: Sequence[Pair],
    plan: PrunePlan | None,
    hidden: Sequence[int],
) -> Iterator[tuple[str, str, Any]]:
    """(heading, note, figure)."""
    timed = [row for row in rows if row.workload.scenario != "offline"]
    if any(row.top1 is not None for row in timed):
        note = "The line joins those that nothing else beats in both."
        yield "Accuracy against latency", note, charts.accuracy_latency(timed)
    if timed:
        note = "Median of a call; the whisker ends at the 90th percentile."
        yield "Latency", note, charts.latency_bars(timed)
        yield "All samples", "Boxes hold the middle half of the calls.", charts.sample_boxes(timed)
    for pair in pairs:
        if pair.gains:
            note = "Seconds of a call in each block's branches, by the runtime's profiler."
            yield f"Block by block: {pair.label}", note, block_charts.block_bars(pair)
    if plan is not None:
        note = "Bars: hidden units that each MLP keeps. Colour: what took attention's place."
        yield "The plan", note, charts.plan_bars(plan, hidden)


def _subtitle(files: Sequence[ResultsFile], plan: PrunePlan | None) -> str:
    made = ", ".join(sorted({file.created[:10] for file in files}))
    cpus = ", ".join(sorted({f"{f.host.cpu}, {f.host.threads} threads" for f in files}))
    return " · ".join(part for part in (plan.model.name if plan else "", cpus, made) if part)


def speedups(rows: Sequence[BenchmarkResult]) -> list[tuple[str, BenchmarkResult, BenchmarkResult]]:
    """Pairs of dense and lean under the same terms: (label, dense, lean)."""
    return [(pair.label, pair.dense, pair.lean) for pair in pairs_of(rows)]


def _cards(pairs: Sequence[Pair]) -> list[str]:
    cards = [_pair_card(pair) for pair in pairs]
    if pairs:
        dense, lean = pairs[0].dense, pairs[0].lean
        if dense.macs:
            cards.append(card(f"{100 * lean.macs / dense.macs:.1f}%", "of the dense MACs"))
            cards.append(card(f"{100 * lean.params / dense.params:.1f}%", "of the parameters"))
        if lean.top1 is not None and dense.top1 is not None:
            text = f"top-1; dense has {dense.top1:.2f}%"
            cards.append(card(f"{lean.top1:.2f}%", text))
    return cards


def _pair_card(pair: Pair) -> str:
    ratio, word = pair.ratio.said()
    unsteady = ", unsteady" if pair.dense.flagged or pair.lean.flagged else ""
    interval = f" (95%: {ratio.low:.2f}–{ratio.high:.2f}{unsteady})"
    promised = f"; its MACs promise {pair.promised:.2f}×" if pair.promised else ""
    if ratio.low != ratio.high and not pair.ratio.differs:
        return card("≈ 1×", f"no difference seen: {pair.label}{interval}{promised}")
    return card(f"{ratio.value:.2f}×", f"{word} than dense: {pair.label}{interval}{promised}")


def _results(files: Sequence[ResultsFile]) -> str:
    rows = [(row, file.peaks) for file in files for row in file.results]
    lines = [table(HEADS, [cells_of(*row) for row in rows], [bool(r.flagged) for r, _ in rows])]
    remarks = remark_lines([row for row, _ in rows])
    lines += [f"<p class=note>{escape(text)}</p>" for text in remarks]
    if any(row.flagged for row, _ in rows):
        lines.append(
            "<p class=note>Amber rows are unsteady: alone and interleaved, their medians differ "
            "by 3% or more, so the host or a neighbour disturbed them. Measure longer, or on a "
            "quieter host.</p>"
        )
    if all(row.top1 is None for row, _ in rows):
        lines.append("<p class=note>Accuracy was not evaluated; benchmark --data does.</p>")
    return "".join(lines)


def _starts(rows: Sequence[BenchmarkResult]) -> Iterator[str]:
    started = [row for row in rows if row.start is not None]
    if started:
        cells = [start_cells(row) for row in started]
        yield section("In a fresh process", table(START_HEADS, cells, [False] * len(cells)))


def _gains(pairs: Sequence[Pair]) -> Iterator[str]:
    for pair in pairs:
        if pair.gains:
            cells = [gain_cells(gain) for gain in pair.gains]
            note = (
                "<p class=note>What the MACs of each kind of part promise, and what became of it; "
                "times by the runtime's profiler.</p>"
            )
            yield section(
                f"Where the speed-up comes from: {pair.label}",
                note + table(GAIN_HEADS, cells, [False] * len(cells)),
            )


def _proofs(rows: Sequence[BenchmarkResult]) -> Iterator[str]:
    cells = proof_rows(rows)
    if cells:
        note = "<p class=note>How far answers differ from those of the model before it.</p>"
        yield section("Parity", note + table(PROOF_HEADS, cells, [False] * len(cells)))


def method_section(files: Sequence[ResultsFile]) -> str:
    """How and where the results were measured, and how to do it again."""
    text = (
        "<p>Artefacts take turns in short bursts, in an order that changes from round to round, "
        "with a sleep before each burst, since a runtime's threads spin on after a call and slow "
        "whatever comes next. Each is measured alone as well; a row is marked where the two "
        "medians differ by 3% or more. Ratios are of medians, round by round where both took "
        "turns, with a bootstrap interval. Python collects no garbage meanwhile.</p>"
    )
    lines = [
        f"<tr><th>{escape(name)}<td>{escape(value)}"
        for file in files
        for name, value in host_facts(file)
    ]
    facts = f"<table class=host>{''.join(lines)}</table>"
    commands = [file.command for file in files if file.command]
    again = f"<h2>To do it again</h2><pre>{escape(chr(10).join(commands))}</pre>"
    return section("How it was measured", text + facts + (again if commands else ""))
