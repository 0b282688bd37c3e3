"""Accuracy at 30%, 50% and 70% of the MACs, by method: Fashion-MNIST, a small DeiT, three seeds.

Usage: python benchmarks/suites/quality.py --data-dir DIR [--work FOLDER] [--jobs N] [--time 90]
           [--only METHOD …] [--budgets 50% …] [--seeds 0 …] [--device cuda] [--afresh]
Each combination is a cell, written into FOLDER when it is done and never done again, nor is one of
the recorded results, unless --afresh: a run that was cut short, or out of --time (minutes), goes
on where it was. Every run ends by writing the table and the plot of all cells that are there.

With FOLDER/latency.json (`spvit-deploy profile FOLDER/dense-0 --threads 1 -o FOLDER/latency.json`)
`by latency` is a method too: given as budget the time that our plan takes.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go
import torch

from spvit_deploy.benchmarks.host import read_host
from spvit_deploy.benchmarks.latency_tables.table import LATENCY_FILE, load_latency
from spvit_deploy.benchmarks.reporting.charts import DENSE, LEAN, style
from spvit_deploy.benchmarks.suites.harness import (
    DOCS,
    RESULTS,
    replace_table,
    save,
    write_image,
)
from spvit_deploy.benchmarks.suites.quality_methods import (
    CPU,
    METHODS,
    Method,
    Setting,
    by_latency,
    from_scratch,
)
from spvit_deploy.benchmarks.suites.search_cost import MODEL, fashion_mnist
from spvit_deploy.core.records import write_record
from spvit_deploy.data.batches import Batches
from spvit_deploy.families.timm_models import create_model
from spvit_deploy.lean.cost import count_cost
from spvit_deploy.lean.model_folder import SavedModel, dense_saved, load_saved, save_model
from spvit_deploy.search.search import SearchSettings, probe_of
from spvit_deploy.training.finetune import FinetuneSettings, finetune_model, top1

RECORDED = RESULTS / "quality.json"
# Methods that start from the plan that ours found.
SCRATCH, BY_LATENCY = "scratch", "by latency"
AFTER = (SCRATCH, BY_LATENCY)
EPOCHS = {"dense": 3, "search": 1, "finetune": 2}
BUDGETS = ("30%", "50%", "70%")
# Methods in the plot, with their colors; variants of our own would hide the rest.
DRAWN = {
    "ours": LEAN, "published": "#d97706", "torch-pruning": "#db2777", "uniform": "#64748b",
    "scratch": "#0284c7",
}  # fmt: skip
# Images are read once in each process.
_opened = cache(fashion_mnist)
Row = dict[str, Any]
Rows = Sequence[Row]


class Cell(NamedTuple):
    """One model to be trained and evaluated."""

    method: str
    budget: str
    seed: int

    @property
    def file(self) -> str:
        """Name of the file of its result."""
        name = f"{self.method}-{self.budget}-{self.seed}".replace(" ", "_")
        return f"{name.replace(',', '').replace('%', '')}.json"


@dataclass(frozen=True)
class Place:
    """Where the data are, where results go, and what trains and evaluates."""

    data_dir: str
    work: Path
    until: float
    device: torch.device
    afresh: bool

    def batches(self, train: bool, seed: int = 0) -> Batches:
        """Open a split."""
        return _opened(self.data_dir, train, self.device).reseeded(seed)

    def done(self) -> dict[str, Row]:
        """Read the results that exist, by the names of their files."""
        recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
        rows = recorded.get("cells", []) if recorded.get("epochs") == EPOCHS else []
        cells = [Cell(row["method"], row["budget"], row["seed"]) for row in rows]
        old: dict[str, Row] = dict(zip((cell.file for cell in cells), rows, strict=True))
        found = {} if self.afresh else old
        for file in sorted(self.work.glob("*-*.json")):
            row = json.loads(file.read_text())
            row.pop("digest", None)
            found[file.name] = row
        return found


def dense_of(place: Place, seed: int) -> SavedModel:
    """Load the dense model of a seed, which is trained the first time."""
    folder = place.work / f"dense-{seed}"
    if not folder.exists():
        torch.manual_seed(seed)
        untrained = dense_saved(create_model(MODEL), MODEL)
        settings = FinetuneSettings(epochs=EPOCHS["dense"], lr=1e-3, amp=True, seed=seed)
        train = place.batches(True, seed)
        save_model(finetune_model(untrained, train, settings, None, place.device), folder)
    return load_saved(folder)


def method_of(cell: Cell, place: Place) -> Method:
    """Choose what makes a cell's model."""
    if cell.method in METHODS:
        return METHODS[cell.method]
    ours = place.done()[Cell("ours", cell.budget, cell.seed).file]
    shape = ours["operations"], ours["widths"]
    if cell.method == SCRATCH:
        return from_scratch(*shape)
    return by_latency(*shape, load_latency(place.work / LATENCY_FILE).tables[0])


