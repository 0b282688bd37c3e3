"""Compare what a latency table predicts of random plans of DeiT-S with what is measured.

The plans are exported as usual, and timed interleaved with the table, so that what differs is not
the host. Then random gates are projected onto budgets, as a search does at its end, and the plans
are timed beside the dense model: do they meet their budgets?

Usage: python benchmarks/suites/latency_table.py [--runtime NAME …] [--plans N] [--rounds N]
           [--threads N]
"""

from __future__ import annotations

import argparse
import copy
import random
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from scipy.stats import spearmanr
from torch import nn

from spvit_deploy.benchmarks.latency_tables.block_chain import (
    OFTEN,
    ROUNDS,
    Timing,
    shaken_model,
    time_files,
)
from spvit_deploy.benchmarks.latency_tables.table import LatencyTable
from spvit_deploy.benchmarks.reporting.charts import LEAN, OTHER, style
from spvit_deploy.benchmarks.suites.harness import plan_of, save, write_image
from spvit_deploy.core.plan import AttentionKind, BlockPlan, ModelSpec, PrunePlan
from spvit_deploy.export.export_model import write_unverified
from spvit_deploy.families.base import BlockSite
from spvit_deploy.families.registry import find_sites
from spvit_deploy.families.timm_models import create_model, input_size
from spvit_deploy.lean.materialize import shape_lean
from spvit_deploy.runtimes.registry import open_session
from spvit_deploy.search.budget import Place
from spvit_deploy.search.projection import project
from spvit_deploy.search.supernet import GateProbabilities
from spvit_deploy.workflows.latency_profile import measure_beside, settings_of

SPEC = ModelSpec(name="deit_small_patch16_224")
BUDGETS = (0.35, 0.5, 0.6, 0.7, 0.8)
COLOURS = {"onnxruntime": LEAN, "openvino": OTHER}


def random_plan(dice: random.Random, sites: list[BlockSite]) -> PrunePlan:
    """Draw a plan: a density, then operations and MLP widths of every block around it."""
    density = dice.uniform(0.05, 0.95)
    kinds, widths = [], []
    for site in sites:
        attends = dice.random() < density
        kinds.append(AttentionKind.MSA if attends else dice.choice(list(AttentionKind)[:3]))
        fraction = min(1.0, max(0.0, dice.gauss(density, 0.25)))
        widths.append(round(fraction * site.hidden / 8) * 8)
    if AttentionKind.MSA not in kinds:
        return random_plan(dice, sites)  # no search keeps a plan without attention
    return plan_of(SPEC.name, [site.path for site in sites], kinds, widths)


def write_plans(
    plans: list[PrunePlan], model: nn.Module, place: Place, work: Path
) -> dict[str, Path]:
    """Export lean models with random weights; return their files by the index of the plan."""
    files = {}
    for index, plan in enumerate(plans):
        folder = work / str(index)
        folder.mkdir(parents=True)
        lean = copy.deepcopy(model)
        shape_lean(lean, plan)
        lean = shaken_model(lean)
        files[folder.name] = write_unverified(lean, input_size(model), settings_of(place), folder)
    return files


def compare(table: LatencyTable, plans: list[PrunePlan], times: list[Timing]) -> dict[str, Any]:
    """Compare predicted and measured milliseconds of every plan."""
    costs = table.costs([block.path for block in plans[0].blocks])
    measured = [1e3 * time.seconds for time in times]
    predicted = [costs.of_plan(plan) / 1e6 for plan in plans]
    errors = [p / m - 1 for p, m in zip(predicted, measured, strict=True)]
    return {
        "predicted_ms": predicted,
        "measured_ms": measured,
        "spread": [time.spread for time in times],
        "mean_error": sum(map(abs, errors)) / len(errors),
        "largest_error": max(map(abs, errors)),
        "bias": sum(errors) / len(errors),
        "rank_correlation": float(spearmanr(predicted, measured).statistic),
        "place": table.place,
    }


def plan_within(fraction: float, table: LatencyTable, dice: random.Random) -> PrunePlan:
    """Draw random gates, and project them onto a fraction of the dense time, as a search does."""
    sites = find_sites(create_model(SPEC), str(SPEC))
    gates = [
        GateProbabilities(
            tuple(dice.uniform(0.2, 1) for _ in range(3)),
            tuple(dice.uniform(0, 1) for _ in range(site.hidden)),
        )
        for site in sites
    ]
    costs = table.costs([site.path for site in sites])
    found = project(gates, costs, round(fraction * costs.dense), 8, range(len(sites)))
    blocks = tuple(
        BlockPlan(path=site.path, attention=choice.kind, mlp_keep=choice.keep)
        for site, choice in zip(sites, found.choices, strict=True)
    )
    return PrunePlan(model=SPEC, blocks=blocks)


