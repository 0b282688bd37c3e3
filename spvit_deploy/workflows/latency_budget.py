"""The latencies that a search needs for a latency budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from spvit_deploy.benchmarks.host import HostRecord, read_host
from spvit_deploy.benchmarks.latency_tables.table import (
    LATENCY_FILE,
    LatencyFile,
    LatencyTable,
    load_latency,
    same_host,
    warn_if_unsteady,
)
from spvit_deploy.core.distributed import first_process_only
from spvit_deploy.core.errors import InputError
from spvit_deploy.core.plan import AttentionKind, ModelSpec
from spvit_deploy.core.progress import warn
from spvit_deploy.core.records import write_record
from spvit_deploy.families.base import BlockSite
from spvit_deploy.families.registry import find_sites
from spvit_deploy.lean.cost import SiteCost
from spvit_deploy.lean.model_folder import SavedModel
from spvit_deploy.runtimes.registry import installed, runtimes
from spvit_deploy.search.budget import BudgetRequest, Place
from spvit_deploy.search.budget_target import Measured
from spvit_deploy.search.candidates.registry import find_candidates
from spvit_deploy.search.search import SearchSettings
from spvit_deploy.training.run import Run
from spvit_deploy.workflows.latency_profile import measure_table


def find_latencies(
    settings: SearchSettings, dense: SavedModel, run: Run, device: torch.device
) -> Measured | None:
    """Read the latencies of a latency budget from its file, or measure them.

    The first process does so for all and keeps them beside the checkpoints: a resumed search uses
    the latencies that it began with. ``dense`` is on the CPU, ``device`` that of the processes.

    Raises:
        InputError: No table in the file fits, or the runtime is not installed.
        JobError: A block cannot be exported.
    """
    if settings.requested.place is None:
        return None
    sites = find_sites(dense.module, str(dense.spec))
    text = ""
    with first_process_only(run.processes, device) as mine:
        if mine:
            text = _read_or_measure(settings, dense, sites, run).model_dump_json()
    table = LatencyTable.model_validate_json(run.processes.value_of_first(text, device))
    return measured(table, sites, find_candidates(settings.offered).kinds)


def _read_or_measure(
    settings: SearchSettings, dense: SavedModel, sites: Sequence[BlockSite], run: Run
) -> LatencyTable:
    budget, kept = settings.requested, run.folder / LATENCY_FILE
    run.files.append(kept)
    if run.state is not None:
        return load_latency(kept).tables[0]
    if budget.file is not None:
        table = read_table(budget, sites, dense.spec, settings.allow_host)
    else:
        assert budget.place is not None
        table = measure_table(dense.module, dense.spec, budget.place)
    write_record(kept, LatencyFile(tables=(table,)))
    return table


def measured(
    table: LatencyTable,
    sites: Sequence[BlockSite],
    kinds: Sequence[AttentionKind] = tuple(AttentionKind),
) -> Measured:
    """Build the cost table of a search from a latency table; ``kinds`` are in order of cost.

    Fewer heads were not timed; their latency is interpolated between none and all.

    Raises:
        InputError: An operation was not timed.
    """
    try:
        costs = table.costs([site.path for site in sites], kinds)
    except KeyError as error:
        (kind,) = error.args
        raise InputError(
            f"The latencies of {table.place} have none of {kind.value}.",
            "Measure again with `spvit-deploy profile`, which takes all installed operations.",
        ) from None
    costs = replace(costs, sites=_with_heads(costs.sites, sites))
    return Measured(replace(costs, tail=_with_heads(costs.tail, sites)), table.place)


def _with_heads(costs: tuple[SiteCost, ...], sites: Sequence[BlockSite]) -> tuple[SiteCost, ...]:
    found = []
    for cost, site in zip(costs, sites, strict=bool(costs)):
        times = cost.attention
        all_heads = max(0, times[AttentionKind.MSA] - times[AttentionKind.SKIP])
        heads = site.heads if site.trims_heads else 0
        found.append(replace(cost, heads=heads, head=all_heads // max(1, heads)))
    return tuple(found)


def read_table(
    budget: BudgetRequest, sites: Sequence[BlockSite], spec: ModelSpec, allow_host: bool = False
) -> LatencyTable:
    """Read the table of a budget's file that fits the budget, the dense model and this host.

    Raises:
        InputError: The file does not exist, or no table or several tables fit.
    """
    assert budget.place is not None
    assert budget.file is not None
    file = load_latency(budget.file)
    tables = [table for table in file.tables if _is_of(table, spec, sites)]
    if not tables:
        models = ", ".join(dict.fromkeys(str(table.model) for table in file.tables))
        raise InputError(
            f"{budget.file} is for {models}; the search is of {spec}.",
            "Measure this model with `spvit-deploy profile`.",
        )
    found = _of_host(budget, _of_place(budget, budget.place, tables), allow_host)
    if len(found) > 1:
        raise InputError(
            f"{budget.file} has several tables that fit: {'; '.join(t.place for t in found)}.",
            f"Name one, such as @{budget.place.runtime},precision=fp32,batch=1; of several hosts, "
            "take the file of one.",
        )
    warn_if_unsteady(found[0])
    _compare_versions(budget.file, found[0])
    return found[0]


def _compare_versions(file: Path, table: LatencyTable) -> None:
    """Warn if this host has another version of the runtime by now."""
    info = runtimes().get(table.runtime)
    then, now = table.runtime_version, installed(info.package) if info else None
    if now not in (None, then) and same_host(table.host, read_host()):
        warn(
            f"{file} was measured with {table.runtime} {then}, here is {now}: latencies may differ."
        )


def _is_of(table: LatencyTable, spec: ModelSpec, sites: Sequence[BlockSite]) -> bool:
    """Tell whether a table is of this model, whatever its weights and classes."""
    first, second = (
        (one.name.partition(".")[0], {**one.args, "num_classes": None})
        for one in (table.model, spec)
    )
    hidden = {path: shape.hidden for shape in table.shapes for path in shape.paths}
    return first == second and hidden == {site.path: site.hidden for site in sites}


def _of_place(
    budget: BudgetRequest, place: Place, tables: Sequence[LatencyTable]
) -> list[LatencyTable]:
    named = {key: value for key, value in vars(place).items() if value is not None}
    fitting = [t for t in tables if all(getattr(t, key) == v for key, v in named.items())]
    if not fitting:
        words = {"batch": "batch {}", "threads": "{} threads"}
        wanted = ", ".join(words.get(key, "{}").format(value) for key, value in named.items())
        raise InputError(
            f"{budget.file} has no latencies of {wanted}; it has "
            f"{'; '.join(t.place for t in tables)}.",
            "Measure them with `spvit-deploy profile`.",
        )
    return fitting


def _of_host(
    budget: BudgetRequest, tables: list[LatencyTable], allow_host: bool
) -> list[LatencyTable]:
    here = read_host()
    own = [table for table in tables if same_host(table.host, here)]
    if not own and not allow_host:
        raise InputError(
            f"{budget.file} was measured on {_hardware(tables[0].host)}; this host is "
            f"{_hardware(here)}.",
            "If that is where the model will run, give --allow-host; else measure here.",
        )
    return own or tables


def _hardware(host: HostRecord) -> str:
    gpus = "".join(f", {gpu}" for gpu in host.gpus)
    return f"{host.cpu} ({host.threads} threads, {' '.join(host.flags) or 'no flags'}{gpus})"