def settings_of(cell: Cell) -> tuple[SearchSettings, FinetuneSettings]:
    """Build the settings of search and fine-tuning, with a CPU's defaults on every device."""
    usual: dict[str, Any] = {"lr": 5e-4, "amp": True, "seed": cell.seed}
    own: dict[str, Any] = {"budget": cell.budget, "probe": probe_of(CPU)}
    search = SearchSettings(epochs=EPOCHS["search"], **own, **usual)
    return search, FinetuneSettings(epochs=EPOCHS["finetune"], **usual)


def run_cell(cell: Cell, place: Place) -> None:
    """Train, judge and write one cell."""
    if time.time() > place.until or cell.file in place.done():
        return
    start = time.perf_counter()
    dense, train = dense_of(place, cell.seed), place.batches(True, cell.seed)
    at = Setting(dense, train, cell.seed, EPOCHS["dense"], *settings_of(cell), place.device)
    lean, held_out = method_of(cell, place)(at), place.batches(False)
    size, on_cpu = dense.preprocessing.input_size, place.device.type == "cpu"
    found: Row = {
        "method": cell.method, "budget": cell.budget, "seed": cell.seed,
        "top1": top1(copy.deepcopy(lean.module).to(place.device), held_out),
        "dense_top1": top1(copy.deepcopy(dense.module).to(place.device), held_out),
        "macs": count_cost(lean.module, size).macs / at.dense_macs,
        "params": count_cost(lean.module, size).params,
        "seconds": time.perf_counter() - start,
        "device": read_host().cpu if on_cpu else torch.cuda.get_device_name(place.device),
    }  # fmt: skip
    if lean.plan is not None:
        found["operations"] = [block.attention.value for block in lean.plan.blocks]
        found["widths"] = [len(block.mlp_keep) for block in lean.plan.blocks]
    if cell.method in ("ours", BY_LATENCY):
        save_model(lean, place.work / cell.file[:-5], force=True)
    write_record(place.work / cell.file, found)
    print(f"{cell.file[:-5]}: {found['top1']:.2f}% at {100 * found['macs']:.1f}%", flush=True)