def meet_budgets(
    table: LatencyTable, model: nn.Module, place: Place, rounds: int, work: Path
) -> dict[str, Any]:
    """Time plans projected onto :data:`BUDGETS`, and the dense model, whose fractions they are: a
    host may be faster now than when the table was taken.
    """
    dice = random.Random(1)
    plans = [plan_within(fraction, table, dice) for fraction in BUDGETS]
    sites = find_sites(model, str(SPEC))
    paths, widths = [site.path for site in sites], [site.hidden for site in sites]
    plans.append(plan_of(SPEC.name, paths, [AttentionKind.MSA] * len(sites), widths))
    files = write_plans(plans, model, place, work / "budgets")
    open_file = partial(open_session, runtime=place.runtime, threads=place.threads)
    times, _ = time_files(files, open_file, batch=1, rounds=OFTEN * rounds)
    costs = table.costs(paths)
    seconds = [times[name].seconds for name in files]
    of_dense = [one / seconds[-1] for one in seconds[:-1]]
    return {
        "shares": list(BUDGETS),
        "asked_ms": [fraction * costs.dense / 1e6 for fraction in BUDGETS],
        "measured_ms": [1e3 * one for one in seconds],
        "over_asked": [one / fraction - 1 for one, fraction in zip(of_dense, BUDGETS, strict=True)],
    }


def draw(found: dict[str, Any]) -> None:
    """Draw predicted against measured, one point for each plan; needs an installed Chromium."""
    figure = go.Figure()
    most = max(max(row["measured_ms"]) for row in found.values()) * 1.08
    for factor, dash in ((1.0, "solid"), (1.05, "dot"), (0.95, "dot")):
        figure.add_scatter(
            x=[0, most], y=[0, most * factor], mode="lines", showlegend=False,
            line={"color": "#94a3b8", "dash": dash, "width": 1},
        )  # fmt: skip
    for runtime, row in found.items():
        label = (
            f"{runtime}: mean error {100 * row['mean_error']:.1f}%, rank correlation "
            f"{row['rank_correlation']:.3f}"
        )
        figure.add_scatter(
            x=row["measured_ms"], y=row["predicted_ms"], mode="markers", name=label,
            marker={"size": 9, "color": COLOURS.get(runtime, OTHER)},
        )  # fmt: skip
    figure.update_xaxes(title="measured, ms (dotted: ±5%)", range=[0, most])
    style(figure, 460, yaxis_title="predicted from the table, ms")
    write_image(figure, "latency-table.png")


def one_runtime(place: Place, count: int, rounds: int, work: Path) -> dict[str, Any]:
    """Measure the table and the plans."""
    torch.manual_seed(0)
    model, dice = create_model(SPEC), random.Random(0)
    sites = find_sites(model, str(SPEC))
    plans = [random_plan(dice, sites) for _ in range(count)]
    files = write_plans(plans, model, place, work / "plans")
    table, times = measure_beside(model, SPEC, place, files, rounds)
    row = compare(table, plans, [times[name] for name in files])
    print(
        f"{place.runtime}: mean error {100 * row['mean_error']:.1f}%, largest "
        f"{100 * row['largest_error']:.1f}%, rank correlation {row['rank_correlation']:.3f}"
    )
    row["budgets"] = meet_budgets(table, model, place, rounds, work)
    over = " ".join(f"{100 * one:+.1f}%" for one in row["budgets"]["over_asked"])
    print(f"  plans for {' '.join(f'{b:.0%}' for b in BUDGETS)} of the dense time: {over}")
    return row


def main() -> None:
    """Measure, record and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", action="append", help="default: onnxruntime and openvino")
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="Bursts of each.")
    parser.add_argument("--threads", type=int, help="Of the runtime; one where others work too.")
    request = parser.parse_args()
    found = {}
    for runtime in request.runtime or ("onnxruntime", "openvino"):
        with tempfile.TemporaryDirectory() as scratch:
            place = Place(runtime, threads=request.threads)
            found[runtime] = one_runtime(place, request.plans, request.rounds, Path(scratch))
    save("latency_table", {"runtimes": found})
    draw(found)


if __name__ == "__main__":
    main()
