"""The search as a function: from a dense model and data to a search folder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from spvit_deploy.core.distributed import first_process_only
from spvit_deploy.core.errors import InputError
from spvit_deploy.core.progress import warn
from spvit_deploy.data.batches import Batches
from spvit_deploy.data.spec import DataSettings
from spvit_deploy.lean.model_folder import SavedModel, load_model
from spvit_deploy.search.candidates.token_merging import require_no_merges
from spvit_deploy.search.search import SearchResult, SearchSettings, run_search, supernet_of
from spvit_deploy.search.search_folder import SearchRecord, save_search
from spvit_deploy.training.distillation import check_teacher
from spvit_deploy.training.run import RunSettings, check_run, open_run, run_inputs
from spvit_deploy.workflows.keywords import Pathish, StageSettings, TrainOptions, replace_fields
from spvit_deploy.workflows.latency_budget import find_latencies
from spvit_deploy.workflows.training_inputs import TrainingInputs, load_inputs, teacher_request

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SearchOptions(TrainOptions, total=False):
    """Fields of :class:`StageSettings` and :class:`SearchSettings`."""

    budget: str
    budget_on: str
    budget_method: str
    cost_weight: float
    gate_lr: float | None
    sharpness: float
    probe: int | None
    align: int
    allow_host: bool
    stop_when_settled: int | None
    head_map: str
    dilated: bool
    head_gates: bool
    candidates: Sequence[str]
    token_keep: Any


def search_gates(
    model: Pathish,
    data: DataSettings | str,
    output: Pathish,
    settings: SearchSettings | None = None,
    *,
    run: RunSettings | None = None,
    **options: Unpack[SearchOptions],
) -> SearchResult:
    """Train a supernet and its gates (arXiv 2111.11802), and write a search folder.

    Args:
        model: timm name, or a dense folder.
        run: Checkpoints, resuming and logs.
        options: Fields of :class:`SearchSettings`, which take the place of those in ``settings``
            (``budget="50%"``, ``epochs=30``), and of :class:`StageSettings` (``model_args``,
            ``checkpoint``, ``pretrained``, ``teacher``, ``device``, ``force``). Without a
            teacher, a ``distill_weight`` distils from the dense model itself.

    Raises:
        InputError: The model, weights, budget, data or options are wrong, or the output exists.
        JobError: The training failed, or the disk is full.
    """
    stage = replace_fields(StageSettings(), options, SearchSettings)
    chosen = replace_fields(settings or SearchSettings(), options, StageSettings)
    target, run = Path(output), run or RunSettings()
    requested = chosen.requested
    require_no_merges(requested, chosen.token_keep)
    reads = (model, stage.checkpoint, requested.file, stage.teacher)
    check_run(target, run, stage.force, reads=reads)
    inputs = load_inputs(model, data, stage, chosen.seed)
    _check_dense(inputs, model)
    teacher, of_teacher = _load_teacher(chosen, stage, inputs)
    batches, saved = inputs.open_training_split(chosen.seed), inputs.saved
    same = run_inputs("search", saved.spec, inputs.weights, batches, chosen)
    named = str(stage.teacher) if stage.teacher and chosen.distill_weight else None
    same["teacher"] = of_teacher or named
    with open_run(target, same, run, inputs.processes, inputs.device) as opened:
        latencies = find_latencies(chosen, saved, opened, inputs.device)
        supernet = supernet_of(saved.module.to(inputs.device), saved.spec, chosen)
        supernet = supernet.to(inputs.device)
        result = run_search(supernet, batches, chosen, latencies, opened, teacher)
        hashes = {"checkpoint": inputs.digest, "teacher": of_teacher}
        sources = {name: digest for name, digest in hashes.items() if digest}
        result = replace(result, plan=result.plan.model_copy(update={"sources": sources}))
        record = _search_record(result, chosen, saved, batches)
        with first_process_only(inputs.processes, inputs.device) as mine:
            if mine:
                save_search(supernet.cpu(), result.plan, record, target, stage.force, opened.files)
    return result


def _check_dense(inputs: TrainingInputs, model: Pathish) -> None:
    if inputs.saved.kind != "dense":
        raise InputError(f"{model} is lean already.", "Search from a dense model.")
    if not inputs.weights:
        warn(f"{model} has random weights; search from trained ones, or there is little to keep.")


def _load_teacher(
    settings: SearchSettings, stage: StageSettings, inputs: TrainingInputs
) -> tuple[nn.Module | None, str]:
    """Load what a search distils from, frozen, and the SHA-256 of what it was loaded from.

    Without a name it is the dense model as the search starts from it, resumed or not.
    """
    if not settings.distill_weight:
        return None, ""
    found, digest = inputs.saved, ""
    if stage.teacher is not None:
        with torch.random.fork_rng(devices=[]):  # its draws do not change those of the search
            found, digest = load_model(teacher_request(stage.teacher))
        check_teacher(inputs.saved, found)
    elif not inputs.weights:
        warn("the teacher is the dense model that the search starts from; its weights are random.")
    return copy.deepcopy(found.module).to(inputs.device).requires_grad_(False), digest


def _search_record(
    result: SearchResult, settings: SearchSettings, saved: SavedModel, batches: Batches
) -> SearchRecord:
    history = {
        "stage": "search",
        "data": batches.settings.spec,
        "settings": settings.model_dump(),
        "loss": [round(loss, 5) for loss in result.loss],
        "expected_cost": round(result.expected, 4),
        "gates_flipped_by_projection": result.projection.flipped,
    }
    prep = saved.preprocessing
    return SearchRecord(
        preprocessing=prep.model_copy(update={"crop_pct": 1.0}) if batches.no_crop else prep,
        candidates=settings.offered,
        class_names=batches.class_names or saved.class_names,
        data=batches.settings.spec,
        sources=result.plan.sources,
        history=(*saved.history, history),
    )