def attempt(cell: Cell, place: Place) -> bool:
    """Run a cell; whatever becomes of it, the others run."""
    try:
        run_cell(cell, place)
    except Exception:
        print(f"{cell.file[:-5]} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        return False
    return True


def cells_of(request: argparse.Namespace) -> Iterator[Cell]:
    """List the requested cells, whole seeds first: an unfinished run compares like with like."""
    after = AFTER if (request.work / LATENCY_FILE).exists() else AFTER[:1]
    methods = request.only or (*METHODS, *after)
    others = [method for method in methods if method != "dense"]
    for seed in request.seeds:
        yield from (Cell(method, budget, seed) for budget in request.budgets for method in others)
        if "dense" in methods:
            yield Cell("dense", "100%", seed)


def table(rows: Rows) -> str:
    """Format a row per method: mean top-1 over the seeds ± its standard error (seeds)."""
    lines = ["| | " + " | ".join(BUDGETS) + " |", "| --- |" + " --- |" * len(BUDGETS)]
    methods = {row["method"] for row in rows} - {"dense"}
    drawn = [method for method in DRAWN if method in methods]
    for method in [*drawn, *sorted(methods - DRAWN.keys())]:
        found = [_scores(rows, method, budget) for budget in BUDGETS]
        cells = [_mean(scores) if scores else "" for scores in found]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    note = f"Dense: {_dense(rows):.2f}%"
    longer = [row["top1"] for row in rows if row["method"] == "dense"]
    if longer:
        note += f"; trained on for as long as the others {_mean(longer)}"
    image = "![Top-1 on Fashion-MNIST against MACs, by method](images/quality.png)"
    return "\n".join(lines) + f"\n\n{note}.\n\n{image}"


def _dense(rows: Rows) -> float:
    return statistics.mean({row["seed"]: row["dense_top1"] for row in rows}.values())


def _scores(rows: Rows, method: str, budget: str) -> list[float]:
    return [r["top1"] for r in rows if (r["method"], r["budget"]) == (method, budget)]


def _standard_error(scores: Sequence[float]) -> float:
    return statistics.stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else 0.0


def _mean(scores: Sequence[float]) -> str:
    error = f" ± {_standard_error(scores):.2f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.2f}{error} ({len(scores)})"


def draw(rows: Rows) -> None:
    """Draw top-1 against the budget, a line per method."""
    figure: Any = go.Figure()
    budgets = [float(budget.rstrip("%")) for budget in BUDGETS]
    for index, (method, color) in enumerate(DRAWN.items()):
        scores = [_scores(rows, method, budget) for budget in BUDGETS]
        found = [(fraction, s) for fraction, s in zip(budgets, scores, strict=True) if s]
        figure.add_scatter(
            name=method,
            x=[fraction + 0.4 * (index - 2) for fraction, _ in found],
            y=[statistics.mean(s) for _, s in found],
            error_y={"type": "data", "array": [_standard_error(s) for _, s in found]},
            line={"color": color, "width": 2},
            marker={"size": 8},
        )
    figure.add_hline(y=_dense(rows), line={"color": DENSE, "dash": "dot"}, annotation_text="dense")
    figure.update_xaxes(title="MACs, % of the dense model", tickvals=budgets)
    style(figure, 460, yaxis_title="top-1 on Fashion-MNIST, %")
    write_image(figure, "quality.png")


def main() -> None:
    """Measure what is missing, and write what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", required=True, help="DIR of DIR/FashionMNIST/raw.")
    parser.add_argument("--work", type=Path, default=Path("quality"))
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--time", type=float, default=1e6, help="Minutes; no cell starts later.")
    parser.add_argument("--only", nargs="+", choices=(*METHODS, *AFTER))
    parser.add_argument("--budgets", nargs="+", default=["50%", "30%", "70%"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--device", default="cpu", help="cpu or cuda.")
    parser.add_argument("--afresh", action="store_true", help="Leave recorded results out.")
    request = parser.parse_args()
    if BY_LATENCY in (request.only or ()) and not (request.work / LATENCY_FILE).exists():
        parser.error(f"{BY_LATENCY} needs {request.work / LATENCY_FILE}.")
    request.work.mkdir(parents=True, exist_ok=True)
    until = time.time() + 60 * request.time
    device = torch.device(request.device)
    place = Place(request.data_dir, request.work, until, device, request.afresh)
    cells, spawn = list(cells_of(request)), get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // request.jobs)
    with ProcessPoolExecutor(request.jobs, spawn, torch.set_num_threads, (threads,)) as pool:
        list(pool.map(dense_of, [place] * len(request.seeds), request.seeds))
        done = []
        for late in (False, True):
            some = [cell for cell in cells if (cell.method in AFTER) is late]
            done += list(pool.map(attempt, some, [place] * len(some)))
    rows = [row for _, row in sorted(place.done().items())]
    save("quality", {"epochs": EPOCHS, "cells": rows})
    replace_table(DOCS / "quality.md", "benchmarks/suites/quality.py", table(rows))
    draw(rows)
    dense = statistics.mean(row["dense_top1"] for row in rows)
    print(f"{len(rows)} cells; dense {dense:.2f}%")
    sys.exit(0 if all(done) else 1)


if __name__ == "__main__":
    main()
